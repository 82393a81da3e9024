"""What the installed wheel does without the repository: every command once, and the Space, in an empty folder.

python -m tests.installed .venv-lowest     # `make dist` first; the wheel takes the place of what is installed there
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.space import served

ROOT = Path(__file__).parents[1]
SMALL = "--train 24 --validation 8 --test 8 --test_relations 0 --test_unseen 0 --captions 0"
COMMANDS = f"""
build scenes --output data {SMALL}
inspect data --output sheet.png
train --dataset data --model space/checkpoints/base --output_dir run --max_steps 2 --use_cpu true
evaluate --models run=run --dataset data --splits test --output scores --cpu
sweep --model run --dataset data --cpu
ground space/examples/scene_1.png star --model run --output out.png
ground-dataset --model run --dataset data --split test --output rows --cpu
ground-dataset --model run --dataset data --split test --output by_ray --cpu --num_actors 2
export-annotations rows --dataset data --format yolo --output boxes
convert run run.pth --to_original
convert run.pth again --tokenizer run --text_heads 4 --vision_heads 4 --grounding_layer 1
ground space/examples/scene_1.png star --model again
export run programs
export run onnx --format onnx-int8
train --dataset data --model run --output_dir lora --lora_rank 2 --max_steps 1 --use_cpu true --report_to none
merge lora --output merged
"""
# Word of a command → Python that fails where the environment cannot do it, see docs/versions.md.
CHECK_PEFT = "from modeling_albef_amc.families.auto import check_peft; check_peft('LoRA needs')"
NEEDS = {
    "export": "import onnxscript; from transformers.utils.versions import require_version as need; need('torch>=2.13')",
    **dict.fromkeys(("lora", "merge"), CHECK_PEFT),
}


def run(environment: Path, folder: Path) -> None:
    """Raises CalledProcessError: a command fails."""
    bin_folder = environment.resolve() / "bin"
    (wheel,) = (ROOT / "dist").glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", bin_folder / "python", "install", "-qq", "--no-deps"]
    subprocess.run([*install, "--force-reinstall", wheel], check=True)
    shutil.copytree(ROOT / "space", folder / "space")
    cannot = [name for name, code in NEEDS.items() if subprocess.run([bin_folder / "python", "-c", code]).returncode]
    for command in COMMANDS.strip().splitlines():
        words = command.split()
        if set(words) & set(cannot):
            print("left out: albef-amc", command)
            continue
        print("albef-amc", command, flush=True)
        subprocess.run([bin_folder / "albef-amc", *words, "--quiet"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with served([bin_folder / "python", "app.py"], folder / "space") as (address, _):
        print("the Space answers at", address)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("environment", type=Path, help="folder of a virtual environment with the extras")
    environment = parser.parse_args().environment
    with tempfile.TemporaryDirectory() as folder:
        run(environment, Path(folder))
