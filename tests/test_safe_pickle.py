"""The reader of plain pickles: what it reads, and that whatever else a pickle holds does nothing."""

import builtins
import collections
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from dataset_scripts.safe_pickle import load_plain_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = [
    {"ref_id": 7, "split": "testA", "sent_ids": [1, 2], "sentences": [{"sent": "café", "tokens": ["café"]}]},
    {"ann_id": "8756_2", "none": None, "flags": (True, False), "far": -(2**70), "half": 0.5, 3: [], "empty": ()},
    [0, 255, 256, 65536, -1, 2**31, "", "x" * 300, [[[]]], {}, ("one",), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
]


def load(tmp_path, data: bytes):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(data)
    return load_plain_pickle(path)


def refused(tmp_path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, data)
    assert "refs(unc).p" in str(error.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_of_every_protocol(tmp_path, protocol):
    value = [*PLAIN, *([b"\x00\xff", b"long" * 100] if protocol >= 3 else [])]
    assert load(tmp_path, pickle.dumps(value, protocol)) == value
    assert str(load(tmp_path, b"]" * 31 + b"a" * 30 + b".")) == "[" * 31 + "]" * 31


@pytest.mark.parametrize(
    "data",
    [
        # as Python 2 wrote [{"sent": "caf\xe9", "raw": u"caf\xe9", "n": 12L, "yes": True}], in its protocols 0, 1 and 2
        b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsS'raw'\np4\nVcaf\xe9\np5\nsS'n'\np6\nL12L\nsS'yes'\np7\nI01\nsa.",
        b"]q\x00}q\x01(U\x04sentq\x02U\x04caf\xe9q\x03U\x03rawq\x04X\x05\x00\x00\x00caf\xc3\xa9q\x05U\x01nq\x06L12L\n"
        b"U\x03yesq\x07I01\nua.",
        b"\x80\x02]q\x00}q\x01(U\x04sentq\x02T\x04\x00\x00\x00caf\xe9q\x03U\x03rawq\x04X\x05\x00\x00\x00caf\xc3\xa9"
        b"q\x05U\x01nq\x06\x8a\x01\x0cU\x03yesq\x07\x88ua.",
    ],
    ids=["protocol 0", "protocol 1", "protocol 2"],
)
def test_pickles_of_python_2(tmp_path, data):
    assert load(tmp_path, data) == [{"sent": "café", "raw": "café", "n": 12, "yes": True}]


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Plain:
    """An object of this class is pickled by its state alone."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_code_is_run(tmp_path, protocol):
    marker = tmp_path / "marker"
    attacks = {
        r"(posix|nt)\.system": Reduced(os.system, f"touch {marker}"),
        r"(builtins|__builtin__)\.eval": Reduced(eval, f"open({str(marker)!r}, 'w')"),
        r"(builtins|__builtin__)\.open|_?io\.open": Reduced(builtins.open, str(marker), "w"),
        r"collections\.OrderedDict": collections.OrderedDict(a=1),
        r"numpy.*\.scalar": np.int64(3),
        r"numpy.*_reconstruct|numpy.*_frombuffer": np.zeros(3),
        r"(tests\.)?test_safe_pickle\.Plain": Plain(),
    }
    for name, attack in attacks.items():
        data = pickle.dumps([{"ref_id": attack}], protocol)
        refused(tmp_path, data, f"refs\\(unc\\)\\.p is not read: it asks for (copyreg|copy_reg|{name})")
    assert not marker.exists()


LAUGHS = b"]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(12)) + b"."
DEEP_KEYS = b")q\x00" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60)) + b"}h%cK\x01s." % 60
ASKED_FOR = [
    (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
    (b"(S'true'\nios\nsystem\n.", "os.system"),
    (b"(cos\nsystem\nS'true'\no.", "os.system"),
    (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    (b"]]R.", "the instruction REDUCE"),
    (b"(]]o.", "the instruction OBJ"),
    (b"]}b.", "the instruction BUILD"),
    (b"])\x81.", "the instruction NEWOBJ"),
    (b"Pname\n.", "the instruction PERSID"),
    (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
    (pickle.dumps({1, 2}, 4), "the instruction EMPTY_SET"),
    (pickle.dumps({1, 2}, 2), r"__builtin__\.set"),
    (pickle.dumps(bytearray(b"a"), 5), "the instruction BYTEARRAY8"),
    (pickle.dumps({(1, 2): 3}), "a dictionary's key"),
    (DEEP_KEYS, "a dictionary's key"),  # its hash would take 2**60 steps
    (LAUGHS, "more containers than its"),
    (b"]q\x00h\x00a.", "more containers than its 7 bytes can hold"),  # it holds itself
    (b"]q\x00" + b"N0" * 40 + b"h\x00a.", "containers nested deeper than 32 levels"),
    (b"]" * 20_000 + b"a" * 19_999 + b".", "containers nested deeper than 32 levels"),
    (b"I" + b"9" * 50 + b"\n.", "a whole number of more than 128 bits"),
]


@pytest.mark.parametrize(("data", "wanted"), ASKED_FOR)
def test_what_is_not_plain_is_refused_by_name(tmp_path, data, wanted):
    refused(tmp_path, data, f"it asks for {wanted}")


NO_PICKLES = [
    *(b"", b".", b"[1]", b"g0\n.", b"a.", b"}]]s.", b"]}a]s.", b"\x80\x09].", b"L" + b"9" * 10**6 + b"L\n."),
    *(b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"\x1f\x8b\x08\x00" + b"\x00" * 40),
]


@pytest.mark.parametrize("data", NO_PICKLES, ids=lambda data: str(data[:10]))
def test_what_is_no_pickle_is_said_to_be_none(tmp_path, data):
    refused(tmp_path, data, "is no pickle, or was cut off|is not read")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cut_off_anywhere_is_refused(tmp_path, protocol):
    data = pickle.dumps(PLAIN[:2], protocol)
    for length in range(len(data)):
        refused(tmp_path, data[:length], "is no pickle, or was cut off|is not read")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]r\xff\xff\xff\xff.",  # a place in the memo far up, 64 GiB in the reader in C
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"].",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
        b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"abc.",
        b"p99999999999\n.",
    ],
)
def test_memory_goes_with_the_file_not_with_what_it_says(tmp_path, data):
    tracemalloc.start()
    try:
        load(tmp_path, data)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


def test_a_missing_file_and_a_huge_one_are_named(tmp_path):
    path = tmp_path / "refs(unc).p"
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p: No such file"):
        load_plain_pickle(path)
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(ValueError, match="1,073,741,824 bytes"):
        load_plain_pickle(path)
