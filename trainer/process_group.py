"""How a script of several processes begins and ends."""

import gc
import os

from accelerate import PartialState


def check_restart() -> None:
    """
    Raises:
        RuntimeError: torchrun has started this process again, and gives it a store that still has the addresses of the
            dead ones: the processes would wait for each other until a time-out (PyTorch's issue 135712).
    """
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shares_store and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        raise RuntimeError(
            "A restart by torchrun would wait for processes that are dead. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in "
            "the environment of torchrun, and use --rdzv_backend c10d (or --standalone)."
        )


def end_process_group() -> None:
    """Ends the group of processes, and the threads it has, while the interpreter is still whole.

    A thread of gloo that lets go of its last tensor while Python shuts down aborts its process («terminate called
    without an active exception»), and with it the whole run that had just succeeded.
    """
    PartialState().destroy_process_group()
    # Models wrapped for several processes hold on to the group, in cycles.
    gc.collect()
