"""A tiny grounding task for tests of the trainer: small pictures of one coloured square, their phrases and boxes."""

import struct
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from transformers import BlipProcessor
from transformers.models.blip import BlipImageProcessorPil

from dataset_scripts.features import FEATURES, encode_png, make_row
from modeling_albef_amc import AlbefForPreTraining, AlbefImageProcessorPil, AlbefProcessor, tokenizer_from_texts
from modeling_albef_amc.families.auto import load_model
from tests.helpers.models import tiny_config
from trainer.lora import add_adapters

COLORS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (40, 60, 230), "white": (250, 250, 250)}
SIDES = {"left": 0, "right": 1}
EXIF_ORIENTATION = 0x0112
PHRASES = [f"the {color} square on the {side}" for color in COLORS for side in SIDES]


def odd_exif(orientation: int) -> bytes:
    """Beside the orientation, YCbCrPositioning as text, as some cameras write it: Pillow cannot write that anew."""
    entries = [(EXIF_ORIENTATION, 3, 1, struct.pack("<HH", orientation, 0)), (531, 2, 2, b"1\0\0\0")]
    packed = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


# Cut off, leading behind the end, of no kind that is known.
BROKEN_EXIF = b"Exif\0\0II", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no TIFF header"


def tiny_records(count: int = 8, without_region: tuple[int, ...] = (), phrases_per_image: int = 1) -> list[dict]:
    """Records that differ in picture, size, phrase length and number of boxes; no two have the same phrase below 9.

    Args:
        count: number of records. without_region: rows that get no box.
        phrases_per_image: as many rows in a row share a picture.
    """
    records = []
    for row in range(count):
        number = row // phrases_per_image
        rng = np.random.default_rng(number)
        color, side = list(COLORS)[number % 4], list(SIDES)[number // 4 % 2]
        width, height = 40 + number % 3, 36 + number % 2
        pixels = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
        x, y = 3 + number % 5 + 20 * SIDES[side], 4 + number % 7
        pixels[y : y + 12, x : x + 12] = COLORS[color]
        phrase = ["", "small ", "very small "][row % 3] + f"{color} square on the {side}"
        boxes = [[x, y, x + 12, y + 12]] + [[1, 30, 5, 34]] * (row % 2)
        phrase += " here" * (row % phrases_per_image)
        boxes = [] if row in without_region else boxes
        records.append(make_row(encode_png(pixels), f"scene-{number}", phrase, boxes))
    return records


def tiny_dataset(*args, **kwargs) -> datasets.Dataset:
    """`tiny_records` as `train.py` hands them over: pictures undecoded."""
    dataset = datasets.Dataset.from_list(tiny_records(*args, **kwargs), features=FEATURES)
    return dataset.cast_column("image", datasets.Image(decode=False))


def scattered_boxes(row: dict, index: int) -> dict:
    """For `map`: one box or two all over the picture, in every fifth row the whole of it, and in another one none: any
    point hits some and misses others."""
    x, y = 13 * (index % 3), 12 * (index // 3 % 3)
    boxes = [[x, y, x + 14, y + 12], [2 * index, 20, 2 * index + 6, 34]][: 1 + index % 2]
    return {**row, "boxes": {3: [[0, 0, 40, 36]], 4: []}.get(index % 5, boxes)}


def tiny_processor() -> AlbefProcessor:
    tokenizer = tokenizer_from_texts([*PHRASES, "very small square here"])
    return AlbefProcessor(AlbefImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)


def blip_processor(**options) -> BlipProcessor:
    """For `tiny_blip`, with a tokenizer of the words of `PHRASES`."""
    return BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}, **options), tiny_processor().tokenizer)


def tiny_albef(**overrides) -> AlbefForPreTraining:
    """The tiny model of `tiny_config` with a vocabulary for these phrases."""
    config = tiny_config(**overrides)
    config.text_config.vocab_size = len(tiny_processor().tokenizer)
    return AlbefForPreTraining(config)


def save_with_adapters(model: Path, adapters: Path) -> None:
    """Two checkpoints: `tiny_albef` with its processor, and LoRA adapters of it."""
    tiny_albef().save_pretrained(model)
    adapted = load_model(str(model), training=True)
    add_adapters(adapted, rank=2)
    adapted.save_pretrained(adapters)
    for folder in (model, adapters):
        tiny_processor().save_pretrained(folder)


def write_folder(folder: Path, rows_per_group: int = 100, **splits: list[dict]) -> Path:
    """A folder of Parquet files as `dataset_scripts.build` leaves it."""
    (folder / "data").mkdir(parents=True)
    for split, records in splits.items():
        file = folder / "data" / f"{split}-00000.parquet"
        datasets.Dataset.from_list(records, features=FEATURES).to_parquet(file, batch_size=rows_per_group)
    return folder


def picture(width: int = 40, height: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
