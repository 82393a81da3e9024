"""Files made to hurt: they lead out of folders, unfold to more than memory, hang, or start programs."""

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

import dataset_scripts.builder
import modeling_albef_amc.images
from dataset_scripts.albef_json import AlbefJson
from dataset_scripts.build import builder_class
from dataset_scripts.builder import Unusable
from dataset_scripts.coco import Coco
from dataset_scripts.features import encode_png
from dataset_scripts.segmentations import segmentation_to_mask
from dataset_scripts.visual_genome import read_ids
from modeling_albef_amc import AlbefModel, AutoGrounder
from modeling_albef_amc.images import open_image
from modeling_albef_amc.tools.albef_checkpoint_files import load_folder, load_original
from modeling_albef_amc.tools.albef_checkpoint_layout import ConversionError
from tests.fuzz.run import TARGETS
from tests.helpers.builders import AN_IMAGE, MISSING, TREES, read_all, write
from tests.helpers.data import tiny_albef, tiny_processor
from trainer.arguments import ModelArguments, parse_arguments
from trainer.lora import add_adapters, load_checkpoint
from trainer.record_store import RecordStore, record_schema

DEEP = "[" * 10**6
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def never_hangs():
    """Whatever waits for a pipe is woken by an error, be the machine as busy as it may."""

    def give_up(*_: object) -> None:
        raise AssertionError("more than ten minutes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Places that are no file ----------------------------------------------------------------------------------------------


PLACES: dict[str, Callable[[Path], None]] = {
    "link to itself": lambda place: place.symlink_to(place.name),
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", PLACES)
def test_training_and_the_pipeline_wait_for_no_pipe(kind, tmp_path):
    place = tmp_path / "a.png"
    PLACES[kind](place)
    for source in str(place), {"bytes": None, "path": str(place)}:
        with pytest.raises((ValueError, FileNotFoundError), match=r"there is no (file|image).*a\.png"):
            open_image(source)


# Images ---------------------------------------------------------------------------------------------------------------


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file that says it is of this size, and has no more than a row of it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 122), (277, 1), (278, height), (279, 10)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4) + bytes(10)


def gif(width: int, height: int) -> bytes:
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0" + size + b"\0\x02\x02D\x01\0;"


def text_bomb() -> bytes:
    swollen = zlib.compress(bytes(2**28), 9)
    return png(8, 6, (b"zTXt", b"Comment\0\0" + swollen))


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 3,600 megapixels": lambda: png(60_000, 60_000),
    "PNG of 75 megapixels": lambda: png(10_000, 7_500),
    "PNG with a text of 256 megabytes": text_bomb,
    "TIFF of 3,600 megapixels": lambda: tiff(60_000, 60_000),
    "TIFF of 170 megapixels": lambda: tiff(8, 21_000_000),
    "GIF of 4,295 megapixels": lambda: gif(65_535, 65_535),
}
MEASURE = """
import resource, sys
from pathlib import Path
from tests.test_hostile_files import reads
folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(folder.glob("bomb-*")):
    for answer in reads(path):
        print(path.name, answer)
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def reads(path: Path) -> list[str]:
    """What training, the pipeline and a builder say to a file."""
    answers = []
    for read in (lambda: open_image({"bytes": path.read_bytes(), "path": None}), lambda: open_image(str(path))):
        try:
            answers.append(f"opened as {read()}")
        except ValueError as error:
            answers.append(f"ValueError {error}")
    builder = AlbefJson(cache_dir=str(path.parent / "cache"), data_dir=str(path.parent), images_dir=str(path.parent))
    try:
        answers.append(f"stored {builder.load_image(path.name)}")
    except Unusable as reason:
        answers.append(f"Unusable {reason}")
    return answers


def test_images_that_unfold_beyond_memory(tmp_path):
    for number, make in enumerate(BOMBS.values()):
        (tmp_path / f"bomb-{number}").write_bytes(make())
        assert (tmp_path / f"bomb-{number}").stat().st_size < 2**19
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    *lines, memory = done.stdout.splitlines()
    assert len(lines) == 3 * len(BOMBS)
    for line in lines:
        assert "ValueError" in line or "Unusable images: " in line, line
        assert "bomb-" in line
    assert int(memory.split()[1]) < 150, memory


def test_no_image_starts_a_program(tmp_path, monkeypatch):
    """Of EPS files Pillow lets Ghostscript make images."""
    program, marker = tmp_path / "bin" / "gs", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "EPS")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    bytes_say, path_says, built_says = reads(tmp_path / "a.png")
    assert "ValueError" in bytes_say and "ValueError" in path_says
    assert built_says == "Unusable images: cannot be decoded"
    assert not marker.exists()


def test_the_kinds_of_images_are_written_alike():
    """The builders import nothing of the model's side, so that the list stands there twice."""
    assert dataset_scripts.builder.IMAGE_FORMATS == modeling_albef_amc.images.FORMATS
    assert dataset_scripts.builder.MAX_PIXELS == modeling_albef_amc.images.MAX_PIXELS
    assert dataset_scripts.builder.UNREADABLE == modeling_albef_amc.images.UNREADABLE


