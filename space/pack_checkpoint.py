"""Puts a trained checkpoint into this folder.

    python space/pack_checkpoint.py outputs/scenes/with_amc space/checkpoints/with_amc

Only what answers need: the weights of `AlbefModel` without momentum copies, queues and word prediction, the processor,
and the checkpoint's card. The model's code is not copied: the Space has the package beside it.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from modeling_albef_amc import AlbefModel, AlbefProcessor
from models import FILES, without_foreign


def pack(checkpoint: Path, folder: Path) -> None:
    model, loading = AlbefModel.from_pretrained(checkpoint, output_loading_info=True)
    if loading["missing_keys"]:
        raise SystemExit(f"{checkpoint} lacks weights: {min(loading['missing_keys'])}, …")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        AlbefProcessor.from_pretrained(checkpoint).save_pretrained(scratch)
        for path in (path for pattern in FILES for path in Path(scratch).glob(pattern)):
            if path.name.endswith("config.json"):
                without_foreign(path)
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(checkpoint / "README.md", folder / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint with its processor and card")
    parser.add_argument("folder", type=Path, help="below checkpoints/")
    options = parser.parse_args()
    pack(options.checkpoint, options.folder)


if __name__ == "__main__":
    main()
