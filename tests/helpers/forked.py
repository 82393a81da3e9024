"""Python commands in processes of their own that need not import torch again: forked from a server that has.

A command has its own session, folder, environment and streams, and ends as an interpreter ends. What reads HF_* when it
is imported is there beforehand for those commands alone whose HF_* are the tests' own, or were told to `prepare`.
"""

import contextlib
import faulthandler
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import psutil

ROOT = Path(__file__).parents[2]
TORCH = "torch._dynamo torch.distributed.fsdp torch.distributed.run torch.utils.data safetensors.torch tokenizers"
OTHERS = "pandas pyarrow.dataset pyarrow.parquet PIL.Image yaml jinja2 requests fsspec multiprocess xxhash psutil"
PROJECT = "trainer.training trainer.evaluate_grounding trainer.ground_dataset"


@functools.cache
def server() -> socket.socket:
    """The end to ask of a process that has imported what reads no HF_*; it goes when its caller does."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(there.fileno()), *TORCH.split(), *OTHERS.split()]
    subprocess.Popen(command, env=variables, pass_fds=[there.fileno()])
    there.close()
    return here


def of_hub(variables: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((name, text) for name, text in variables.items() if name[:3] == "HF_")


PREPARED: dict[frozenset[tuple[str, str]], socket.socket] = {}


def prepare(variables: Mapping[str, str], modules: str = PROJECT) -> None:
    """Imports these with the HF_* of `variables`, once for all commands that have the same."""
    if of_hub(variables) in PREPARED:
        return
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    variables = {**variables, "OMP_NUM_THREADS": "1"}
    with there:
        Forked([__file__, "1", *modules.split()], ROOT, variables, there, sys.__stderr__, server())
    PREPARED[of_hub(variables)] = here


def server_for(variables: Mapping[str, str]) -> socket.socket:
    if of_hub(variables) == of_hub(os.environ):
        prepare(variables)
    return PREPARED.get(of_hub(variables)) or server()


class Forked:
    """`python ARGUMENTS…`, with what the tests need of subprocess.Popen."""

    def __init__(self, arguments, cwd, env, stdout, stderr, channel: socket.socket | None = None) -> None:
        channel = channel or server_for(env)
        self.args, self.returncode = list(map(str, arguments)), None
        self.status, written = os.pipe()
        request = json.dumps([self.args, str(cwd), dict(env)]).encode()
        socket.send_fds(channel, [request], [written, stdout.fileno(), stderr.fileno()])
        os.close(written)
        self.pid = int(os.read(self.status, 10))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(os.read(self.status, 10))
            os.close(self.status)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None


def run(arguments, cwd, env, timeout: float = 300) -> subprocess.CompletedProcess:
    """As `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`.

    AssertionError: it did not end in time; with what it wrote, and where each of its processes was.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = Forked(arguments, cwd, env, out, errors)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            own = psutil.Process(process.pid)
            for each in (own, *own.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGUSR1)
                    time.sleep(0.5)
                    each.kill()
            errors.seek(0)
            raise AssertionError(f"{error}\n{errors.read()[-20_000:]}") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        texts = [file.seek(0) or file.read() for file in (out, errors)]
        return subprocess.CompletedProcess(process.args, process.returncode, *texts)


def serve(channel: socket.socket) -> list[str]:
    """Forks for each command. In that process alone it returns: the command's arguments."""
    while True:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        request, streams, *_ = socket.recv_fds(channel, 1 << 20, 3)
        if not request:
            os._exit(0)
        if not os.fork():
            break
        for stream in streams:
            os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    channel.close()
    if command := os.fork():  # this one tells its end, however it ends
        os.write(streams[0], b"%10d" % command)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for one that has been prepared
            os.write(streams[0], b"%d" % os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
        os._exit(0)
    arguments, folder, variables = json.loads(request)
    os.setsid()
    os.chdir(folder)
    for number, stream in enumerate(streams):
        if number:
            os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(variables)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.register(signal.SIGUSR1)
    sys.path[0] = folder
    sys.path[1:1] = [path for path in variables.get("PYTHONPATH", "").split(":") if path]
    return arguments


def started_by_torchrun(channel: socket.socket):
    """In the place of what starts its workers: a server of its own, below it."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    def start(self, args, env):
        return Forked(args[1:], os.getcwd(), env, self._stdout or sys.stdout, self._stderr or sys.stderr, channel)

    SubprocessHandler._popen = start


def execute(arguments: list[str]) -> None:
    if "torch.distributed.run" in arguments:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            there.close()
            started_by_torchrun(here)
        else:
            here.close()
            return execute(serve(there))
    while arguments[0] == "-u":
        del arguments[0]
    match arguments:
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), vars(main))
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *rest]:
            sys.argv, sys.path[0] = [script, *rest], str(Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    number = int(sys.argv[1])
    channel = socket.socket(fileno=os.dup(number))
    os.dup2(2, number)
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()  # collecting all that has been imported would take each command a second
    execute(serve(channel))