# Annotations ----------------------------------------------------------------------------------------------------------

# Of the builders whose annotations name files of images: the annotations.
NAMING = {"coco": "instances.json", "refcoco": "instances.json", "albef_json": "train.json"}
OUTSIDE = (
    "images: their name leads out of the folder of the images: name them as they are there (albef_json: --image_prefix)"
)
LINK_OUT = "images: links that lead out of the folder of the images: copy what they link to (cp -rL)"


def tree(name: str, folder: Path):
    """A builder and its tree, a secret image beside its images, and the place of an image."""
    options = TREES[name](folder / "data")
    secret = write(folder / "data" / "secret.png", encode_png(np.full((6, 8, 3), 77, np.uint8))["bytes"])
    builder = builder_class(name)(cache_dir=str(folder / "cache"), **options)
    return builder, secret, Path(options["images_dir"]) / AN_IMAGE[name]


def stored(builder) -> list[bytes]:
    """The images of all rows."""
    return [row["image"]["bytes"] for rows in read_all(builder)[0].values() for row in rows]


LEADING_OUT = ["../secret.png", "absolute", "../../../../../../etc/passwd", "a/../../secret.png"]
NO_NAMES = ["a" * 300, "a/" * 10**6, "\0", "\ud800", "images\0.png", "."]


@pytest.mark.parametrize("name", NAMING)
@pytest.mark.parametrize("image", LEADING_OUT + NO_NAMES)
def test_names_that_lead_out_of_the_folder_or_that_no_file_has(name, image, tmp_path):
    """As what an image of the annotations is called."""
    builder, secret, _ = tree(name, tmp_path)
    path = tmp_path / "data" / NAMING[name]
    called = str(secret) if image == "absolute" else image
    path.write_text(path.read_text().replace(json.dumps(AN_IMAGE[name]), json.dumps(called)))
    assert secret.read_bytes() not in stored(builder)
    if image in LEADING_OUT:
        assert builder.report.dropped[OUTSIDE] == 1
    assert sum(count for reason, count in builder.report.dropped.items() if reason.startswith("images: ")) >= 1
    assert str(builder.report).encode()


@pytest.mark.parametrize("kind", [*PLACES, "link out", "ring of links", "device"])
@pytest.mark.parametrize("name", AN_IMAGE)
def test_what_is_no_file_is_not_opened(name, kind, tmp_path):
    builder, secret, place = tree(name, tmp_path)
    place.unlink()
    if kind in PLACES:
        PLACES[kind](place)
    else:
        place.symlink_to({"link out": secret, "device": "/dev/zero", "ring of links": "other"}[kind])
        (place.parent / "other").symlink_to(place.name)
    assert secret.read_bytes() not in stored(builder)
    reason = LINK_OUT if kind in ("link out", "device") else MISSING
    assert builder.report.dropped[reason] >= 1


@pytest.mark.parametrize(
    ("segmentation", "size", "message"),
    [
        ([[0, 0, 60_000, 60_000] * 500], (60_000, 1000), "longer outline than any"),
        ([[0, 0, 4000, 4000] * 100] * 50, (4000, 4000), "longer outline than any"),
        ({"size": [480, 640], "counts": "o" * 10**6}, (480, 640), "cannot be read"),
        ({"size": [480, 640], "counts": "o" * 12 + "0"}, (480, 640), r"cannot be read|add up"),
        ({"size": [480, 640], "counts": [10**4000, 1]}, (480, 640), "add up"),
        ([[0, 0, 1, 0, 1, 1]], (2**20, 2**20), "more pixels than any"),
    ],
)
def test_outlines_and_run_lengths_that_hurt(segmentation, size, message):
    reasons = []
    segmentation_to_mask(segmentation, *size, reasons.append)
    assert re.search(message, reasons[0])


