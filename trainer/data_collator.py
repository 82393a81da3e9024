"""Turns records `{image, image_id, phrase, boxes, polygons, masks, …}` into the batch of the model and the loss."""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import DataCollatorForLanguageModeling, ProcessorMixin

from modeling_albef_amc.families.processors import check_tokens, tokenize_phrases
from modeling_albef_amc.images import open_image
from modeling_albef_amc.tokenization_albef import is_blank

from .augmentation import GroundingAugmentation
from .phrase_rows import Record, check_same_image, check_size, image_id_of, is_absent, python_value, record_name
from .regions import BOX_FORMATS, Region

# What fills `boxes` after a phrase's last box, and `mlm_labels` where there is no loss: Trainer's own padding value.
PADDING = -100


@dataclass
class SourceImage:
    """An image (RGB) of a batch, and the hash that stands for it."""

    image: Image.Image
    image_id: int


@dataclass
class Example:
    """A record on its way into a batch."""

    source: SourceImage
    phrase: str
    region: Region | None
    is_absent: bool


@dataclass
class GroundingCollator:
    """Collates phrases with their images and regions.

    Rows of one batch with the same `image_id` share one image: it is decoded, augmented and encoded once, with all its
    phrases and regions. Without an `image_id` each row is its own image.

    The image of a record is whatever `open_image` takes: a PIL image, the undecoded `{"bytes", "path"}` of a datasets
    `Image()` feature, an array. For its region see [`Region.from_record`]; of masks, polygons, scribbles and boxes the
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
        strict: Raise at a record that cannot be used. Otherwise a placeholder, another phrase of its batch without a
            region, replaces it, so that batches keep their size; `unusable` says why.
        spare: The placeholder where no record of the batch can be used.
        box_format: What the records' boxes are, of BOX_FORMATS; the batch's are xyxy in pixels.
        max_tokens: Tokens of the longest phrase that the model reads; a longer one that is not cut cannot be used. None
            does not look. `AmcTrainer` sets it for the families it knows.
        num_known_tokens: Of the model; a phrase with others cannot be used. Likewise.
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
    spare: Record | None = None
    box_format: str = "xyxy"
    max_tokens: int | None = None
    num_known_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.box_format not in BOX_FORMATS:
            raise ValueError(f"box_format must be one of {', '.join(BOX_FORMATS)}, got {self.box_format!r}")
        if self.mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, got {self.mask_size}")
        if self.box_choice not in ("all", "random"):
            raise ValueError(f'box_choice must be "all" or "random", got {self.box_choice!r}')
        if not 0 <= self.mlm_probability <= 1:
            raise ValueError(f"mlm_probability must lie in [0, 1], got {self.mlm_probability}")
        if self.mlm_probability > 0 and self.processor.tokenizer.mask_token_id is None:
            name = type(self.processor.tokenizer).__name__
            raise ValueError(f"{name} has no mask token to mask words with: pass mlm_probability=0")

    def changed(self, **fields: Any) -> "GroundingCollator":
        """A copy, of a class of one's own too and with all that it has, in which these fields differ."""
        other = copy.copy(self)
        for name, value in fields.items():
            setattr(other, name, value)
        GroundingCollator.__post_init__(other)
        return other

    def for_evaluation(self, mlm_probability: float = 0.0) -> "GroundingCollator":
        """The same collator with nothing changed and nothing cut: no augmentation, all boxes, whole phrases; words are
        masked with `mlm_probability`, every time the same."""
        return self.changed(
            box_choice="all", mlm_probability=mlm_probability, max_length=None, augmentation=None, epoch=0
        )

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
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
            `is_placeholder`: bool `(num_phrases,)`, True for a record that cannot be used.
            `unusable`: name and reason of each of those records, a list of strings.
            `mlm_input_ids`, `mlm_labels`: long `(num_phrases, num_tokens)`, with `mlm_probability` above 0.

        Raises:
            ValueError: A record is unusable; the message names it and says what to do. Without `strict`: all are, and
                there is no spare one. In any case: different images have the same `image_id`.
        """
        if len(records) == 0:
            raise ValueError("cannot collate an empty batch")
        # Alike for data in NumPy's or torch's format.
        told = [[python_value(record.get(name)) for name in ("image_id", "phrase")] for record in records]
        names = [f"image {image_id!r}, phrase {phrase!r}" for image_id, phrase in told]
        seed = "\n".join([f"{self.seed} {self.epoch}", *names])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_hash(seed.encode(errors="surrogatepass")))
            return self._collate(records)

    def _collate(self, records: Sequence[Record]) -> dict[str, Any]:
        groups: dict[Any, list[int]] = {}
        for row, record in enumerate(records):
            image_id = image_id_of(record)
            group = groups.setdefault(("row", row) if image_id is None else ("id", str(image_id)), [])
            if group:
                check_same_image(records[group[0]], record)
            group.append(row)
        examples: dict[int, Example] = {}
        unusable: dict[int, str] = {}
        for rows in groups.values():
            examples |= self._read_image({row: records[row] for row in rows}, unusable)
        encoded = self._encode_phrases(records, examples, unusable)
        placeholder = self._placeholder(examples) if unusable else None
        regions = [examples[row].region if row in examples else None for row in range(len(records))]
        usable = [examples.get(row, placeholder) for row in range(len(records))]
        if unusable:
            # Cut in any case, for the spare one may be longer than the model reads.
            phrases = [example.phrase for example in usable]
            encoded = tokenize_phrases(self.processor, phrases, self._longest)
        images = list({id(example.source): example.source for example in usable}.values())
        places = {id(source): place for place, source in enumerate(images)}
        # Trainer takes the batch size from the first tensor: a phrase, not an image, is an example.
        batch = {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            # Apart from the phrases: a processor expects as many phrases as images where it gets both.
            "pixel_values": self.processor(images=[each.image for each in images], return_tensors="pt")["pixel_values"],
            "image_index": torch.tensor([places[id(example.source)] for example in usable]),
            "image_ids": torch.tensor([each.image_id for each in images], dtype=torch.long),
            "masks": torch.from_numpy(np.stack([self._draw(region) for region in regions])),
            "has_region": torch.tensor([region is not None for region in regions]),
            "is_absent": torch.tensor([example.is_absent for example in usable]),
            "boxes": _pad_boxes(regions),
            "image_sizes": torch.tensor([[each.source.image.height, each.source.image.width] for each in usable]),
            "record_names": [record_name(record) for record in records],
            "is_placeholder": torch.tensor([row in unusable for row in range(len(records))]),
            "unusable": list(unusable.values()),
        }
        if self.mlm_probability > 0:
            batch["mlm_input_ids"], batch["mlm_labels"] = self._mask_tokens(batch["input_ids"])
            batch["mlm_labels"][batch["is_absent"]] = PADDING  # its image does not tell its words
        return batch

    def _read_image(self, records: dict[int, Record], unusable: dict[int, str]) -> dict[int, Example]:
        """Reads the records of one image, by their rows; the reasons of those that cannot be used go to `unusable`."""
        examples: dict[int, Example] = {}
        first, source = next(iter(records.values())), None
        with self._refusing(records, unusable):
            image, image_id = open_image(first.get("image")), image_id_of(first)
            source = SourceImage(image, _hash(image.tobytes() if image_id is None else str(image_id).encode()))
        if source is None:
            return {}
        for row, record in records.items():
            with self._refusing({row: record}, unusable):
                examples[row] = read_example(record, source, self.box_format)
        found = list(examples.values())
        if self.augmentation is not None and found:
            phrases, regions = [example.phrase for example in found], [example.region for example in found]
            source.image, phrases, regions = self.augmentation(source.image, phrases, regions)
            for example, phrase, region in zip(found, phrases, regions, strict=True):
                example.phrase, example.region = phrase, region
        return examples

    @contextmanager
    def _refusing(self, records: dict[int, Record], unusable: dict[int, str]) -> Iterator[None]:
        """Notes what is wrong with these records in `unusable`; if the collator is strict, that is an error."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            for row, record in records.items():
                message = f"{record_name(record)}: {error}"
                if self.strict:
                    raise ValueError(message) from error
                unusable[row] = message

    def _encode_phrases(
        self, records: Sequence[Record], examples: dict[int, Example], unusable: dict[int, str]
    ) -> Mapping[str, torch.Tensor]:
        """Tokens of the phrases there are. One that cannot be tokenized leaves `examples`; nothing comes back then."""
        phrases = [examples[row].phrase for row in sorted(examples)]
        try:
            return self._tokenize(phrases) if phrases else {}
        except ValueError:
            # The processor cannot name the record: ask it again, phrase by phrase.
            for row in sorted(examples):
                with self._refusing({row: records[row]}, unusable):
                    self._tokenize([examples[row].phrase])
                if row in unusable:
                    del examples[row]
            if not unusable:
                raise
            return {}

    def _tokenize(self, phrases: list[str]) -> Mapping[str, torch.Tensor]:
        encoded = tokenize_phrases(self.processor, phrases, None if self.max_length is None else self._longest)
        num_tokens = encoded["attention_mask"].sum(dim=1).max().item()
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            raise ValueError(f"the phrase has {num_tokens} word pieces, the model takes {self.max_tokens}; shorten it")
        check_tokens(encoded["input_ids"], self.num_known_tokens)
        return encoded

    @property
    def _longest(self) -> int | None:
        """Tokens that a phrase which is cut has at most."""
        return min((length for length in (self.max_length, self.max_tokens) if length is not None), default=None)

    def _placeholder(self, examples: dict[int, Example]) -> Example:
        """The first example there is, or else the spare one."""
        if examples:
            return examples[min(examples)]
        if self.spare is None:
            raise ValueError("no record of the batch can be used, and there is no spare one to go on with")
        return self.changed(strict=True)._read_image({0: self.spare}, {})[0]

    def _draw(self, region: Region | None) -> np.ndarray:
        if region is None:
            return np.zeros((self.mask_size, self.mask_size), dtype=np.float32)
        chosen = int(torch.randint(region.num_instances, ())) if self.box_choice == "random" else None
        return region.rasterize(self.mask_size, chosen)

    def _mask_tokens(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """BERT's masking (80 % [MASK], 10 % a random token, 10 % unchanged) of any token but [CLS], [SEP] and [PAD]."""
        tokenizer = self.processor.tokenizer
        spared = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
        # Ours rather than the tokenizer's own special tokens mask, which spares [UNK] too.
        special = torch.isin(input_ids, torch.tensor([token for token in spared if token is not None]))
        masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=self.mlm_probability)
        masked, labels = masker.torch_mask_tokens(input_ids.clone(), special_tokens_mask=special)
        if self.num_known_tokens is not None:
            check_tokens(torch.tensor(tokenizer.mask_token_id), self.num_known_tokens)
            masked %= self.num_known_tokens  # random ones are of all that the tokenizer has
        return masked, labels


