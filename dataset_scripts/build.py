"""Builds a dataset and writes it as a folder of Parquet files that `datasets.load_dataset` reads.

    python -m dataset_scripts.build scenes --output data/scenes
    python -m dataset_scripts.build coco --data-dir coco --output data/coco

then `datasets.load_dataset("data/scenes", split="train")`, with `streaming=True` too. `--push-to-hub org/name` uploads
the folder, and "org/name" loads it. Images and masks are embedded.
The rows of one image follow each other and share its bytes in the file: its column is dictionary-encoded, so that a
photo with fifty phrases is stored once or twice and not fifty times, which is what `datasets`' own Parquet writer would
do.
"""

import argparse
import dataclasses
import importlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import embed_table_storage
from datasets.utils import tqdm
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import httpx

from .data_card import data_card

# Name on the command line -> (module, builder class, what it is). A builder has a `report` (`features.BuildReport`) and
# for the card a `source`, a text that says where its data is from; the licence is its info's. The fields of its config
# that have a help text are its command line options.
BUILDERS = {
    "scenes": ("scenes", "Scenes", "rendered scenes, drawn here: no download, exact masks"),
    "coco": ("coco", "Coco", "photos with COCO's instances.json: a category and all its instances"),
}

# Refused, not reached, offline on purpose, no such name.
HUB_ERRORS = httpx.HTTPError, OSError, ValueError

_ROWS_PER_GROUP = 256
_SHARD_BYTES = 500 * 2**20
# A dictionary that outgrows this is given up for plain values: more than any row group of photos needs.
_DICTIONARY_BYTES = 2**30


def builder_class(name: str) -> type[datasets.GeneratorBasedBuilder]:
    """The builder class of a name in `BUILDERS`; imports that builder's module only.

    Raises:
        ValueError: There is no such name.
    """
    if name not in BUILDERS:
        raise ValueError(f"no builder {name!r}, choose from {', '.join(BUILDERS)}")
    module, attribute, _ = BUILDERS[name]
    return getattr(importlib.import_module(f"dataset_scripts.{module}"), attribute)


