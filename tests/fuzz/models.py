"""Targets of what reads models, settings, pictures and finished data sets."""

import io
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save
from transformers import BertTokenizer

from dataset_scripts.albef_json import AlbefJson
from dataset_scripts.builder import Unusable
from modeling_albef_amc import AlbefConfig, AlbefForPreTraining, AlbefImageProcessorPil, AlbefProcessor
from modeling_albef_amc.images import open_image
from modeling_albef_amc.pipeline import as_record
from modeling_albef_amc.processing_albef import tokenize_captions
from modeling_albef_amc.tokenization_albef import clean_text
from modeling_albef_amc.tools.albef_checkpoint_files import load_folder, load_original
from modeling_albef_amc.tools.albef_checkpoint_layout import (
    ConversionError,
    check_copy,
    infer_config,
    original_names,
    rename,
    sort_out,
)
from modeling_albef_amc.tools.convert_albef_checkpoint import check_weights, empty_model
from trainer.arguments import DataArguments, ModelArguments, parse_arguments
from trainer.blocks import open_blocks
from trainer.regions import Region

from .readers import Fault, Run, located

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "##s", "hat", "person", "é"]
HEADS = 2, 2, 3  # of the image encoder, of the text encoder, and the layer that is explained


def tiny_config() -> dict[str, Any]:
    """Fields of the smallest ALBEF that is one."""
    vision = dict(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2)
    text = dict(hidden_size=4, intermediate_size=4, num_hidden_layers=4, num_attention_heads=2, fusion_layer=3)
    return {
        "model_type": "albef",
        "vision_config": {**vision, "image_size": 8, "patch_size": 4},
        "text_config": {**text, "vocab_size": len(WORDS), "max_position_embeddings": 8},
        "projection_dim": 2,
        "queue_size": 4,
        "grounding_layer": 3,
    }


def tiny_shapes() -> dict[str, list[int]]:
    """Names and shapes of a whole original state dictionary."""
    config = AlbefConfig(**tiny_config())
    shapes = {
        name: list(tensor.shape) for name, tensor in empty_model(AlbefForPreTraining, config).state_dict().items()
    }
    shapes |= {name: shapes[name][::-1] for name in ("image_queue", "text_queue")}
    found = {name: shapes.get(rename(name), [1, 8]) for name in original_names(config, "amc")}
    return found


# Text -----------------------------------------------------------------------------------------------------------------


def text(folder: Path) -> Run:
    """A phrase, and a span of its words, cleaned and in word pieces."""
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    processor = AlbefProcessor(AlbefImageProcessorPil(size={"height": 8, "width": 8}), tokenizer)

    def run(content: bytes) -> None:
        span, phrase = [*content[:2]], content[2:].decode("utf-8", "surrogateescape" if len(content) % 2 else "replace")
        with suppress(ValueError):
            as_record("a.png", phrase)
        with suppress(ValueError):
            cleaned = clean_text(phrase)
            if clean_text(cleaned) != cleaned and "<person>" not in phrase.lower() and "\n" not in phrase:
                raise Fault(f"cleaned twice, {cleaned!r} becomes another text")
            encoded = processor(text=[phrase], max_length=16)["input_ids"][0]
            if not 2 <= len(encoded) <= 16 or encoded[0] != 2:
                raise Fault(f"odd word pieces: {encoded}")
        with suppress(ValueError):
            chosen = tokenize_captions(processor, [phrase], [span])["heatmap_token_mask"]
            if chosen[0, 0] or not chosen.any():
                raise Fault(f"the span {span} of {phrase!r} has no word pieces, or [CLS]")

    return run


# Checkpoints ----------------------------------------------------------------------------------------------------------


def convertible(state: dict[str, torch.Tensor]) -> None:
    """All of a conversion but its writing."""
    weights, origin, _ = sort_out(state)
    model = empty_model(AlbefForPreTraining, infer_config(weights, *HEADS))
    check_weights(weights, model, origin)
    for copy, kept in model._tied_weights_keys.items():
        if copy in weights:
            check_copy(copy, weights[copy], kept, weights[kept])


