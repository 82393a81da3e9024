"""Grounds the records of a data set: blocks of them in, one row a phrase out.

Reading, decoding and resizing go on in threads while the model works. An image is encoded once for all its phrases. A
block is grounded by one process and batches never reach beyond it, so that the rows do not depend on the number of
processes; other devices, batch sizes or numbers of CPU threads change them by rounding.
"""

import argparse
import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from modeling_albef_amc.families.auto import AutoGrounder, hub_options
from modeling_albef_amc.families.family import Explain
from modeling_albef_amc.families.processors import cleans_text
from modeling_albef_amc.gradcam import gradcam
from modeling_albef_amc.pipeline import GroundedImage, Phrase, PhraseGrounder, Tokens, as_record

from .benchmarks import Protocol
from .blocks import Blocks, FileBlocks, Record
from .data_collator import record_name
from .regions import Region
from .scoring import score_answer

# Entries of a configuration that change when a checkpoint is moved or saved again.
UNSTABLE_ENTRIES = "_name_or_path", "transformers_version"


def batch_heatmaps(model: PreTrainedModel, explain: Explain, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(num_phrases, rows, columns): the heatmaps of a batch of `GroundingCollator`. No parameter gets a gradient."""
    with torch.no_grad():
        return gradcam(
            explain(model, batch["pixel_values"], batch["input_ids"], batch["attention_mask"], batch["image_index"])
        )


@dataclass
class ImageRecords:
    """The records of one image on their way to their rows.

    - `errors`: why each record cannot be used, or None. `regions`: what `boxes_of` gives of each that can.
    - `image`: with the usable records as its phrases; None where it cannot be read.
    """

    records: list[Record]
    errors: list[str | None]
    regions: list[tuple[np.ndarray, np.ndarray] | None]
    image: GroundedImage | None = None

    @property
    def usable(self) -> list[int]:
        return [number for number, error in enumerate(self.errors) if error is None]


@dataclass
class RecordGrounder:
    """An engine, and how it is asked about the records of a data set.

    Args:
        protocol: which answers are scored, and how.
        options: of `PhraseGrounder.explain_phrases`.
        batch_size: phrases a pass.
        num_workers: threads that read batches ahead, and as many that work out points, boxes and hits; 0 for none.
        heatmaps: "float16" or "float32", to keep them; None not to.
        strict: stop at a record that cannot be used, instead of writing down why.
        box_format: of `regions.BOX_FORMATS`, what the records' boxes are.
    """

    grounder: PhraseGrounder
    protocol: Protocol
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    num_workers: int = 2
    heatmaps: str | None = None
    strict: bool = False
    box_format: str = "xyxy"

    def ground(
        self, blocks: Blocks | FileBlocks, numbers: list[int], description: str | None = None
    ) -> Iterator[tuple[int, list[Record]]]:
        """Batch by batch, in order: the number of its block, and the rows of its phrases, see `record_schema`.

        Args:
            numbers: of the blocks that are grounded. description: what the progress bar says; none for no bar.

        Raises:
            ValueError: a record cannot be used, and the grounder is strict.
        """
        batches = numbered_batches(blocks, numbers, self.batch_size)
        read = ahead(lambda item: (item[0], self.read(item[1])), batches, self.num_workers)
        # The model alone is asked in this thread.
        explained = ((number, self.explain(images)) for number, images in read)
        answered = ahead(lambda item: (item[0], self.rows(item[1])), explained, self.num_workers)
        total, is_silent = blocks.num_rows(numbers), description is None
        with tqdm(total=total, desc=description, unit=" pairs", disable=is_silent, smoothing=0.1) as bar:
            for number, rows in answered:
                yield number, rows
                bar.update(len(rows))

    def read(self, groups: list[list[Record]]) -> list[ImageRecords]:
        """Reads images, and checks and tokenizes their records; each group is the records of one image."""
        images = [self._read_image(records) for records in groups]
        usable = [(found, number) for found in images for number in found.usable]
        tokens = self._tokenize([self.question(found.records[number]) for found, number in usable])
        of_images: dict[int, list[Tokens]] = defaultdict(list)
        for (found, number), answer in zip(usable, tokens, strict=True):
            if isinstance(answer, str):
                found.errors[number] = answer
            else:
                of_images[id(found)].append(answer)
        for found in images:
            if found.usable:
                found.image.tokens = Tokens.join(of_images[id(found)])
        return images

    def _read_image(self, records: list[Record]) -> ImageRecords:
        found = ImageRecords(records, [None] * len(records), [None] * len(records))
        try:
            image, pixel_values = self.grounder.read(records[0]["image"])
        except (ValueError, OSError) as error:
            found.errors = [str(error)] * len(records)
            return found
        found.image = GroundedImage(pixel_values, (image.height, image.width), None)
        for number, record in enumerate(records):
            try:
                as_record(record["image"], [record["phrase"], self.question(record)])
                found.regions[number] = self._regions(record, found.image.size)
            except ValueError as error:
                found.errors[number] = str(error)
        return found

    def question(self, record: Record) -> Phrase:
        """What the engine is asked.

        Raises:
            ValueError: the record has no caption that it is to be asked in.
        """
        if not self.protocol.in_caption:
            return record["phrase"]
        if not isinstance(record.get("caption"), str):
            raise ValueError("it has no caption to ground its phrase in")
        if not record.get("caption_span"):
            raise ValueError("it has no caption_span, which says where in its caption the phrase is")
        return {name: record[name] for name in ("caption", "caption_span")}

    def _regions(self, record: Record, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        if not self.protocol.metrics:
            return np.zeros((0, 4)), np.zeros((0, 4))
        boxes, proposals = boxes_of(record, size, self.box_format)
        if record.get("absent") and len(boxes):
            raise ValueError("it is absent and has a region; drop one of them")
        if self.protocol.one_box and len(boxes) > 1:
            raise ValueError(f"it has {len(boxes)} boxes; {self.protocol.name} has one a phrase")
        return boxes, proposals

    def _tokenize(self, phrases: list[Phrase]) -> list[Tokens | str]:
        """Each phrase by itself, or why it cannot be read. One call for all takes a tenth of the time."""
        try:
            tokens = self.grounder.tokenize(phrases) if phrases else None
        except ValueError as error:
            return [str(error)] if len(phrases) == 1 else [self._tokenize([phrase])[0] for phrase in phrases]
        return [tokens[row : row + 1] for row in range(len(phrases))]

    @torch.no_grad()
    def explain(self, images: list[ImageRecords]) -> list[ImageRecords]:
        """The same, with the scores and heatmaps of their usable phrases."""
        readable = [found.image for found in images if found.image is not None]
        self.grounder.explain_phrases(readable, phrase_batch_size=self.batch_size, **self.options)
        return images

    def rows(self, images: list[ImageRecords]) -> list[Record]:
        """One row a record, in their order."""
        rows = []
        for found in images:
            phrases = count()  # the usable ones alone are asked
            for number, error in enumerate(found.errors):
                rows.append(self._row(found, number, error, next(phrases) if error is None else None))
        return rows

    def _row(self, found: ImageRecords, number: int, error: str | None, phrase: int | None) -> Record:
        record = found.records[number]
        row = {
            "image_id": None if record.get("image_id") is None else str(record["image_id"]),
            "phrase": record["phrase"] if isinstance(record["phrase"], str) else None,
            "categories": record.get("categories") or [],
            "absent": bool(record.get("absent")),
            "error": error,
        }
        if error is not None:
            if self.strict:
                raise ValueError(f"{record_name(record)}: {error}")
            return row
        answer = self.grounder.answer(found.image, phrase)
        row |= {"score": answer["score"], "point": list(answer["point"]), "box": list(answer["box"])}
        row |= score_answer(answer, *found.regions[number], self.protocol.metrics)
        if self.heatmaps is not None:
            row["heatmap"] = list(found.image.heatmaps[phrase].numpy().astype(self.heatmaps))
        return row

    def pictured(self, records: list[Record]) -> tuple[list[Record], torch.Tensor]:
        """Usable records for a picture: their boxes those that they are scored by; and heatmaps (num_records, …)."""
        images = self.explain(self.read([[record] for record in records]))
        records = [{**found.records[0], "boxes": found.regions[0][0].tolist()} for found in images]
        return records, torch.stack([found.image.heatmaps[0] for found in images])


def load_grounder(
    path: str,
    args: argparse.Namespace,
    protocol: Protocol,
    accelerator: Accelerator,
    engine: type[AutoGrounder] = AutoGrounder,
) -> tuple[RecordGrounder, dict[str, Any]]:
    """A checkpoint of any known family, asked as the protocol and the options of a run say.

    Returns: the grounder, and what its rows depend on, apart from the data; for JSON.

    Raises:
        ValueError: the family is unknown, or cannot be explained so.
    """
    loading = {"attn_implementation": args.attn_implementation, "device": accelerator.device}
    loading |= {"image_size": protocol.image_size} | hub_options(vars(args))
    grounder = engine.from_pretrained(path, **loading)
    grounder.method_functions(args.method)  # says if there is none
    grounder.autocast = accelerator.autocast
    grounder.model, processor = accelerator.prepare_model(grounder.model, evaluation_mode=True), grounder.processor
    max_words = None
    if cleans_text(processor):  # no other family counts words
        max_words = processor.max_words = protocol.max_words or processor.max_words
    protocol = replace(protocol, image_size=processor.image_processor.size["height"], max_words=max_words)
    options = {name: getattr(args, name) for name in ("method", "explanation", "grounding_layer")}
    reading = {"heatmaps": args.save_heatmaps, "strict": args.strict, "box_format": args.box_format}
    settings = {
        **model_settings(grounder.model, processor),
        "protocol": protocol.spelled_out(),
        "heatmaps": args.save_heatmaps,
        "bf16": args.bf16,
        "box_format": args.box_format,
        **options,
    }
    return RecordGrounder(grounder, protocol, options, args.batch_size, args.num_workers, **reading), settings


def make_accelerator(cpu: bool = False, bf16: bool = False) -> Accelerator:
    # One process may have to wait for another far longer than the ten minutes that are usual.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[patience])


def progress_title(name: str, accelerator: Accelerator) -> str | None:
    """What the progress bar of this process says; None for no bar."""
    several = f" (process 1 of {accelerator.num_processes})" if accelerator.num_processes > 1 else ""
    return f"{name}{several}" if accelerator.is_main_process else None


def model_settings(model: PreTrainedModel, processor: ProcessorMixin) -> dict[str, str]:
    """Hashes of the weights and of the processor, whatever they are called and wherever they are."""
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in UNSTABLE_ENTRIES}
    weights.update(json.dumps(config, sort_keys=True, default=str).encode())
    prepared = hashlib.blake2b(digest_size=16)
    prepared.update(processor.image_processor.to_json_string().encode())
    prepared.update(processor.tokenizer.backend_tokenizer.to_str().encode())
    return {"model": weights.hexdigest(), "processor": prepared.hexdigest()}


def boxes_of(record: Record, size: tuple[int, int], box_format: str = "xyxy") -> tuple[np.ndarray, np.ndarray]:
    """True boxes (num_boxes, 4) of a record, and a detector's proposals (num_proposals, 4), xyxy in pixels.

    Args:
        size: height and width of the image in pixels. box_format: of BOX_FORMATS, what the record's boxes are.

    Raises:
        ValueError: one of them cannot be used.
    """
    # Masks and polygons count where there are no boxes only: decoding masks takes time.
    region = Region.from_record({"boxes": record["boxes"]} if record.get("boxes") else record, *size, box_format)
    proposals = np.array(record.get("proposals") or [], dtype=np.float64).reshape(-1, 4)
    if not (np.isfinite(proposals).all() and (proposals[:, :2] < proposals[:, 2:]).all()):
        raise ValueError("a proposal is not [x1, y1, x2, y2] with x1 < x2 and y1 < y2; drop it")
    return np.zeros((0, 4)) if region is None else region.boxes, proposals


def numbered_batches(
    blocks: Blocks | FileBlocks, numbers: Iterable[int], batch_size: int
) -> Iterator[tuple[int, list[list[Record]]]]:
    """Each block's batches with its number; the first one is empty, so that a block without phrases has one as well."""
    for number in numbers:
        yield number, []
        for batch in batches_of(blocks[number], batch_size):
            yield number, batch


def batches_of(groups: Iterable[list[Record]], batch_size: int) -> Iterator[list[list[Record]]]:
    """Packs whole images into batches of at most `batch_size` phrases, in order; a larger image is one by itself."""
    batch: list[list[Record]] = []
    for records in groups:
        if batch and sum(map(len, batch)) + len(records) > batch_size:
            yield batch
            batch = []
        batch.append(records)
    if batch:
        yield batch


def ahead(function: Callable, items: Iterable, num_threads: int) -> Iterator:
    """`map(function, items)`, worked out by threads for as many items ahead as there are threads."""
    if num_threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
