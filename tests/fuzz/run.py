"""Fuzzes all parsers, guided by which code an input reaches; test_fuzz.py tries the same targets without a fuzzer.

    python -m tests.fuzz.run --seconds 600            all targets, one after the other
    python -m tests.fuzz.run coco/instances.json --seconds 60  one of them

Needs atheris, which exists for Linux alone (the extra `fuzz`). An input that breaks a target is written to the folder
--found, and belongs into tests/fuzz/corpus/<target> once the parser is mended.
"""

import argparse
import copy
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
# Whose code guides the fuzzer: ours, and what is Python of what we read with.
INSTRUMENTED = ["dataset_scripts", "modeling_albef_amc", "trainer", "pickle", "json", "PIL"]

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), -float("inf"), 2**24 + 1),
    *(2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, 10**4299, "", " ", "\n", "0", "-1", "1e9", "a", "\0"),
    *("\ud800", "é", "\u2028", "🎈", "..", "/etc/passwd", "../../etc/passwd", "x" * 300, "%s", "{}", "[", "1_2.jpg"),
    *([], {}, [[]], [{}], {"": None}, [None], [0, 0, 0, 0], [1, 2, 3, 4], [[1, 2, 3, 4]], [1, 1, 5, 1, 5, 5]),
    *({"size": [6, 8], "counts": [0, 48]}, {"size": [6, 8], "counts": "0`1"}, {"size": [6, 8], "counts": [48]}),
]


class Fault(AssertionError):
    """A target found what may not be, other than by an error of its own: a wrong message, a row that does not fit."""


def located(folder: Path, read: Callable[[], Any]) -> None:
    """Lets a reader raise a ValueError, and nothing else, whose message is short and names a file in the folder."""
    try:
        read()
    except ValueError as error:
        if type(error) is not ValueError or str(folder) not in str(error) or len(str(error)) > 2000:
            raise Fault(f"an error that does not say where it is: {error!r:.2000}") from error


# Targets: what reads an input, and inputs to begin with ---------------------------------------------------------------

Target = tuple[Callable[[bytes], None], list[bytes]]
# Of each tree of tests/helpers/builders.py the files whose place an input takes: a target each, "coco/instances.json".
FILES = {
    "flickr30k_entities": "Sentences/1000000.txt Annotations/1000000.xml train.txt UNRELATED_CAPTIONS",
    "infoground": "sentences_train.json bounding_boxes_train.json",
    "refcoco": "refs(unc).p instances.json dets.json",
    "coco": "instances.json",
    "referit": "1_1.json referit_train_imlist.txt",
    "visual_genome": "image_data.json region_descriptions.json attributes.json relationships.json",
    "albef_json": "train.json",
    "odvg": "train.jsonl",
    "chat": "train.json",
    "phrasecut": "refer_train.json image_data_split3000.json",
    "xvlm": "train.jsonl",
    "narratives": "open_images_train_v6_localized_narratives-00000-of-00010.jsonl",
}


def builder_target(folder: Path, tree: str, file: str) -> Target:
    """An input in the place of a builder's file: its rows must fit the columns that they are written to."""
    import pyarrow as pa

    from dataset_scripts.build import builder_class
    from dataset_scripts.features import FEATURES, BuildReport
    from tests.helpers.builders import TREES
    from tests.helpers.flickr30k_tree import draw_images, write_processed

    if tree == "infoground":
        image = next(draw_images(1, 0))._replace(image_id="1")
        write_processed(folder / "data", {"train": [image]})
        tree, options = "flickr30k_entities", {"data_dir": str(folder / "data")}
    else:
        options = TREES[tree](folder / "data")
    place = folder / "data" / file

    made = builder_class(tree)(cache_dir=str(folder / "cache"), **options)

    def read() -> None:
        builder = copy.copy(made)  # which has read nothing yet
        builder.report = BuildReport()
        for split in builder.split_names():
            for job in builder.jobs(split):
                pa.Table.from_pylist(list(builder.storable_rows(split, job)), schema=FEATURES.arrow_schema)
        str(builder.report).encode()

    def run(content: bytes) -> None:
        place.write_bytes(content)
        located(folder, read)

    return run, [place.read_bytes()]


