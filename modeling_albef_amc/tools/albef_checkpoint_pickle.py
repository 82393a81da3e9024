"""What a `.pth` file would do when it is read: looked at before torch reads it, as a pickle is a program.

`torch.load(weights_only=True)` runs no code, but what it does admit can fill the memory (`bytearray(2**40)`) or take
for ever (a key of tuples within tuples, whose hash takes time that doubles with each). Neither is in a checkpoint.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .albef_checkpoint_layout import ConversionError

_MAX_NESTING = 32
_LONGEST_LINE = 2**16  # names and numbers
_NEWEST_PROTOCOL = 3  # that torch reads
_OLD_PICKLES = 5  # of a file of torch before 1.6: magic number, version, machine, content, names of the storages
# All that state dictionaries, and what training scripts save beside them, consist of.
_ADMITTED = re.compile(
    r"collections (OrderedDict|Counter)|_codecs encode|(builtins|__builtin__) (set|complex)"
    r"|torch\._utils (_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)|torch\.nn\.parameter Parameter"
    r"|argparse Namespace"
    r"|torch (\w+Storage|Size|device|u?int\d+|bfloat16|float\d+|complex\d+|bool|half|float|double|long|int|short)"
)
_MEMORIZING = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_RECALLING = {"GET", "BINGET", "LONG_BINGET"}


def check_program(path: Path) -> None:
    """
    Raises:
        ConversionError: the file asks for a class or function that no checkpoint needs, is nested deeper than 32
            levels, or packs what torch never packs.
        zipfile.BadZipFile, ValueError, LookupError, OSError, EOFError: it is damaged.
    """
    with path.open("rb") as file, _pickles(file) as pickles:
        for pickle in pickles:
            _check_pickle(_Stream(pickle, path.stat().st_size))


class _Stream(NamedTuple):
    """A file of which nobody reads more than it has: memory for what is asked for would be taken first."""

    file: BinaryIO
    size: int

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size))

    def readline(self) -> bytes:
        return self.file.readline(_LONGEST_LINE)


@contextmanager
def _pickles(file: BinaryIO) -> Iterator[Iterator[BinaryIO]]:
    """Streams that each stand at the beginning of a pickle."""
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        yield (file for _ in range(_OLD_PICKLES))
        return
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ConversionError("it is packed in a way that torch.save does not: save it anew with torch.save.")
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ConversionError(f"it has {len(names)} files data.pkl, where torch.save writes one: get it again.")
        with archive.open(names[0]) as stream:
            yield iter([stream])


def _check_pickle(stream: _Stream) -> None:
    """Follows the instructions up to the pickle's end, with the levels of nesting in the place of values."""
    stack: list[int] = []
    marks: list[int] = []
    memory: dict[int, int] = {}
    for operation, argument, _ in pickletools.genops(stream):
        name, before = operation.name, operation.stack_before
        if name == "PROTO" and argument > _NEWEST_PROTOCOL:
            raise ConversionError(
                f"it is no file of torch.save with its default pickle protocol, but of protocol {argument}: save it "
                "anew without pickle_protocol."
            )
        if name == "GLOBAL" and argument.startswith("torch._utils _rebuild_") and not _ADMITTED.fullmatch(argument):
            raise ConversionError(
                f"it holds tensors of a kind that is not read ({argument.split()[1]}): save plain ones of float32, "
                "float16 or bfloat16."
            )
        if name == "GLOBAL" and not _ADMITTED.fullmatch(argument):
            raise ConversionError(
                f"it carries code ({argument.replace(' ', '.')}), which is never run. Where the file was made, save "
                "the weights alone: torch.save({'model': model.state_dict()}, path)."
            )
        if name == "MARK":
            marks.append(len(stack))
        elif name in _MEMORIZING:
            memory[len(memory) if argument is None else argument] = stack[-1]
        elif name in _RECALLING:
            stack.append(memory[argument])
        else:
            kept = len(stack) - len(before)
            if pickletools.markobject in before:
                kept = marks.pop() - before.index(pickletools.markobject)
            if kept < 0:
                raise ValueError(f"{name} of an empty stack")
            level = max(stack[kept:], default=0) + (name.startswith(("TUPLE", "REDUCE", "NEWOBJ")))
            if level > _MAX_NESTING:
                raise ConversionError(f"it is nested deeper than {_MAX_NESTING} levels, as no state dictionary is.")
            stack[kept:] = [level] * len(operation.stack_after)