def checkpoint_file(folder: Path) -> Run:
    path = folder / "a.pth"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(ConversionError):
            convertible(load_original(path)[0])

    return run


def checkpoint_layout(folder: Path) -> Run:
    """A state dictionary of tensors by the shapes, or [type, shape], that a JSON object has for their names."""

    def run(content: bytes) -> None:
        try:
            shapes = json.loads(content)
        except (ValueError, RecursionError):
            return
        if not isinstance(shapes, dict):
            return
        state = {}
        for name, shape in shapes.items():
            kind = "float32"
            if isinstance(shape, list) and len(shape) == 2 and isinstance(shape[0], str):
                kind, shape = shape
            dtype = getattr(torch, kind, None)
            sides = shape if isinstance(shape, list) and all(type(side) is int for side in shape) else [1]
            if isinstance(dtype, torch.dtype) and all(0 <= side < 99 for side in sides) and np.prod(sides) < 10_000:
                with suppress(RuntimeError, NotImplementedError):  # a type that has no zeros
                    state[name] = torch.zeros(sides, dtype=dtype)
        with suppress(ConversionError):
            convertible(state)

    return run


def safetensors(folder: Path) -> Run:
    (folder / "config.json").write_text(json.dumps(tiny_config()))

    def run(content: bytes) -> None:
        (folder / "model.safetensors").write_bytes(content)
        with suppress(ConversionError):
            _, weights = load_folder(folder)
            check_weights(weights, empty_model(AlbefForPreTraining, AlbefConfig(**tiny_config())), {})

    return run


