"""How a command, of one process or several, begins and ends. Importing this imports no torch."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Packages whose errors say what their user can mend.
OWN = "modeling_albef_amc", "albef_amc", "trainer", "dataset_scripts"  # installed, or in a clone of the repository
# Modules of libraries that check settings, in words that say what to do.
OF_SETTINGS = (
    "transformers.configuration_utils",
    "transformers.hf_argparser",
    "transformers.integrations",
    "transformers.modeling_utils",
    "transformers.optimization",
    "transformers.trainer",  # and those whose names begin so
    "transformers.training_args",
    "transformers.utils.generic",  # of words of which one is to be chosen
    "torch.optim",
)


def check_restart() -> None:
    """RuntimeError: torchrun has started this process again, and gives it a store that still has the addresses of the
    dead ones: the processes would wait for each other until a time-out (PyTorch's issue 135712).
    """
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shares_store and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        raise RuntimeError(
            "A restart by torchrun would wait for processes that are dead. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in "
            "the environment of torchrun, and use --rdzv_backend c10d (or --standalone)."
        )


def run_script(main: Callable[[], Any]) -> None:
    """Runs a command to its end; what its user can mend is told in one line, and the exit status is 2."""
    try:
        main()
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        # Files, the Hub and what is installed are the user's, whoever looks for them; of other errors, our own are.
        modules = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
        *_, module = (each for each in modules if each.split(".")[0] not in sys.stdlib_module_names)
        is_own = module.split(".")[0] in (*OWN, main.__module__) and not isinstance(error, RuntimeError)
        of_files = isinstance(error, OSError | ImportError | UnicodeError)
        if not (of_files or is_own or module.startswith(OF_SETTINGS)):
            raise
        fail(f"error: {error}", *getattr(error, "__notes__", []))
    end_process_group()


def fail(message: str, *notes: str) -> NoReturn:
    print(" ".join(message.split()), *notes, sep="\n", file=sys.stderr)
    sys.exit(2)


def check_apart(option: str, output: str | Path, dataset: str | None, below: str = "") -> None:
    """ValueError: what is written into `output`, and into its folder `below`, would be among the files of a data set.

    Args: dataset: a folder; a Hub id is none of this machine's.
    """
    if dataset is None or not os.path.isdir(dataset):
        return
    data, written = Path(dataset).resolve(), Path(output, below).resolve()
    read = data / "data" if any((data / "data").glob("*.parquet")) else data  # of builds, nothing but that folder
    is_among = read in (written, *written.parents) or (below and written in read.parents)
    if is_among or Path(output).resolve() == data:
        raise ValueError(f"{option} {output} would put files among those of the data set {dataset}: choose another")


def place_apart(name: str, folder: str) -> Path:
    """`name` in the working directory, or beside the folder of a data set that it would lie in."""
    try:
        check_apart("", name, folder)
    except ValueError:
        return Path(os.path.relpath(Path(folder).resolve().parent / name))
    return Path(name)


def add_note(error: BaseException, note: str) -> None:
    """What Python 3.11 has as a method of errors."""
    error.__dict__.setdefault("__notes__", []).append(note)


def end_process_group() -> None:
    """Ends the group of processes, and the threads it has, while the interpreter is still whole.

    A thread of gloo that lets go of its last tensor while Python shuts down aborts its process («terminate called
    without an active exception»), and with it the whole run that had just succeeded.
    """
    distributed, backends = sys.modules.get("torch.distributed"), []
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # With the last of PyTorch's own references, a backend would end in a wait for its threads that keeps Python's
        # lock, which a thread needs to let go of a tensor; with Python's reference it ends without the lock.
        groups = distributed.distributed_c10d._world.pg_map
        backends += [group._get_backend(device) for group in groups for device in group._device_types]
        distributed.destroy_process_group()
    # Models wrapped for several processes hold on to the group, in cycles.
    gc.collect()
    backends.clear()
