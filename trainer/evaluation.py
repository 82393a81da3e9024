"""Grounds the phrases of a data set: blocks of records in, one row a phrase out, on any number of processes.

Reading, decoding and resizing go on in threads while the model works. An image is encoded once for all its phrases, as
far as they fit into one batch. A block is grounded by one process and batches never reach beyond it, so that the rows
do not depend on the number of processes; other devices, batch sizes or numbers of CPU threads change them by rounding.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from modeling_albef_amc.families.family import Explain
from modeling_albef_amc.families.registry import heatmap_function
from modeling_albef_amc.gradcam import PhraseAttention, choose_tokens, gradcam
from modeling_albef_amc.images import open_image
from modeling_albef_amc.pipeline import max_tokens
from modeling_albef_amc.processing_albef import post_process_grounding, tokenize_captions, tokenize_phrases

from .benchmarks import Protocol
from .blocks import Blocks, FileBlocks
from .data_collator import record_name
from .record_store import RecordStore
from .regions import Region
from .scoring import score_answer

Record = dict[str, Any]


def batch_heatmaps(model: PreTrainedModel, explain: Explain, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(num_phrases, rows, columns): the heatmaps of a batch of `GroundingCollator`. No parameter gets a gradient."""
    with torch.no_grad():
        return gradcam(
            explain(model, batch["pixel_values"], batch["input_ids"], batch["attention_mask"], batch["image_index"])
        )


@dataclass
class Phrase:
    """A record on its way to its row.

    Args:
        record: of the data set.
        image: which of its batch's images it is about.
        size: height and width of the image in pixels; None for an image that cannot be used.
        boxes: (num_boxes, 4), the true boxes, and proposals: (num_proposals, 4), a detector's, xyxy in pixels.
        error: why the record cannot be used; None if it can.
    """

    record: Record
    image: int
    size: tuple[int, int] | None = None
    boxes: np.ndarray | None = None
    proposals: np.ndarray | None = None
    error: str | None = None


@dataclass
class Batch:
    """Phrases, and of those that can be used the inputs of the model.

    Args:
        pixel_values: (num_images, 3, height, width). input_ids, attention_mask: (num_usable, num_tokens).
        image_index: (num_usable,). heatmap_token_mask: (num_usable, num_tokens), of phrases grounded in captions.
    """

    phrases: list[Phrase]
    inputs: dict[str, torch.Tensor] | None = None

    @property
    def usable(self) -> list[Phrase]:
        return [phrase for phrase in self.phrases if phrase.error is None]