def model_config(folder: Path) -> Run:
    """A config.json, and an index of the weights' files: the member `weight_map`."""

    def run(content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        (folder / "model.safetensors.index.json").write_bytes(content)
        with suppress(ConversionError):
            load_folder(folder)
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            return
        if isinstance(fields, dict):
            with suppress(ValueError, StrictDataclassError):
                config = AlbefConfig.from_dict(fields)
                config.to_json_string()
                if config.vision_config.num_hidden_layers + config.text_config.num_hidden_layers < 20:
                    empty_model(AlbefForPreTraining, config)

    return run


# Settings -------------------------------------------------------------------------------------------------------------


def config_yaml(folder: Path) -> Run:
    path = folder / "config.yaml"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(SystemExit):
            located(path, lambda: parse_arguments(ModelArguments, DataArguments, arguments=[str(path)]))

    return run


# Pictures -------------------------------------------------------------------------------------------------------------


def image(folder: Path) -> Run:
    """A file as training, evaluation, the pipeline and the builders open it."""
    photos = folder / "photos"
    photos.mkdir()
    builder = AlbefJson(cache_dir=str(folder / "cache"), data_dir=str(folder), images_dir=str(photos))

    def run(content: bytes) -> None:
        (photos / "a.png").write_bytes(content)
        with suppress(ValueError):
            open_image({"bytes": content, "path": None})
        with suppress(ValueError):
            picture = open_image({"bytes": None, "path": str(photos / "a.png")})
            if picture.mode != "RGB":
                raise Fault(f"a picture of mode {picture.mode}")
        with suppress(ValueError):
            open_image(str(photos / "a.png"))
        with suppress(Unusable):
            _, size = builder.load_image("a.png")
            if size != open_image({"bytes": content}).size:
                raise Fault(f"a photo of the size {size} is opened with another")

    return run


def region(folder: Path) -> Run:
    """The region columns of a record of training."""

    def run(content: bytes) -> None:
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            return
        if not isinstance(record, dict):
            return
        with suppress(ValueError):
            found = Region.from_record(record, 6, 8)
            if found is not None:
                drawn = found.mirrored().rasterize(4)
                if not (drawn.shape == (4, 4) and np.isfinite(drawn).all() and 0 < drawn.max() <= 1):
                    raise Fault(f"drawn as {drawn}")

    return run


# Finished data sets ---------------------------------------------------------------------------------------------------


def parquet(folder: Path) -> Run:
    """A data set of one file: an input's columns where it is a JSON object of lists, else its bytes."""
    data, cache = folder / "set", folder / "cache"
    number = iter(range(2**63))

    def run(content: bytes) -> None:
        place = data / str(next(number)) / "train-00000.parquet"  # datasets caches by names and times
        place.parent.mkdir(parents=True)
        try:
            table = pa.table({key: pa.array(column) for key, column in json.loads(content).items()})
            pq.write_table(table, place)
        except (ValueError, TypeError, AttributeError, RecursionError, pa.ArrowException, OverflowError):
            place.write_bytes(content)
        try:
            with patch.object(datasets.config, "HF_DATASETS_CACHE", cache):
                located(place.parent, lambda: read_blocks(str(place.parent)))
        finally:
            shutil.rmtree(data)
            shutil.rmtree(cache, ignore_errors=True)

    return run


def read_blocks(path: str) -> None:
    blocks = open_blocks(path, None, "train")
    blocks.fingerprint()
    for block in range(len(blocks)):
        for records in blocks[block]:
            for record in records:
                json.dumps(record, default=str)


# What they begin with -------------------------------------------------------------------------------------------------


def text_seeds() -> list[bytes]:
    phrases = [
        "A red dog's hat",
        "a <person> - two/three",
        "  tab\tand\n\nlines ",
        "é (dog)",
        "\udc80 dog",
        "dogdog" * 20,
    ]
    return [
        bytes([first, first + 1]) + phrase.encode(errors="surrogateescape") for first in range(2) for phrase in phrases
    ]


def checkpoint_seeds() -> list[bytes]:
    """Files of two tensors and of all, in both formats."""
    few = {"temp": torch.tensor(0.07), "a": torch.nn.Parameter(torch.zeros(2).half()), "b": torch.zeros(2, 2).T}
    whole = {name: torch.zeros(shape) for name, shape in tiny_shapes().items()}
    found = []
    for content in ({"model": few, "epoch": 1, "s": {1}}, few, {"model": whole}):
        for is_zip in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
            found.append(buffer.getvalue())
    return found


def safetensors_seeds() -> list[bytes]:
    whole = AlbefForPreTraining(AlbefConfig(**tiny_config())).state_dict()
    few = {"a": torch.zeros(2), "b": torch.zeros(2, 2).half(), "c": torch.zeros(0, dtype=torch.int64)}
    return [save(few), save({name: tensor.clone().contiguous() for name, tensor in whole.items()})]


def parquet_seeds() -> list[bytes]:
    columns = {
        "image": [{"bytes": "a", "path": None}] * 2,
        "image_id": ["1", "1"],
        "phrase": ["a", "b"],
        "boxes": [[[0, 0, 1, 1]], []],
        "masks": [[], [{"bytes": "a", "path": None}]],
        "caption_span": [[0, 1], []],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table({key: columns[key] for key in ("image_id", "phrase")}), buffer)
    return [json.dumps(columns).encode(), buffer.getvalue(), b'{"phrase": [["a", "b"]], "image": [null]}']


REGION = {
    "boxes": [[0, 0, 4, 4], [1.5, 1, 90, 90]],
    "polygons": [[[0, 0, 4, 0, 4, 4]], [[1, 1, 5, 1, 5, 5, 2, 2]]],
    "scribbles": [[1, 1], [1, 1, 5, 5]],
    "scribble_radius": 2.0,
}
YAML = """# settings
model_config: {projection_dim: 64, vision_config: {hidden_size: 16}}
dataset: outputs/scenes
eval_splits: [validation, 'test']
freeze:
  - "vision"
lora_rank: 4
lora_dropout: 0.1
image_size: null
strict: yes
flip: 1e-1
"""


def region_seeds() -> list[bytes]:
    alone = [{key: REGION[key], "scribble_radius": 1} for key in ("boxes", "polygons", "scribbles")]
    return [json.dumps(record).encode() for record in (REGION, *alone)]
