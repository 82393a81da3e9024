"""Nobody is asked anything: every command, inference and the Space on local files, with sockets forbidden.

The environment is a user's: no HF_HUB_OFFLINE, no variable that switches telemetry off.
"""

import os
import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.helpers import forked
from tests.helpers.data import picture, save_with_adapters, tiny_records, write_folder

ROOT = Path(__file__).parents[1]
# Whoever turns to another machine, or asks for its address, is told so in a traceback and on the last line.
FORBIDDEN = """
import socket

HERE = "127.0.0.1", "localhost", "::1", "0.0.0.0", None

def guarded(function, position):
    def call(*args, **kwargs):
        address = args[position] if position < len(args) else None
        host = address[0] if isinstance(address, tuple) else address
        if host in HERE or str(host).startswith("/"):  # or a socket of the file system
            return function(*args, **kwargs)
        import traceback
        traceback.print_stack()
        print("ASKED THE NETWORK", host)
        raise PermissionError("no network in this test")
    return call

for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, guarded(getattr(socket, name), 0))
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, guarded(getattr(socket.socket, name), 1))
"""
SETTINGS = (
    "--model model --dataset data --output_dir run --max_steps 2 --per_device_train_batch_size 2 --mask_size 16 "
    "--save_steps 1 --use_cpu true --disable_tqdm true --eval_splits test --warmup_steps 0 --num_logged_heatmaps 1"
)
SPLIT = "--model model --dataset data --split test --cpu"
SCENES = "--train 2 --validation 1 --test 1 --test-relations 1 --test-unseen 1 --captions 1 --num-proc 1"
# Each is run in one process after the others, but for the Space in its own.
PACKAGE = {
    "train": f"import train; train.main('{SETTINGS}'.split())",
    "evaluate": "from trainer.commands import main; main('evaluate --models a=model --dataset data --cpu'.split())",
    "ground a data set": f"from trainer import ground_dataset; ground_dataset.main('{SPLIT} --output g'.split())",
    "sweep": f"from trainer import sweep_layers; sweep_layers.main('{SPLIT}'.split())",
    "pipeline": """
from transformers import AutoModel, AutoProcessor, pipeline
print(pipeline("visual-grounding", model="model")("photo.png", ["red square"])[0]["point"])
AutoModel.from_pretrained("model"), AutoProcessor.from_pretrained("model")
""",
    "ground": """
from trainer.commands import main
main(["ground", "photo.png", "red square", "--model", "model", "--device", "cpu"])
""",
    "build": f"from dataset_scripts import build; build.main('scenes --output built {SCENES}'.split())",
    "merge": "from trainer.commands import main; main('merge adapters --output merged'.split())",
    "metrics": """
import evaluate
import trainer.scores
metric = evaluate.load(str(trainer.scores.METRICS / "pointing_game"))
print(metric.compute(points=[[1, 1]], boxes=[[[0, 0, 2, 2]]]))
""",
}
SPACE = {
    "opened": """
import urllib.request
import app
page = app.build(app.ModelStore(app.read_catalogue()))
_, address, _ = page.launch(prevent_thread_lock=True, **app.launch_options())
for name in ("", "config"):
    assert len(urllib.request.urlopen(address + name).read()) > 1000
page.close()
""",
}
EACH = """
import sys, traceback
for name, code in %r.items():
    try:
        exec(code, {"__name__": name})
    except BaseException:
        traceback.print_exc()
        sys.exit(f"FAILED: {name}")
    print("DONE:", name)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    write_folder(folder / "data", train=tiny_records(6), test=tiny_records(3), validation=tiny_records(2))
    save_with_adapters(folder / "model", folder / "adapters")
    picture().save(folder / "photo.png")
    return folder


def run(codes: dict[str, str], folder: Path) -> CompletedProcess:
    hidden = "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_OFFLINE", "GRADIO_ANALYTICS_ENABLED"
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'space'}", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    return forked.run(["-c", FORBIDDEN + EACH % codes], folder, environment)


@pytest.mark.parametrize("codes", [PACKAGE, SPACE], ids=["package", "space"])
def test_nobody_is_asked(folder, codes):
    ended = run(codes, folder)
    assert "ASKED THE NETWORK" not in ended.stdout, ended.stderr[-3000:]
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert re.findall("^DONE: (.*)", ended.stdout, re.MULTILINE) == list(codes)


def test_the_check_can_fail(folder):
    ended = run({"asking": "import urllib.request; urllib.request.urlopen('http://example.com')"}, folder)
    assert ended.returncode != 0 and "ASKED THE NETWORK" in ended.stdout and "FAILED: asking" in ended.stderr
