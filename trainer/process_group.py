"""How a script of several processes ends."""

import gc

from accelerate import PartialState


def end_process_group() -> None:
    """Ends the group of processes, and the threads it has, while the interpreter is still whole.

    A thread of gloo that lets go of its last tensor while Python shuts down aborts its process («terminate called
    without an active exception»), and with it the whole run that had just succeeded.
    """
    PartialState().destroy_process_group()
    # Models wrapped for several processes hold on to the group, in cycles.
    gc.collect()