def test_many_masks_of_a_large_image_take_the_memory_of_one(tmp_path):
    """Without images nothing says that an annotation file's sizes are true."""
    side = 2048
    whole = {"size": [side, side], "counts": [0, side * side]}
    found = {"image_id": 1, "category_id": 3, "bbox": [0, 0, side, side], "segmentation": [whole] * 4}
    listed = {
        "images": [{"id": 1, "file_name": "a", "width": side, "height": side}],
        "annotations": [{**found, "id": number} for number in range(8)],
        "categories": [{"id": 3, "name": "a"}],
    }
    write(tmp_path / "instances.json", listed)
    builder = Coco(cache_dir=str(tmp_path / "cache"), data_dir=str(tmp_path), split="train")
    tracemalloc.start()
    try:
        ((row,),) = read_all(builder)[0].values()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(row["masks"]) == 8
    assert peak < 8 * side * side  # of 32 masks of a byte a pixel


def test_lists_of_a_million_images(tmp_path):
    builder, *_ = tree("flickr30k_entities", tmp_path)
    for text, message in ((range(10, 300_000), "299999 occurs twice"), (["9" * 5000], "'9+ is not the number of an")):
        write(tmp_path / "data" / "train.txt", "\n".join([*map(str, text), str(text[-1])]))
        with pytest.raises(ValueError, match=rf"train\.txt: {message}"):
            builder.split_names()


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 10**5, '{"annotations": ' + DEEP, '[{"id": 1, "regions": ' + DEEP])
@pytest.mark.parametrize("target", [name for name in TARGETS if name.endswith(".json")])
def test_annotations_nested_a_million_times(target, text, tmp_path):
    """Each says so in a ValueError that names the file, or drops the record: what fuzz targets let pass."""
    TARGETS[target](tmp_path)[0](text.encode())


def test_lists_of_ids_nested_a_million_times(tmp_path):
    for text in (DEEP, '{"images": ' + DEEP):
        with pytest.raises(ValueError, match=r"ids\.json: record 0 is nested too deep"):
            read_ids(write(tmp_path / "ids.json", text))