@dataclass
class Grounder:
    """A model and how it is asked.

    Args:
        model: in evaluation mode, on the accelerator's device. explain: its family's function.
        processor: of the model. protocol: which answers are scored, and how.
        heatmaps: "float16" or "float32", to keep them; None not to.
        strict: stop at a record that cannot be used, instead of writing down why.
        method: that makes heatmaps of what `explain` gives, see `families.METHODS`.
        box_format: of `regions.BOX_FORMATS`, what the records' boxes are.
    """

    model: PreTrainedModel
    explain: Explain
    processor: ProcessorMixin
    protocol: Protocol
    accelerator: Accelerator
    heatmaps: str | None = None
    strict: bool = False
    method: str = "gradcam"
    box_format: str = "xyxy"

    def read(self, groups: list[list[Record]]) -> Batch:
        """Decodes and prepares images, and checks their records; each group is the records of one image."""
        phrases, images = [], []
        for records in groups:
            image, error = None, None
            try:
                image = open_image(records[0]["image"])
                images.append(self.processor(images=[image], return_tensors="pt")["pixel_values"])
            except (ValueError, FileNotFoundError) as problem:
                error = str(problem)
            size = None if error is not None or image is None else (image.height, image.width)
            phrases += [self._check(Phrase(record, len(images) - 1, size, error=error)) for record in records]
        return Batch(phrases, {"pixel_values": torch.cat(images)} if images else None)

    def _check(self, phrase: Phrase) -> Phrase:
        text = phrase.record["phrase"]
        if phrase.error is None and not (isinstance(text, str) and text.strip()):
            phrase.error = "the phrase is empty or not a string"
        if phrase.error is None and self.protocol.in_caption:
            if not isinstance(phrase.record.get("caption"), str):
                phrase.error = "it has no caption to ground its phrase in"
            elif not phrase.record.get("caption_span"):
                phrase.error = "it has no caption_span, which says where in its caption the phrase is"
        if phrase.error is None and self.protocol.metrics:
            try:
                phrase.boxes, phrase.proposals = boxes_of(phrase.record, phrase.size, self.box_format)
            except ValueError as problem:
                phrase.error = str(problem)
            else:
                if phrase.record.get("absent") and len(phrase.boxes):
                    phrase.error = "it is absent and has a region; drop one of them"
                elif self.protocol.one_box and len(phrase.boxes) > 1:
                    phrase.error = f"it has {len(phrase.boxes)} boxes; {self.protocol.name} has one a phrase"
        return phrase

    def tokenize(self, batch: Batch) -> None:
        """Completes the inputs of a batch. Not for several threads at a time: the tokenizer keeps state in a call."""
        if not batch.usable:
            return
        try:
            encoded = self._encode(batch.usable)
        except ValueError:
            # It does not say which phrase it cannot read: ask again, one by one.
            for phrase in batch.usable:
                try:
                    self._encode([phrase])
                except ValueError as problem:
                    phrase.error = str(problem)
            return self.tokenize(batch)
        most = max_tokens(self.model.config)
        lengths = encoded["attention_mask"].sum(dim=1).tolist()
        for phrase, length in zip(batch.usable, lengths, strict=True):
            if length > most:
                text = "caption" if self.protocol.in_caption else "phrase"
                phrase.error = f"the {text} has {length} word pieces, the model takes {most}"
        if max(lengths) > most:
            return self.tokenize(batch)
        names = "input_ids", "attention_mask", "heatmap_token_mask"
        batch.inputs |= {name: encoded[name] for name in names if name in encoded}
        batch.inputs["image_index"] = torch.tensor([phrase.image for phrase in batch.usable])

    def _encode(self, phrases: list[Phrase]) -> Mapping[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and, where the protocol asks in captions, `heatmap_token_mask`."""
        records = [phrase.record for phrase in phrases]
        if self.protocol.in_caption:
            captions, spans = ([record[name] for record in records] for name in ("caption", "caption_span"))
            return tokenize_captions(self.processor, captions, spans)
        return tokenize_phrases(self.processor, [record["phrase"] for record in records])

    def answer(self, batch: Batch) -> tuple[torch.Tensor, list[float]]:
        """Heatmaps (num_usable, rows, columns) of the batch's usable phrases, and how likely what was asked fits."""
        explained = self.explain_batch(batch)
        if explained is None:
            return torch.zeros(0, 1, 1), []
        return heatmap_function(self.method)(explained).cpu(), explained.probability.tolist()

    def explain_batch(self, batch: Batch) -> PhraseAttention | None:
        """What the model's function gives for the batch's usable phrases; None where there are none."""
        self.tokenize(batch)
        if not batch.usable:
            return None
        inputs = {name: tensor.to(self.accelerator.device) for name, tensor in batch.inputs.items()}
        names = "pixel_values", "input_ids", "attention_mask", "image_index"
        with torch.no_grad(), self.accelerator.autocast():
            explained = self.explain(self.model, *(inputs[name] for name in names))
        return choose_tokens(explained, inputs["heatmap_token_mask"]) if self.protocol.in_caption else explained

    def heatmaps_of(self, records: list[Record]) -> torch.Tensor:
        """(num_records, rows, columns), of records that can be used."""
        asking = replace(self, protocol=replace(self.protocol, metrics=()))  # whatever their regions are
        return asking.answer(asking.read([[record] for record in records]))[0]

    def with_boxes(self, record: Record) -> Record:
        """A usable record, its boxes those that it is scored by, which may come from masks or polygons."""
        (phrase,) = self.read([[record]]).phrases
        return {**record, "boxes": phrase.boxes.tolist()}

    def rows(self, batch: Batch, heatmaps: torch.Tensor, scores: list[float]) -> list[Record]:
        """One row a phrase, see `record_schema`, in the order of the phrases; the others as of `answer`."""
        answers = iter(zip(heatmaps, scores, strict=True))
        return [self._row(phrase, answers) for phrase in batch.phrases]

    def _row(self, phrase: Phrase, answers: Iterator[tuple[torch.Tensor, float]]) -> Record:
        record = phrase.record
        row = {
            "image_id": None if record.get("image_id") is None else str(record["image_id"]),
            "phrase": record["phrase"] if isinstance(record["phrase"], str) else None,
            "categories": record.get("categories") or [],
            "absent": bool(record.get("absent")),
            "error": phrase.error,
        }
        if phrase.error is not None:
            if self.strict:
                raise ValueError(f"{record_name(record)}: {phrase.error}")
            return row
        heatmap, score = next(answers)
        (found,) = post_process_grounding(heatmap[None], phrase.size)
        found["heatmap"] = found["heatmap"].numpy()
        row |= {"score": score, "point": list(found["point"]), "box": list(found["box"])}
        if self.protocol.metrics:
            row |= score_answer(found, phrase.boxes, phrase.proposals, self.protocol.metrics)
        if self.heatmaps is not None:
            row["heatmap"] = list(heatmap.numpy().astype(self.heatmaps))
        return row


def ground(
    grounder: Grounder,
    blocks: Blocks | FileBlocks,
    numbers: list[int],
    store: RecordStore,
    batch_size: int,
    num_workers: int = 0,
    description: str | None = None,
) -> tuple[int, float]:
    """Grounds these blocks and stores their rows; for one process, its own share of the blocks.

    Args:
        batch_size: phrases a pass.
        num_workers: threads that read and prepare batches ahead, and as many that work out points, boxes and hits; 0
            for none.
        description: what the progress bar says; none for no bar.

    Returns: number of phrases, and the seconds they took.

    Raises:
        ValueError: a record cannot be used, and the grounder is strict.
    """
    start, num_phrases = time.perf_counter(), 0
    batches = numbered_batches(blocks, numbers, batch_size)
    read = ahead(lambda item: (item[0], grounder.read(item[1])), batches, num_workers)
    # The model alone is asked in this thread.
    answered = ((number, batch, *grounder.answer(batch)) for number, batch in read)
    done = ahead(lambda item: (item[0], grounder.rows(*item[1:])), answered, num_workers)
    total = blocks.num_rows(numbers)
    with tqdm(total=total, desc=description, unit=" pairs", disable=description is None, smoothing=0.1) as bar:

        def counted(of_block: Iterable[tuple[int, list[Record]]]) -> Iterator[list[Record]]:
            nonlocal num_phrases
            for _, rows in of_block:
                yield rows
                num_phrases += len(rows)
                bar.update(len(rows))

        for number, of_block in groupby(done, key=itemgetter(0)):
            store.write(number, counted(of_block))
    return num_phrases, time.perf_counter() - start


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
    """Packs whole images into batches of at most `batch_size` phrases, in order; only larger images are split."""
    batch: list[list[Record]] = []
    count = 0
    for records in groups:
        for first in range(0, len(records), batch_size):
            part = records[first : first + batch_size]
            if batch and count + len(part) > batch_size:
                yield batch
                batch, count = [], 0
            batch.append(part)
            count += len(part)
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
