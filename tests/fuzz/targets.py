"""All fuzz targets: a parser, inputs to begin with, and a mutator that knows their form."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import models, readers, seeds
from .mutators import Bytes, mutate_json, mutate_pickle, mutate_safetensors, mutate_zip
from .readers import Run


class Target(NamedTuple):
    """`open` makes a target ready in an empty folder; what it returns is called with inputs, and raises for faults."""

    open: Callable[[Path], Run]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, random.Random, Bytes], bytes] | None = None
    max_len: int = 4096
    words: tuple[str, ...] = ()  # what the fuzzer may put into inputs


def encoded(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


XML_WORDS = (
    "<object>",
    "</object>",
    "<name>",
    "<bndbox>",
    "<xmin>",
    "<!DOCTYPE a [",
    "<!ENTITY a 'b'>",
    "&a;",
    "<![CDATA[",
)
YAML_WORDS = (
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!!python/name:os.system",
    "? ",
    "0b_",
    "2001-99-99",
    ".inf",
    "1:60",
    "%TAG",
    "---",
)

TARGETS: dict[str, Target] = {
    "flickr_sentences": Target(
        readers.flickr_sentences, encoded(seeds.SENTENCES), words=("[/EN#", "/people", "EN#", "]")
    ),
    "flickr_xml": Target(readers.flickr_xml, encoded(seeds.XML), words=XML_WORDS),
    "lists": Target(readers.lists, encoded(*seeds.LISTS), words=("COCO_train2014_", ".jpg", "\u2028", "\u0661")),
    "infoground": Target(readers.infoground, seeds.infoground, mutate_json),
    "refs_pickle": Target(
        readers.refs_pickle, lambda: [pickle.dumps(seeds.refs(), p) for p in range(6)], mutate_pickle
    ),
    "instances": Target(readers.instances, lambda: seeds.as_json(seeds.instances()), mutate_json),
    "proposals": Target(readers.proposals, seeds.proposals, mutate_json),
    "referit": Target(readers.referit, seeds.referit, mutate_json),
    "visual_genome_regions": Target(readers.visual_genome_regions, seeds.visual_genome_regions, mutate_json),
    "visual_genome_objects": Target(readers.visual_genome_objects, seeds.visual_genome_objects, mutate_json),
    "albef_json": Target(readers.albef_json, seeds.albef_json, mutate_json),
    "text": Target(models.text, models.text_seeds, max_len=512),
    "checkpoint_file": Target(models.checkpoint_file, models.checkpoint_seeds, mutate_zip, max_len=65536),
    "checkpoint_layout": Target(
        models.checkpoint_layout, lambda: seeds.as_json(models.tiny_shapes()), mutate_json, max_len=16384
    ),
    "safetensors": Target(models.safetensors, models.safetensors_seeds, mutate_safetensors, max_len=32768),
    "model_config": Target(
        models.model_config,
        lambda: seeds.as_json(models.tiny_config(), {**models.tiny_config(), "weight_map": {"a": "b.safetensors"}}),
        mutate_json,
    ),
    "config_yaml": Target(models.config_yaml, encoded(models.YAML), max_len=512, words=YAML_WORDS),
    "image": Target(models.image, seeds.images),
    "region": Target(models.region, models.region_seeds, mutate_json),
    "parquet": Target(models.parquet, models.parquet_seeds, mutate_json),
}