class Counted:
    """A collator whose batches say how many phrases are absent, and how many words of the others are masked.

    A model needs the numbers on the CPU: of a batch that is on a GPU, it would have to wait for them.
    """

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        batch = self.collator(records)
        is_true = ~batch["is_absent"] if "is_absent" in batch else torch.ones(len(batch["input_ids"]), dtype=torch.bool)
        counts = {"num_absent": int((~is_true).sum())}
        if "mlm_labels" in batch:
            counts["num_masked"] = int((batch["mlm_labels"][is_true] != PADDING).sum())
        return {**batch, **counts}

    @property
    def epoch(self) -> int:
        return self.collator.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.collator.epoch = epoch


def read_example(record: Record, source: SourceImage, box_format: str) -> Example:
    """ValueError, FileNotFoundError: it cannot be used."""
    phrase = record.get("phrase")
    if isinstance(phrase, list):
        raise ValueError("it is a row of several phrases; trainer.phrase_rows.PhraseRows(dataset) has a record of each")
    if not isinstance(phrase, str) or is_blank(phrase):
        raise ValueError("the phrase is empty or not a string; drop the record")
    region = Region.from_record(record, source.image.height, source.image.width, box_format)
    if region is not None and not (region.kind == "boxes" and box_format.endswith("_normalized")):
        check_size(record, source.image.size)
    if is_absent(record) and region is not None:
        raise ValueError("it is absent and has a region; drop one of them")
    return Example(source, phrase, region, is_absent(record))


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