def image(folder: Path) -> Target:
    """A file as training, the pipeline and the builders open it: all see the same size."""
    from dataset_scripts.albef_json import AlbefJson
    from dataset_scripts.builder import Unusable
    from modeling_albef_amc.images import open_image
    from tests.helpers.builders import write_image

    seeds = [write_image(folder / f"a.{kind}") for kind in ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm")]
    builder = AlbefJson(cache_dir=str(folder / "cache"), data_dir=str(folder), images_dir=str(folder))

    def run(content: bytes) -> None:
        (folder / "a.png").write_bytes(content)
        with suppress(ValueError):
            open_image(str(folder / "a.png"))
        with suppress(Unusable):
            size = builder.load_image("a.png").size
            if size != open_image({"bytes": content, "path": None}).size:
                raise Fault(f"an image of the size {size} is opened with another")

    return run, seeds


def model_config(folder: Path) -> Target:
    """A config.json, and an index of the weights' files: the member `weight_map`."""
    from huggingface_hub.errors import StrictDataclassError

    from modeling_albef_amc import AlbefConfig
    from modeling_albef_amc.tools.albef_checkpoint_files import load_folder
    from modeling_albef_amc.tools.albef_checkpoint_layout import ConversionError

    def run(content: bytes) -> None:
        for name in "config.json", "model.safetensors.index.json":
            (folder / name).write_bytes(content)
        with suppress(ConversionError):
            load_folder(folder)
        with suppress(ValueError, StrictDataclassError, RecursionError):
            fields = json.loads(content)
            if isinstance(fields, dict):
                AlbefConfig.from_dict(fields).to_json_string()

    return run, [json.dumps({"model_type": "albef", "queue_size": 4, "weight_map": {"a": "b.safetensors"}}).encode()]


def region(folder: Path) -> Target:
    """The region columns of a record of training."""
    import numpy as np

    from trainer.regions import Region

    def run(content: bytes) -> None:
        with suppress(ValueError, RecursionError):
            record = json.loads(content)
            found = Region.from_record(record, 6, 8) if isinstance(record, dict) else None
            drawn = np.ones((4, 4)) if found is None else found.mirrored().rasterize(4)
            if not (drawn.shape == (4, 4) and np.isfinite(drawn).all() and 0 < drawn.max() <= 1):
                raise Fault(f"drawn as {drawn}")

    parts = {"boxes": [[0, 0, 4, 4]], "polygons": [[[0, 0, 4, 0, 4, 4]]], "scribbles": [[1, 1, 5, 5]]}
    return run, [json.dumps({key: value, "scribble_radius": 1}).encode() for key, value in parts.items()]


TARGETS: dict[str, Callable[[Path], Target]] = {
    f"{tree}/{file}": partial(builder_target, tree=tree, file=file) for tree in FILES for file in FILES[tree].split()
}
TARGETS |= {"image": image, "model_config": model_config, "region": region}


# Changes --------------------------------------------------------------------------------------------------------------


def mutated(data: bytes, draw: random.Random, change: Callable[[bytes], bytes]) -> bytes:
    """JSON with one node of its tree changed, and anything else as the fuzzer or `damaged` changes it."""
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return change(data)
    places = [(root, 0)]
    for container, key in places[:2000]:  # goes on with what it appends
        value = container[key]
        if isinstance(value, list | dict):
            places += [(value, each) for each in (value if isinstance(value, dict) else range(len(value)))]
    container, key = draw.choice(places)
    other, there = draw.choice(places)
    container[key] = copy.deepcopy(draw.choice([*[draw.choice(ODD_VALUES)] * 3, other[there], [container[key]]]))
    if container is not root and draw.random() < 0.2:
        del container[key]
    return json.dumps(root[0], ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, removed or repeated."""
    for _ in range(draw.randint(1, 4)):
        first, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        end = min(end, first + 64)
        data = data[:first] + draw.choice([b"", data[first:end] * 2, draw.randbytes(2)]) + data[end:]
    return data


def fuzz(name: str, seconds: int, found: Path) -> None:
    """Fuzzes one target in this process, which ends with it."""
    import atheris

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    with atheris.instrument_imports(include=INSTRUMENTED):
        run, seeds = TARGETS[name](folder)
    inputs = folder / "inputs"
    inputs.mkdir()
    for number, seed in enumerate(seeds):
        (inputs / f"seed-{number}").write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return mutated(data, random.Random(seed), lambda part: atheris.Mutate(part, max_size))[:max_size]

    options = [f"-max_total_time={seconds}", "-rss_limit_mb=2048", "-timeout=25", f"-artifact_prefix={found}/"]
    atheris.Setup([sys.argv[0], *options, str(inputs), str(CORPUS / name)], run, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument(
        "--found", type=Path, default=Path("outputs/fuzz"), help="folder for inputs that break a target"
    )
    args = parser.parse_args()
    args.found.mkdir(parents=True, exist_ok=True)
    if len(args.targets) == 1:
        fuzz(args.targets[0], args.seconds, args.found)
    command = [sys.executable, "-m", "tests.fuzz.run", "--seconds", str(args.seconds), "--found", str(args.found)]
    broken = [name for name in args.targets or TARGETS if subprocess.run([*command, name]).returncode]
    if broken:
        sys.exit(f"Inputs that broke {', '.join(broken)} are in {args.found}.")


if __name__ == "__main__":
    main()
