"""Turns records `{image, image_id, phrase, boxes, polygons, masks, …}` into the batch of the model and the loss."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import DataCollatorForLanguageModeling, ProcessorMixin

from modeling_albef_amc.processing_albef import tokenize_phrases

from .augmentation import GroundingAugmentation
from .phrase_rows import check_same_picture
from .regions import BOX_FORMATS, Region, open_image

# What fills `boxes` after a phrase's last box, and `mlm_labels` where there is no loss: Trainer's own padding value.
PADDING = -100


@dataclass
class Picture:
    """An image (RGB) of a batch, and the hash that stands for it."""

    image: Image.Image
    image_id: int


@dataclass
class Example:
    """A record on its way into a batch."""

    picture: Picture
    phrase: str
    region: Region | None
    is_absent: bool


@dataclass
class GroundingCollator:
    """Collates phrases with their images and regions.

    Rows of one batch with the same `image_id` share one image: it is decoded, augmented and encoded once, with all its
    phrases and regions. Without an `image_id` each row is its own image.

    The image of a record is a PIL image, the undecoded `{"bytes", "path"}` of a datasets `Image()` feature, or a uint8
    array `(height, width, 3)`. For its region see [`Region.from_record`]; of masks, polygons, scribbles and boxes the
    first that is present is the region. A record with none of them is an example without region; one that is `absent`
    has none, and a phrase that fits nothing in its image.

    What is drawn at random depends on `seed`, `epoch` and the records of the batch, and on nothing else: a resumed run
    draws what it would have, on any number of workers.

    Args:
        processor: Called with `images`, then with `text`; its `tokenizer` serves the MLM masking.
        mask_size: Cells a side of the region masks.
        box_choice: "all" takes the union of a phrase's instances as its mask, "random" one instance drawn per phrase
            and batch, as the paper does. `boxes` holds all of them either way.
        mlm_probability: Share of tokens that MLM predicts; 0 leaves `mlm_input_ids` and `mlm_labels` out.
        max_length: Tokens a phrase is cut to; None does not cut.
        augmentation: Changes to image, phrases and regions; None for none.
        seed, epoch: Of the random draws; `AmcTrainer` counts the epochs.
        strict: Raise at a record that cannot be used. Otherwise a phrase of its batch stands in for it, without a
            region, so that batches keep their size; `unusable` says why.
        spare: A record that stands in where no other of the batch can be used.
        box_format: What the records' boxes are, of BOX_FORMATS; the batch's are xyxy in pixels.
    """

    processor: ProcessorMixin
    mask_size: int = 256
    box_choice: Literal["all", "random"] = "all"
    mlm_probability: float = 0.15
    max_length: int | None = 25
    augmentation: GroundingAugmentation | None = None
    seed: int = 0
    epoch: int = 0
    strict: bool = True
    spare: Mapping[str, Any] | None = None
    box_format: str = "xyxy"

    def __post_init__(self) -> None:
        if self.box_format not in BOX_FORMATS:
            raise ValueError(f"box_format must be one of {', '.join(BOX_FORMATS)}, got {self.box_format!r}")
        if self.mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, got {self.mask_size}")
        if self.box_choice not in ("all", "random"):
            raise ValueError(f'box_choice must be "all" or "random", got {self.box_choice!r}')
        if not 0 <= self.mlm_probability <= 1:
            raise ValueError(f"mlm_probability must lie in [0, 1], got {self.mlm_probability}")

    def for_evaluation(self, mlm_probability: float = 0.0) -> "GroundingCollator":
        """The same collator with nothing changed and nothing cut: no augmentation, all boxes, whole phrases; words are
        masked with `mlm_probability`, every time the same."""
        return replace(
            self, box_choice="all", mlm_probability=mlm_probability, max_length=None, augmentation=None, epoch=0
        )

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collates the records of one batch.

        Returns:
            `input_ids`, `attention_mask`: long `(num_phrases, num_tokens)`.
            `pixel_values`: float32 `(num_images, 3, height, width)`, images in the order they first appear.
            `image_index`: long `(num_phrases,)`, the row of `pixel_values` that a phrase belongs to.
            `image_ids`: long `(num_images,)`, a stable 63-bit hash of `image_id`, or of the pixels without one.
            `masks`: float32 `(num_phrases, mask_size, mask_size)` in [0, 1], zeros without region.
            `has_region`, `is_absent`: bool `(num_phrases,)`.
            `boxes`: float32 `(num_phrases, max_boxes, 4)`, xyxy in pixels of the (augmented) image, within it; -100
                after a phrase's last box; `max_boxes` is at least 1.
            `image_sizes`: long `(num_phrases, 2)`, height and width in pixels of the (augmented) image.
            `record_names`: what error messages call each record, a list of `num_phrases` strings.
            `is_placeholder`: bool `(num_phrases,)`, True for another phrase than the record's, which cannot be used.
            `unusable`: name and reason of each of those records, a list of strings.
            `mlm_input_ids`, `mlm_labels`: long `(num_phrases, num_tokens)`, with `mlm_probability` above 0.

        Raises:
            ValueError: A record is unusable; the message names it and says what to do. Without `strict`: all are, and
                there is no spare one. In any case: different pictures have the same `image_id`.
        """
        if len(records) == 0:
            raise ValueError("cannot collate an empty batch")
        names = "\n".join([f"{self.seed} {self.epoch}", *map(record_name, records)])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_hash(names.encode(errors="surrogatepass")))
            return self._collate(records)

    def _collate(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        groups: dict[Any, list[int]] = {}
        for row, record in enumerate(records):
            image_id = record.get("image_id")
            group = groups.setdefault(("row", row) if image_id is None else ("id", str(image_id)), [])
            if group:
                check_same_picture(records[group[0]], record)
            group.append(row)

        examples: list[Example | None] = [None] * len(records)
        unusable: dict[int, str] = {}
        for rows in groups.values():
            group = self._read_image([records[row] for row in rows], unusable, rows)
            for row, example in zip(rows, group, strict=True):
                examples[row] = example
        encoded = self._encode_phrases(records, examples, unusable)
        usable: list[Example] = self._with_placeholders(examples)
        is_placeholder = torch.tensor([row in unusable for row in range(len(records))])
        images = list({id(example.picture): example.picture for example in usable}.values())
        places = {id(picture): place for place, picture in enumerate(images)}
        regions = [None if row in unusable else example.region for row, example in enumerate(usable)]
        if unusable:
            encoded = tokenize_phrases(self.processor, [example.phrase for example in usable], self.max_length)
        # Trainer takes the batch size from the first tensor: a phrase, not an image, is an example.
        batch = {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            # Apart from the phrases: a processor expects as many phrases as images where it gets both.
            "pixel_values": self.processor(images=[each.image for each in images], return_tensors="pt")["pixel_values"],
            "image_index": torch.tensor([places[id(example.picture)] for example in usable]),
            "image_ids": torch.tensor([each.image_id for each in images], dtype=torch.long),
            "masks": torch.from_numpy(np.stack([self._draw(region) for region in regions])),
            "has_region": torch.tensor([region is not None for region in regions]),
            "is_absent": torch.tensor([example.is_absent for example in usable]),
            "boxes": _pad_boxes(regions),
            "image_sizes": torch.tensor([[each.picture.image.height, each.picture.image.width] for each in usable]),
            "record_names": [record_name(record) for record in records],
            "is_placeholder": is_placeholder,
            "unusable": list(unusable.values()),
        }
        if self.mlm_probability > 0:
            batch["mlm_input_ids"], batch["mlm_labels"] = self._mask_tokens(batch["input_ids"])
            batch["mlm_labels"][batch["is_absent"]] = PADDING  # its image does not tell its words
        return batch

    def _read_image(
        self, records: Sequence[Mapping[str, Any]], unusable: dict[int, str], rows: Sequence[int]
    ) -> list["Example | None"]:
        """Reads the records of one image; None for those that cannot be used, whose reasons go into `unusable`.

        Args:
            rows: of the records in their batch.
        """
        examples: list[Example | None] = [None] * len(records)
        try:
            image = read_rgb(records[0].get("image"))
        except ValueError as error:
            for row, record in zip(rows, records, strict=True):
                self._refuse(record, error, unusable, row)
            return examples
        image_id = records[0].get("image_id")
        picture = Picture(image, _hash(image.tobytes() if image_id is None else str(image_id).encode()))
        for number, (row, record) in enumerate(zip(rows, records, strict=True)):
            try:
                examples[number] = _read_example(record, picture, self.box_format)
            except ValueError as error:
                self._refuse(record, error, unusable, row)
        found = [example for example in examples if example is not None]
        if self.augmentation is not None and found:
            # In place: the picture is that of all its examples.
            phrases, regions = [example.phrase for example in found], [example.region for example in found]
            picture.image, phrases, regions = self.augmentation(image, phrases, regions)
            for example, phrase, region in zip(found, phrases, regions, strict=True):
                example.phrase, example.region = phrase, region
        return examples

    def _refuse(self, record: Mapping[str, Any], error: ValueError, unusable: dict[int, str], row: int) -> None:
        """
        Raises:
            ValueError: the collator is strict.
        """
        message = f"{record_name(record)}: {error}"
        if self.strict:
            raise ValueError(message) from error
        unusable[row] = message

    def _encode_phrases(
        self, records: Sequence[Mapping[str, Any]], examples: list["Example | None"], unusable: dict[int, str]
    ) -> Mapping[str, torch.Tensor]:
        """Tokens of the phrases there are. One that cannot be tokenized leaves `examples`; nothing comes back then."""
        phrases = [example.phrase for example in examples if example is not None]
        try:
            return tokenize_phrases(self.processor, phrases, self.max_length) if phrases else {}
        except ValueError:
            # The processor cannot name the record: ask it again, phrase by phrase.
            for row, example in enumerate(examples):
                try:
                    if example is not None:
                        tokenize_phrases(self.processor, [example.phrase], self.max_length)
                except ValueError as error:
                    self._refuse(records[row], error, unusable, row)
                    examples[row] = None
            if not unusable:
                raise
            return {}

    def _with_placeholders(self, examples: list["Example | None"]) -> list["Example"]:
        """The examples, each that is missing replaced by the first one there is, or else by the spare one.

        Raises:
            ValueError: there is none.
        """
        found = next((example for example in examples if example is not None), None)
        if found is None:
            if self.spare is None:
                raise ValueError("no record of the batch can be used, and there is no spare one to go on with")
            (found,) = replace(self, strict=True)._read_image([self.spare], {}, [0])
        return [found if example is None else example for example in examples]

    def _draw(self, region: Region | None) -> np.ndarray:
        if region is None:
            return np.zeros((self.mask_size, self.mask_size), dtype=np.float32)
        instance = None
        if self.box_choice == "random":
            instance = int(torch.randint(region.num_instances, ()).item())
        return region.rasterize(self.mask_size, instance)

    def _mask_tokens(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """BERT's masking (80 % [MASK], 10 % a random token, 10 % unchanged) of any token but [CLS], [SEP] and [PAD]."""
        tokenizer = self.processor.tokenizer
        spared = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
        # Ours rather than the tokenizer's own special tokens mask, which spares [UNK] too.
        special = torch.isin(input_ids, torch.tensor([token for token in spared if token is not None]))
        masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=self.mlm_probability)
        return masker.torch_mask_tokens(input_ids.clone(), special_tokens_mask=special)


def _read_example(record: Mapping[str, Any], picture: Picture, box_format: str) -> Example:
    """
    Raises:
        ValueError: the record cannot be used.
    """
    phrase, is_absent = record.get("phrase"), bool(record.get("absent"))
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError("the phrase is empty or not a string; drop the record")
    region = Region.from_record(record, picture.image.height, picture.image.width, box_format)
    if is_absent and region is not None:
        raise ValueError("it is absent and has a region; drop one of them")
    return Example(picture, phrase, region, is_absent)


def record_name(record: Mapping[str, Any]) -> str:
    """What messages call a record."""
    return f"image {record.get('image_id')!r}, phrase {record.get('phrase')!r}"


def read_rgb(image: Any) -> Image.Image:
    """An RGB picture, upright, from what a record may hold as its image; transparent pixels are laid on white.

    Raises:
        ValueError: it is no picture, or the file is missing or damaged.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(
                f"an image array must be uint8 (height, width, 3) RGB, got {image.dtype} {image.shape}; convert it"
            )
        return Image.fromarray(image)
    image = open_image(image)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f'an image of mode "{image.mode}" has no known range of values; scale it to 8 bits')
    if image.has_transparency_data:
        # On white, as the image processor would lay it; a plain conversion uncovers what the pixels hide.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _hash(content: bytes) -> int:
    """A hash of 63 bits, so that it is a non-negative int64."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def _pad_boxes(regions: Sequence[Region | None]) -> torch.Tensor:
    most = max([1, *(len(region.boxes) for region in regions if region is not None)])
    boxes = torch.full((len(regions), most, 4), float(PADDING))
    for row, region in enumerate(regions):
        if region is not None:
            boxes[row, : len(region.boxes)] = torch.from_numpy(region.boxes)
    return boxes
