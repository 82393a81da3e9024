"""Puts a trained checkpoint into this folder.

    python space/pack_checkpoint.py outputs/scenes/with_amc space/checkpoints/with_amc

Only what answers need: the weights of `AlbefModel` without momentum encoder, queues and word prediction, the processor,
and the checkpoint's card. The model's code is not copied: the Space has the package beside it.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from modeling_albef_amc.families.auto import load_model, load_processor
from models import FILES, without_foreign


def pack(checkpoint: Path, folder: Path) -> None:
    model = load_model(str(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        load_processor(str(checkpoint), model).save_pretrained(scratch)
        for path in (path for path in Path(scratch).iterdir() if path.name in FILES):
            if path.name.endswith("config.json"):
                without_foreign(path)
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(checkpoint / "README.md", folder / "README.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint with its processor and card")
    parser.add_argument("folder", type=Path, help="below checkpoints/")
    pack(**vars(parser.parse_args()))
