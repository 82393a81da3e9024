"""Nobody is asked anything: every command, inference and the Space on local files, with sockets forbidden.

The environment is a user's: no HF_HUB_OFFLINE, no variable that switches telemetry off.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
SCENES = "--train 2 --validation 1 --test 1 --test-relations 1 --test-unseen 1 --captions 1"
RUNS = {
    "train": f"import train; train.main('{SETTINGS}'.split())",
    "evaluate": "from trainer.commands import main as m; m('evaluate --models a=model --dataset data --cpu'.split())",
    "ground": f"from trainer import ground_dataset; ground_dataset.main('{SPLIT} --output g'.split())",
    "sweep": f"from trainer import sweep_layers; sweep_layers.main('{SPLIT}'.split())",
    "pipeline": """
import modeling_albef_amc
from transformers import pipeline
print(pipeline("visual-grounding", model="model")("photo.png", ["red square"])[0]["point"])
""",
    "grounder": """
from modeling_albef_amc import AutoGrounder
print(AutoGrounder.from_pretrained("model").score("photo.png", ["red square"]))
""",
    "auto model": """
import modeling_albef_amc
from transformers import AutoModel, AutoProcessor
AutoModel.from_pretrained("model"), AutoProcessor.from_pretrained("model")
""",
    "command line": """
from trainer.commands import main
main(["ground", "photo.png", "red square", "--model", "model", "--device", "cpu"])
""",
    "space": """
from app import build
from models import ModelStore, read_catalogue
build(ModelStore(read_catalogue()))
""",
    "space, opened": """
import urllib.request
import app
page = app.build(app.ModelStore(app.read_catalogue()))
_, address, _ = page.launch(prevent_thread_lock=True, **app.launch_options())
for name in ("", "config"):
    assert len(urllib.request.urlopen(address + name).read()) > 1000
page.close()
""",
    "build": f"from dataset_scripts import build; build.main('scenes --output built {SCENES}'.split())",
    "merge": "from trainer.commands import main; main('merge adapters --output merged'.split())",
    "metrics": """
import evaluate
from pathlib import Path
import trainer.scores as t
print(evaluate.load(str(t.METRICS / "pointing_game")).compute(points=[[1, 1]], boxes=[[[0, 0, 2, 2]]]))
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    write_folder(folder / "data", train=tiny_records(6), test=tiny_records(3), validation=tiny_records(2))
    save_with_adapters(folder / "model", folder / "adapters")
    picture().save(folder / "photo.png")
    return folder


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    hidden = "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_OFFLINE", "GRADIO_ANALYTICS_ENABLED"
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'space'}", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-c", FORBIDDEN + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", RUNS)
def test_nobody_is_asked(folder, name):
    ended = run(RUNS[name], folder)
    assert "ASKED THE NETWORK" not in ended.stdout, ended.stderr[-3000:]
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_the_check_can_fail(folder):
    ended = run("import urllib.request; urllib.request.urlopen('http://example.com')", folder)
    assert ended.returncode != 0 and "ASKED THE NETWORK" in ended.stdout