# Text files -----------------------------------------------------------------------------------------------------------


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("freeze: " + "[" * 600, "not YAML: .*recursion"),
        (LAUGHS, "unknown setting"),
        ("x: &x [y, y]\nlora_rank: [" + "*x, " * 100 + "*x]", "unknown setting 'x'"),
        ("freeze: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("max_train_examples: " + "9" * 5000, "not YAML: .*digits"),
    ],
    ids=["nested", "laughs", "references", "code", "digits"],
)
def test_settings_that_hurt(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        parse_arguments(ModelArguments, arguments=[str(path)])
    assert "run.yaml" in str(error.value) and len(str(error.value)) < 1000


def test_damaged_settings_of_records(tmp_path):
    store = RecordStore(tmp_path, "test", 1, record_schema(()))
    for text in (DEEP, "[]", "{", '"x"'):
        (tmp_path / "test.json").write_text(text)
        with pytest.raises(ValueError, match=r"test\.json is damaged"):
            store.prepare({"a": 1})


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    model = tiny_albef()
    model.save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def lying(file: Path, kind: str) -> None:
    """Makes the header of a safetensors file lie."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    first, second = [name for name in header if header[name].get("dtype") == "F32"][:2]
    changes = {
        "offsets beyond the file": {first: {**header[first], "data_offsets": [0, 2**40]}},
        "overlapping": {second: {**header[second], "data_offsets": header[first]["data_offsets"]}},
        "wrong type": {first: {**header[first], "dtype": "F64"}},
        "unknown type": {first: {**header[first], "dtype": "F1"}},
        "huge shape": {first: {**header[first], "shape": [2**40, 2**40]}},
        "negative": {first: {**header[first], "data_offsets": [-8, 8]}},
    }
    text = json.dumps({**header, **changes.get(kind, {})}).encode()
    if kind == "nested":
        text = DEEP.encode()
    stated = 2**60 if kind == "header of 2^60" else len(text)
    file.write_bytes(
        b"" if kind == "empty" else stated.to_bytes(8, "little") + text + body[: len(body) - 4 * (kind == "cut")]
    )


LIES = ["offsets beyond the file", "overlapping", "wrong type", "unknown type", "huge shape", "negative"]
LIES += ["nested", "header of 2^60", "empty", "cut"]


@pytest.mark.parametrize("kind", LIES)
def test_weights_whose_header_lies(kind, checkpoint):
    file = checkpoint / "model.safetensors"
    lying(file, kind)
    with pytest.raises(ValueError, match=r"model\.safetensors is (missing or )?damaged"):
        AutoGrounder.from_pretrained(str(checkpoint), device="cpu")
    with pytest.raises(ConversionError, match=r"model\.safetensors is (missing or )?damaged"):
        load_folder(checkpoint)
    with pytest.raises((SafetensorError, OSError)):
        AlbefModel.from_pretrained(checkpoint)


@pytest.mark.parametrize("kind", ["offsets beyond the file", "header of 2^60"])
def test_adapters_whose_header_lies(kind, checkpoint, tmp_path):
    pytest.importorskip("peft")
    model = AlbefModel.from_pretrained(checkpoint)
    add_adapters(model, 2)
    model.save_pretrained(tmp_path / "adapters")
    file = tmp_path / "adapters" / "adapter_model.safetensors"
    load_checkpoint(model, tmp_path / "adapters")
    lying(file, kind)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is (missing or )?damaged"):
        load_checkpoint(model, tmp_path / "adapters")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is (missing or )?damaged"):
        AutoGrounder.from_pretrained(str(tmp_path / "adapters"), device="cpu")
    for text in (DEEP, "[]", "{}", '{"base_model_name_or_path": 5}', '{"base_model_name_or_path": null}'):
        (tmp_path / "adapters" / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=r"adapter_config\.json is (missing or )?damaged"):
            AutoGrounder.from_pretrained(str(tmp_path / "adapters"), device="cpu")


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 10**5, "[]", "5", "{", "\ufeff{}"])
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_settings_of_a_checkpoint_that_are_none(name, text, checkpoint):
    (checkpoint / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} is (missing or )?damaged"):
        AutoGrounder.from_pretrained(str(checkpoint), device="cpu")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_config", {"num_hidden_layers": 10**9}, r"num_hidden_layers must lie in 1\.\.1,000"),
        ("vision_config", {"num_attention_heads": 0}, "num_attention_heads must lie in"),
        ("vision_config", {"patch_size": 0}, "patch_size must lie in"),
        ("vision_config", {"image_size": [8, 8, 8]}, "image_size .* must be a side"),
        ("vision_config", {"image_size": 2**40}, "image_size .* must be a side"),
        ("vision_config", {"hidden_act": "none"}, "hidden_act 'none' is none of"),
        ("text_config", {"vocab_size": 2**62}, "vocab_size must lie in"),
        ("text_config", {"pad_token_id": -5}, "pad_token_id -5 is no token"),
        (None, {"queue_size": 2**63 - 1}, "queue_size must lie in"),
        (None, {"projection_dim": "8"}, "projection_dim"),
    ],
)
def test_configurations_of_no_model(part, change, message, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (config[part] if part else config).update(change)
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        AutoGrounder.from_pretrained(str(checkpoint), device="cpu")
    with pytest.raises(ConversionError, match=message):
        load_folder(checkpoint)


@pytest.mark.parametrize(
    "names", [{"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": 5}, {"a": ["x"]}, {}, [], 5]
)
def test_an_index_names_files_of_its_folder_alone(names, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ConversionError, match=r"index\.json is (missing or )?damaged"):
        load_folder(checkpoint)


def test_a_checkpoint_is_no_larger_than_its_file(tmp_path):
    """Views that repeat one number make tensors of any size out of a few bytes."""
    torch.save({"model": {"image_queue": torch.zeros(1, 1).expand(2**20, 2**20)}}, tmp_path / "a.pth")
    with pytest.raises(ConversionError, match=r"image_queue has the shape \(1048576, 1048576\), for which"):
        load_original(tmp_path / "a.pth")
    for odd in (torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), 0.5):
        torch.save({"model": {"temp": odd}}, tmp_path / "a.pth")
        with pytest.raises(ConversionError, match="more than tensors: temp"):
            load_original(tmp_path / "a.pth")