def build(
    name: str,
    output: str | Path,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    repo_id: str | None = None,
    **options: Any,
) -> datasets.GeneratorBasedBuilder:
    """Builds the dataset `name` into the folder `output`: `README.md` and `data/<split>-<shard>.parquet`.

    The folder appears under its name when it is complete, or not at all.

    Args:
        name: A name in `BUILDERS`.
        output: The folder to write; its parents are made.
        limit: At most this many rows of each split.
        overwrite: Replace what an earlier build wrote to `output`.
        repo_id: What the card says the data set is called on the Hub; nothing is uploaded.
        options: For the builder: `data_dir` and the fields of its config.

    Returns:
        The builder: `info.splits` has the counts, `report` what was kept and dropped.

    Raises:
        ValueError: Bad options or bad data, or not one row came out.
        FileExistsError: `output` is not empty, and `overwrite` is not given or it holds what no build wrote.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    output = Path(output).absolute()
    _check_output(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        folder = Path(scratch, "dataset")
        (folder / "data").mkdir(parents=True)
        builder = builder_class(name)(cache_dir=str(Path(scratch, "cache")), **options)
        _write_splits(builder, folder, limit)
        data_card(builder, name, _command(builder, name, limit, options), repo_id).save(folder / "README.md")
        if output.exists():
            output.rename(Path(scratch, "replaced"))
        folder.rename(output)
    return builder


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise FileExistsError(f"{output} is a file: name a folder")
    found = {path.name for path in output.iterdir()}
    if found and not overwrite:
        raise FileExistsError(f"{output} is not empty: choose another folder, or say --overwrite")
    if strangers := sorted(found - {"README.md", "data"}):
        raise FileExistsError(f"{output} will not be replaced: it holds {strangers[0]!r}, which no build wrote")


class _SplitWriter:
    """Writes the rows of a split to `<split>-00000.parquet`, `<split>-00001.parquet`, …"""

    def __init__(self, folder: Path, split: str, features: datasets.Features) -> None:
        self.folder, self.split, self.schema = folder, split, features.arrow_schema
        self.num_shards = self.num_examples = self.num_bytes = self.num_written = 0
        self._file: pa.OSFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._finish_shard()

    def write(self, examples: Sequence[dict[str, Any]]) -> None:
        """Writes encoded examples as one row group."""
        table = embed_table_storage(pa.Table.from_pylist(list(examples), schema=self.schema))
        if self._writer is None:
            self._file = pa.OSFile(str(self.folder / f"{self.split}-{self.num_shards:05d}.parquet"), "wb")
            self._writer = pq.ParquetWriter(
                self._file,
                self.schema,
                use_dictionary=["image.bytes", "image_id"],
                dictionary_pagesize_limit=_DICTIONARY_BYTES,
                write_page_index=True,
            )
            self.num_shards += 1
        self._writer.write_table(table)
        self.num_examples += len(table)
        self.num_bytes += table.nbytes
        if self._file.tell() >= _SHARD_BYTES:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.num_written += self._file.tell()
            self._file.close()
            self._writer = self._file = None


def _row_groups(examples: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(examples, _ROWS_PER_GROUP)):
        yield group


def _write_splits(builder: datasets.GeneratorBasedBuilder, folder: Path, limit: int | None) -> None:
    """Writes all splits and sets `splits` and the sizes of `builder.info`; a split without a row is left out."""
    features = builder.info.features
    splits = datasets.SplitDict(dataset_name=builder.dataset_name)
    written = 0
    for generator in builder._split_generators(datasets.DownloadManager()):
        rows = islice((row for _, row in builder._generate_examples(**generator.gen_kwargs)), limit)
        progress = tqdm(rows, desc=f"Generating {generator.name} split", unit=" examples")
        with _SplitWriter(folder / "data", generator.name, features) as writer:
            for group in _row_groups(features.encode_example(row) for row in progress):
                writer.write(group)
        if writer.num_examples:
            splits.add(datasets.SplitInfo(generator.name, writer.num_bytes, writer.num_examples))
            written += writer.num_written
    if not splits:
        raise ValueError(f"{builder.dataset_name}: not one row came out\n{builder.report}")
    builder.info.splits = splits
    builder.info.dataset_size = sum(split.num_bytes for split in splits.values())
    builder.info.download_size = written


def _command(builder: datasets.GeneratorBasedBuilder, name: str, limit: int | None, options: dict[str, Any]) -> str:
    """The command that builds this again: what differs from the defaults, of paths only the last part."""
    defaults = {field.name: field.default for field in dataclasses.fields(builder.BUILDER_CONFIG_CLASS)}
    given = {key: value for key, value in options.items() if key == "data_dir" or value != defaults[key]}
    if limit is not None:
        given["limit"] = limit
    words = ["python", "-m", "dataset_scripts.build", name]
    for key, value in given.items():
        value = Path(value).name if isinstance(value, str | Path) else str(value)
        words += [f"--{key.replace('_', '-')}", value]
    return shlex.join(words)


def create_repository(repo_id: str, private: bool) -> str:
    """Makes the data set's repository on the Hub, if it is not there, and sees to it that it takes files.

    Returns: its whole name, with the user's where that was left out.

    Raises:
        HfHubHTTPError, httpx.HTTPError, ValueError: the Hub refuses, or cannot be reached; or the name is none.
    """
    api = HfApi()
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True).repo_id
    # A token may be good for reading only, which the Hub does not mind as long as the repository is there.
    api.preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"# Data card")], repo_type="dataset")
    return repo_id


def upload(folder: Path, repo_id: str) -> str:
    """Uploads a built folder; Parquet files of an earlier build that it does not have are deleted there.

    Returns: the address of the commit.
    """
    api = HfApi()
    there = [file.rfilename for file in api.dataset_info(repo_id).siblings or []]
    old = [name for name in there if name.startswith("data/") and not (folder / name).exists()]
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        commit_message="Built by albef-amc",
        delete_patterns=old or None,
    )
    return commit.commit_url


def _parser(name: str) -> argparse.ArgumentParser:
    """The command line of one builder: the common options and the fields of its config."""
    parser = argparse.ArgumentParser(prog=f"python -m dataset_scripts.build {name}", description=BUILDERS[name][2])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--limit", type=int, help="write at most this many rows of each split")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier build wrote to the folder")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload the folder to this data set on the Hub")
    parser.add_argument("--private", action="store_true", help="make that data set private, if it is new")
    config = builder_class(name).BUILDER_CONFIG_CLASS
    for field in dataclasses.fields(config):
        if "help" in field.metadata:
            default = "" if field.default is None else " (default: %(default)s)"
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=str if field.type == str | None else field.type,
                default=field.default,
                required=field.name == "data_dir",
                help=field.metadata["help"] + default,
            )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` without the program's name."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    top = argparse.ArgumentParser(
        prog="python -m dataset_scripts.build",
        description="Build a dataset as a folder of Parquet files for datasets.load_dataset.",
        epilog="datasets:\n" + "\n".join(f"  {name:10} {what}" for name, (_, _, what) in BUILDERS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "dataset", choices=list(BUILDERS), metavar="DATASET", help="one of those below; see DATASET --help"
    )
    name = top.parse_args(arguments[:1]).dataset
    options = vars(_parser(name).parse_args(arguments[1:]))
    repo_id, private = options.pop("push_to_hub"), options.pop("private")
    try:
        if repo_id is not None:
            repo_id = create_repository(repo_id, private)
    except HUB_ERRORS as error:
        sys.exit(
            f"error: nothing was built: the Hub does not take files for {repo_id}. Log in with a token that may write "
            f"(`hf auth login`, or HF_TOKEN), and check the name and the network.\n{error}"
        )
    try:
        builder = build(name, repo_id=repo_id, **options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(builder.report)
    for split in builder.info.splits.values():
        print(f"wrote    {split.num_examples:>9,}  rows of {split.name}")
    if repo_id is not None:
        folder = options["output"]
        try:
            print(f"pushed   {upload(folder, repo_id)}")
        except HUB_ERRORS as error:
            again = f"hf upload {repo_id} {folder} --repo-type dataset --delete 'data/*.parquet'"
            sys.exit(f"error: {folder} is whole, but was not uploaded. Try again with `{again}`.\n{error}")


if __name__ == "__main__":
    main()
