"""What test_resume.py and chaos/kills.py share: runs of `train.py` that can be killed, and all that they leave."""

import hashlib
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from tests.helpers import forked
from tests.helpers.data import tiny_albef, tiny_processor, tiny_records, write_folder

ROOT = Path(__file__).parents[2]
# Everything random at once: augmentation, masked words, drawn boxes, negatives, dropout, shuffled rows.
SETTINGS = {
    "per_device_train_batch_size": 3,
    "mask_size": 16,
    "crop": 0.5,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "alpha_ramp_epochs": 1.0,
    "save_steps": 3,
    "logging_steps": 1,
    "num_logged_heatmaps": 0,
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
}


def prepare(folder: Path) -> None:
    """Data of two broken records among others, and a model with dropout."""
    records = tiny_records(22, phrases_per_image=2)
    records[4]["boxes"] = [[9, 9, 1, 1]]
    write_folder(folder / "data", rows_per_group=4, train=records, validation=tiny_records(4))
    model = tiny_albef()
    for part in (model.config.text_config, model.config.vision_config):
        part.hidden_dropout_prob = part.attention_probs_dropout_prob = 0.1
    model.save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")


def options(folder: Path, run: str, **settings) -> list[str]:
    """The command line of a run."""
    places = {"dataset": folder / "data", "model": folder / "model", "output_dir": folder / run}
    return [text for name, value in (places | SETTINGS | settings).items() for text in (f"--{name}", str(value))]


def start(
    folder: Path,
    run: str,
    processes: int = 1,
    launch: Sequence[str] = ("--standalone",),
    script: str = "train.py",
    environment: Mapping[str, str] = {},
    **settings,
) -> forked.Forked:
    """A run in the background, into `folder/run`; its log is `folder/run.log`.

    Args:
        processes: of this machine. launch: options of torchrun, which is used if there are several processes or a
            machine among others is meant.
    """
    torchrun = ["-m", "torch.distributed.run", *launch, f"--nproc_per_node={processes}"]
    is_alone = processes == 1 and list(launch) == ["--standalone"]
    common = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [*([] if is_alone else torchrun), script, *options(folder, run, **settings)]
    with open(folder / f"{run}.log", "a") as log:
        return forked.Forked(command, ROOT, os.environ | common | environment, log, log)


def finish(folder: Path, run: str, processes: int = 1, **settings) -> None:
    """A run to its end.

    Raises:
        RuntimeError: it failed.
    """
    if start(folder, run, processes, **settings).wait(timeout=600):
        raise RuntimeError((folder / f"{run}.log").read_text()[-3000:])


def kill(process: forked.Forked) -> None:
    """kill -9, as when a machine loses its power: of all processes that it has started, torchrun's workers too."""
    everyone = suspended(psutil.Process(process.pid))
    for one in everyone:
        one.kill()
    psutil.wait_procs(everyone)
    process.wait()


def suspended(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it, which stand still: none starts another, or sees another die."""
    try:
        process.suspend()
        return [process, *(one for child in process.children() for one in suspended(child))]
    except psutil.NoSuchProcess:  # it ended by itself
        return []


def everything(checkpoint: Path) -> dict[str, str]:
    """Hash of everything that a checkpoint holds of the training: weights, teacher, queues, optimizer, schedule, draws.

    Files are compared by their tensors, since equal ones may be written in another order.
    """
    found = {}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            found |= {f"{path.name} {name}": digest(tensor) for name, tensor in load_file(path).items()}
        elif path.suffix in (".pt", ".pth"):
            # By itself: the run wrote it, with the states of Python's and numpy's generators.
            found |= {f"{path.name} {name}": text for name, text in flat(torch.load(path, weights_only=False))}
    return found


def flat(value, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [entry for key, each in value.items() for entry in flat(each, f"{name}/{key}")]
    if isinstance(value, list | tuple):
        return [entry for number, each in enumerate(value) for entry in flat(each, f"{name}/{number}")]
    return [(name, digest(value) if isinstance(value, torch.Tensor) else repr(value))]


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()


def torchrun(*command: str, cwd: Path, processes: int = 2) -> str:
    """Runs a script in several processes; what they print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--nproc_per_node", str(processes), "--master_port", str(port)]
    launcher = ["-m", "torch.distributed.run", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = forked.run([*launcher, *command], cwd, environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout
