"""Grounds the records of a data set: blocks of them in, one row a phrase out.

Reading, decoding and resizing go on in threads while the model works. An image is encoded once for all its phrases. A
block is grounded by one process and batches never reach beyond it, so that the rows do not depend on the number of
processes; other devices, batch sizes or numbers of CPU threads change them by rounding.
"""

import argparse
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from modeling_albef_amc.families.auto import AutoGrounder, hub_options
from modeling_albef_amc.families.family import Explain
from modeling_albef_amc.families.processors import cleans_text, whole_images
from modeling_albef_amc.families.registry import METHODS, trained_method
from modeling_albef_amc.pipeline import GroundedImage, Phrase, PhraseGrounder, Tokens, as_record

from .benchmarks import Protocol
from .blocks import Blocks, FileBlocks
from .columns import Columns
from .faithfulness import deletion_and_insertion
from .heads import HeadGrounder, set_heads
from .known_formats import rows_of
from .phrase_rows import Record, is_absent, record_name
from .record_store import OF_HEATMAPS
from .regions import Region, read_boxes
from .scoring import heat_inside, score_answer, size_of

NO_BOXES = np.zeros((0, 4))


def batch_heatmaps(model: PreTrainedModel, explain: Explain, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(num_phrases, rows, columns): the heatmaps of a batch of `GroundingCollator`. No parameter gets a gradient."""
    with torch.no_grad():
        names = "pixel_values", "input_ids", "attention_mask", "image_index"
        return METHODS[trained_method(model)](explain(model, *(batch[name] for name in names)))


@dataclass
class Question:
    """A record on its way to its row: what it is scored by, or in `error` why it cannot be used.

    - `boxes` (num_boxes, 4) true ones, `proposals` (num_proposals, 4) a detector's; xyxy in pixels.
    - `number`: of its phrase among those of its image, which are the usable ones.
    """

    record: Record
    error: str | None = None
    is_absent: bool = False
    tokens: Tokens | None = None
    number: int | None = None
    boxes: np.ndarray = field(default_factory=lambda: NO_BOXES)
    proposals: np.ndarray = field(default_factory=lambda: NO_BOXES)

    def __str__(self) -> str:
        return f"{record_name(self.record)}: {self.error}"


@dataclass
class ImageQuestions:
    """The records of one image, and the image with the usable ones as its phrases; None where it cannot be read."""

    questions: list[Question]
    image: GroundedImage | None = None
    faithfulness: Sequence[tuple[float, float]] = ()  # a phrase, see `deletion_and_insertion`

    @property
    def usable(self) -> list[Question]:
        return [question for question in self.questions if question.error is None]


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
        faithfulness: ask of each image again while it is covered and uncovered, see `deletion_and_insertion`.
        box_format: of `regions.BOX_FORMATS`, what the records' boxes are.
    """

    grounder: PhraseGrounder
    protocol: Protocol
    options: dict[str, Any]
    batch_size: int
    num_workers: int
    heatmaps: str | None
    strict: bool
    box_format: str
    faithfulness: bool = False

    def ground(
        self, blocks: Blocks | FileBlocks, numbers: list[int], description: str | None = None
    ) -> Iterator[tuple[int, list[Record]]]:
        """Batch by batch, in order: the number of its block, and the rows of its phrases, see `record_schema`.

        Args:
            numbers: of the blocks that are grounded. description: what the progress bar says; none for no bar.
        """
        # The model alone is asked in this thread.
        read = self.read_blocks(blocks, numbers)
        explained = ((number, self.try_out(self.explain(images))) for number, images in read)
        answered = ahead(lambda item: (item[0], self.rows(item[1])), explained, self.num_workers)
        total, is_shown = blocks.num_rows(numbers), description is not None
        with progress_bar(is_shown, total=total, desc=description, unit=" pairs", smoothing=0.1) as bar:
            for number, rows in answered:
                yield number, rows
                bar.update(len(rows))

    def read_blocks(
        self, blocks: Blocks | FileBlocks, numbers: list[int]
    ) -> Iterator[tuple[int, list[ImageQuestions]]]:
        """Batch by batch, the number of its block, and what `read` gives of it, some ahead."""
        batches = numbered_batches(blocks, numbers, self.batch_size)
        return ahead(lambda item: (item[0], self.read(item[1])), batches, self.num_workers)

    def read(self, groups: list[list[Record]]) -> list[ImageQuestions]:
        """Reads images, and checks and tokenizes their records; each group is the records of one image."""
        images = [self._read_image(records) for records in groups]
        self._tokenize([question for found in images for question in found.usable])
        for found in images:
            for number, question in enumerate(found.usable):
                question.number = number
            if found.usable:
                found.image.tokens = Tokens.join([question.tokens for question in found.usable])
        return images

    def _read_image(self, records: list[Record]) -> ImageQuestions:
        try:
            image, pixel_values = self.grounder.read(records[0]["image"])
        except (ValueError, OSError) as error:
            return ImageQuestions([Question(record, str(error)) for record in records])
        size = image.height, image.width
        return ImageQuestions([self._question(each, size) for each in records], GroundedImage(pixel_values, size, None))

    def _question(self, record: Record, size: tuple[int, int]) -> Question:
        question = Question(record)
        try:
            question.is_absent = is_absent(record)
            as_record(record["image"], [record["phrase"], self._phrase(record)])
            if self.protocol.metrics:
                question.boxes, question.proposals = self._regions(record, size)
        except (ValueError, OSError) as error:
            question.error = str(error)
        return question

    def _phrase(self, record: Record) -> Phrase:
        """What the engine is asked; ValueError: the record has no caption that it is to be asked in."""
        if not self.protocol.in_caption:
            return record["phrase"]
        if not isinstance(record.get("caption"), str):
            raise ValueError("it has no caption to ground its phrase in")
        if not record.get("caption_span"):
            raise ValueError("it has no caption_span, which says where in its caption the phrase is")
        return {name: record[name] for name in ("caption", "caption_span")}

    def _regions(self, record: Record, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """True boxes and proposals, see `Question`; ValueError: one of them cannot be used."""
        region = Region.from_record(record, *size, self.box_format)
        boxes = NO_BOXES if region is None else region.boxes
        proposals = read_boxes(record.get("proposals"), "proposal", *size, self.box_format)
        if is_absent(record) and len(boxes):
            raise ValueError("it is absent and has a region; drop one of them")
        if self.protocol.one_box and len(boxes) > 1:
            raise ValueError(f"it has {len(boxes)} boxes; {self.protocol.name} has one a phrase")
        return boxes, proposals

    def _tokenize(self, questions: list[Question]) -> None:
        """One call for all takes a tenth of the time of one for each, and fails if one of them cannot be read."""
        if not questions:
            return
        try:
            tokens = self.grounder.tokenize([self._phrase(question.record) for question in questions])
        except ValueError as error:
            if len(questions) == 1:
                questions[0].error = str(error)
            else:
                for question in questions:
                    self._tokenize([question])
            return
        for row, question in enumerate(questions):
            question.tokens = tokens[row : row + 1]

    @torch.no_grad()
    def explain(self, images: list[ImageQuestions]) -> list[ImageQuestions]:
        """The same, with the scores and heatmaps of their usable phrases."""
        readable = [found.image for found in images if found.image is not None]
        self.grounder.explain_phrases(readable, phrase_batch_size=self.batch_size, **self.options)
        return images

    def try_out(self, images: list[ImageQuestions]) -> list[ImageQuestions]:
        """The same, with the `faithfulness` of their heatmaps where it is asked for."""
        options = self.batch_size, self.options["explanation"]
        for found in images if self.faithfulness else ():
            numbers = range(len(found.usable))
            found.faithfulness = [deletion_and_insertion(self.grounder, found.image, n, *options) for n in numbers]
        return images

    def rows(self, images: list[ImageQuestions]) -> list[Record]:
        """One row a record, in their order."""
        return [self._row(question, found) for found in images for question in found.questions]

    def _row(self, question: Question, found: ImageQuestions) -> Record:
        record, image = question.record, found.image
        row = {
            "image_id": None if record.get("image_id") is None else str(record["image_id"]),
            "phrase": record["phrase"] if isinstance(record["phrase"], str) else None,
            "categories": record.get("categories") or [],
            "absent": question.is_absent,
            "error": question.error,
        }
        if question.error is not None:
            if self.strict:
                raise ValueError(str(question))
            return row
        answer = self.grounder.answer(image, question.number)
        row |= {"score": answer["score"], "point": list(answer["point"]), "box": list(answer["box"])}
        row |= score_answer(answer, question.boxes, question.proposals, self.protocol.metrics)
        if self.protocol.metrics:
            row |= {"size": size_of(question.boxes), "energy": heat_inside(answer["heatmap"], question.boxes)}
        if self.faithfulness:
            row |= zip(OF_HEATMAPS, found.faithfulness[question.number])
        if self.heatmaps is not None:
            row["heatmap"] = list(image.heatmaps[question.number].numpy().astype(self.heatmaps))
        return row

    def pictured(self, records: list[Record]) -> tuple[list[Record], list[torch.Tensor | None]]:
        """Records for a picture, their boxes those that they are scored by; and heatmaps, None of unusable ones."""
        images = self.explain(self.read([[record] for record in records]))
        records = [{**found.questions[0].record, "boxes": found.questions[0].boxes.tolist()} for found in images]
        return records, [found.image.heatmaps[0] if found.image and found.usable else None for found in images]


def load_grounder(
    path: str,
    args: argparse.Namespace,
    protocol: Protocol,
    accelerator: Accelerator,
    engine: type[AutoGrounder] = AutoGrounder,
) -> tuple[RecordGrounder, dict[str, Any]]:
    """A checkpoint of any known family, asked as the protocol and the options of a run say.

    Returns: the grounder, and what its rows depend on, apart from the data; for JSON.
    """
    heads = getattr(args, "heads", None) if engine is AutoGrounder else None
    grounder = (HeadGrounder if heads else engine).from_pretrained(
        path,
        attn_implementation=args.attn_implementation,
        device=accelerator.device,
        **hub_options(vars(args)),
    )
    try:
        grounder.processor = whole_images(grounder.processor, grounder.model.config, protocol.image_size)
    except ValueError as error:
        raise ValueError(
            f"{path}: {error} {protocol.name} is asked at this size. Leave out --benchmark, and name its --splits, to "
            "score by the pointing game at the checkpoint's own size."
        ) from error
    method = args.method or trained_method(grounder.model)
    grounder.method_functions(method)  # says if there is none
    if heads:
        set_heads(grounder, heads, args.explanation)
    grounder.autocast = accelerator.autocast
    grounder.model, processor = accelerator.prepare_model(grounder.model, evaluation_mode=True), grounder.processor
    max_words = None
    if cleans_text(processor):  # no other family counts words
        max_words = processor.max_words = protocol.max_words or processor.max_words
    protocol = replace(protocol, image_size=processor.image_processor.size["height"], max_words=max_words)
    options = {"method": method} | {name: getattr(args, name) for name in ("explanation", "grounding_layer")}
    reading = {"heatmaps": args.save_heatmaps, "box_format": args.box_format or "xyxy"}
    settings = model_settings(grounder.model, processor) | {"protocol": protocol.spelled_out(), "bf16": args.bf16}
    reading |= {"faithfulness": True} if getattr(args, "faithfulness", False) else {}
    settings |= {"heads": heads} if heads else {}
    work = {"batch_size": args.batch_size, "num_workers": args.num_workers, "strict": args.strict}
    return RecordGrounder(grounder, protocol, options, **work, **reading), settings | reading | options


def data_of_run(args: argparse.Namespace, strict: bool) -> tuple[str, Columns]:
    """What to open for the data set of a run, see `rows_of`, and what its options say of the columns."""
    columns = Columns(args.columns, args.box_format, args.download_images)
    return rows_of(args.dataset, columns, strict), columns


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    # One process may have to wait for another far longer than the ten minutes that are usual.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
    return Accelerator(cpu=args.cpu, mixed_precision="bf16" if args.bf16 else "no", kwargs_handlers=[patience])


def share(numbers: list[int], accelerator: Accelerator) -> list[int]:
    """Those of this process, of the numbers of blocks."""
    return numbers[accelerator.process_index :: accelerator.num_processes]


def progress_bar(is_shown: bool, **options: Any) -> tqdm:
    """Where it is shown, what `--quiet` has told tqdm counts: disable=False would be the last word."""
    return tqdm(**options) if is_shown else tqdm(**options, disable=True)


def progress_title(name: str, accelerator: Accelerator) -> str | None:
    """What the progress bar of this process says; None for no bar."""
    several = f" (process 1 of {accelerator.num_processes})" if accelerator.num_processes > 1 else ""
    return f"{name}{several}" if accelerator.is_main_process else None


def model_settings(model: PreTrainedModel, processor: ProcessorMixin) -> dict[str, str]:
    """Hashes of the weights and of the processor, whatever they are called and wherever they are."""
    unstable = "_name_or_path", "transformers_version"  # change when a checkpoint is moved or saved again
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in unstable}
    weights.update(json.dumps(config, sort_keys=True, default=str).encode())
    prepared = hashlib.blake2b(digest_size=16)
    prepared.update(processor.image_processor.to_json_string().encode())
    prepared.update(tokenizer_state(processor.tokenizer).encode())
    return {"model": weights.hexdigest(), "processor": prepared.hexdigest()}


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that its tokens depend on; the same wherever its files are."""
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.to_str()
    places = "name_or_path", "vocab_file", "tokenizer_file", "is_local", "local_files_only"
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in places}
    return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab(), settings], sort_keys=True, default=str)


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
