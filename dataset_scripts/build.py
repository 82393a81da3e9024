"""Builds a dataset and writes it as a folder of Parquet files that `datasets.load_dataset` reads.

    python -m dataset_scripts.build scenes --output data/scenes
    python -m dataset_scripts.build coco --data-dir coco --images-dir coco/images --output data/coco

then `datasets.load_dataset("data/scenes", split="train")`, with `streaming=True` too. `--push-to-hub org/name` uploads
the folder, and "org/name" loads it. Images and masks are embedded.
The rows of one image follow each other and share its bytes in the file: its column is dictionary-encoded, so that a
photo with fifty phrases is stored once or twice and not fifty times, which is what `datasets`' own Parquet writer would
do.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import httpx

from .data_card import data_card
from .shards import write_splits
from .sources import SourceBuilder

# Name on the command line -> (module, builder class, what it is). A builder has a `report` (`features.BuildReport`) and
# for the card a `source`, a text that says where its data is from; the licence is its info's. The fields of its config
# that have a help text are its command line options.
BUILDERS = {
    "scenes": ("scenes", "Scenes", "rendered scenes, drawn here: no download, exact masks"),
    "coco": ("coco", "Coco", "photos with COCO's instances.json: a category and all its instances"),
    "visual_genome": ("visual_genome", "VisualGenome", "Visual Genome's regions, attributes and relations as phrases"),
    "flickr30k_entities": ("flickr30k_entities", "Flickr30kEntities", "phrases of Flickr30k's captions, and boxes"),
    "refcoco": ("refcoco", "RefCoco", "RefCOCO, RefCOCO+, RefCOCOg, ReferIt: the refer toolkit's pickle and JSON"),
    "referit": ("referit", "ReferIt", "ReferIt in the layout of the released code: image lists and a file a photo"),
    "albef_json": ("albef_json", "AlbefJson", "ALBEF's lists of images, captions and boxes"),
}

# Refused, not reached, offline on purpose, no such name.
HUB_ERRORS = httpx.HTTPError, OSError, ValueError


def builder_class(name: str) -> type[SourceBuilder]:
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
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    num_proc: int | None = None,
    overwrite: bool = False,
    repo_id: str | None = None,
    **options: Any,
) -> SourceBuilder:
    """Builds the dataset `name` into the folder `output`: `README.md` and `data/<split>-<job>.parquet`.

    The folder appears under its name when it is complete, or not at all. A call that was killed is gone on with by the
    same call, unless files of `data_dir` have changed since; what it has done lies in the hidden folder
    `.<output>.building` beside the output.

    Args:
        name: A name in `BUILDERS`.
        output: The folder to write; its parents are made.
        splits: The names of those to build; default: all.
        limit: At most this many rows of each split.
        num_proc: Processes that work at the same time; default: one for each processor. The bytes are the same.
        overwrite: Replace what an earlier build wrote to `output`.
        repo_id: What the card says the data set is called on the Hub; nothing is uploaded.
        options: For the builder: `data_dir` and the fields of its config.

    Returns:
        The builder: `info.splits` has the counts, `report` what was kept and dropped.

    Raises:
        ValueError: Bad options or bad data, an unknown split, or not one row came out.
        RuntimeError: A process was killed, as when memory runs out.
        FileExistsError: `output` is not empty, and `overwrite` is not given or it holds what no build wrote.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if num_proc is not None and num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}")
    output = Path(output).absolute()
    _check_output(output, overwrite)
    # Options first: bad ones must not touch what an earlier call left.
    with tempfile.TemporaryDirectory() as cache:
        builder = builder_class(name)(cache_dir=cache, **options)
    scratch = output.parent / f".{output.name}.building"
    command = _command(builder, name, splits, limit, options)
    settings = {"name": name, "splits": splits, "limit": limit, **options, "files": _state_of(options.get("data_dir"))}
    folder = _begin_or_go_on(scratch, settings)
    try:
        write_splits(builder, folder, limit, num_proc or os.cpu_count() or 1, splits)
    except ValueError:
        shutil.rmtree(scratch)  # of data that must be mended first; what else ends a build leaves it to go on
        raise
    data_card(builder, name, command, repo_id).save(folder / "README.md")
    shutil.rmtree(folder / "notes")
    if output.exists():
        output.rename(scratch / "replaced")
    folder.rename(output)
    shutil.rmtree(scratch)
    return builder


def _begin_or_go_on(scratch: Path, settings: dict[str, Any]) -> Path:
    """The folder to build in: what an earlier call with these settings left, or a new one."""
    folder, record = scratch / "dataset", scratch / "settings.json"
    text = json.dumps(settings, default=str, sort_keys=True)
    if record.exists() and record.read_text() == text and folder.is_dir():
        print(f"Going on with what an earlier call left in {scratch}.")
        return folder
    if scratch.exists():
        shutil.rmtree(scratch)
    folder.mkdir(parents=True)
    record.write_text(text)
    return folder


def _state_of(folder: str | Path | None) -> str:
    """Another text when a file in the folder has changed: what an earlier call wrote is then of the old ones."""
    if folder is None:
        return ""
    with os.scandir(folder) as entries:
        files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    states = sorted((name, state.st_size, state.st_mtime_ns) for name, state in files)
    return hashlib.sha256(repr(states).encode()).hexdigest()


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


def _command(
    builder: SourceBuilder, name: str, splits: Sequence[str] | None, limit: int | None, options: dict[str, Any]
) -> str:
    """The command that builds this again: what differs from the defaults, of paths only the last part."""
    defaults = {field.name: field.default for field in dataclasses.fields(builder.BUILDER_CONFIG_CLASS)}
    given = {key: value for key, value in options.items() if key == "data_dir" or value != defaults[key]}
    if limit is not None:
        given["limit"] = limit
    words = ["python", "-m", "dataset_scripts.build", name]
    for key, value in given.items():
        value = Path(value).name if isinstance(value, str | Path) else str(value)
        words += [f"--{key.replace('_', '-')}", value]
    if splits is not None:
        words += ["--splits", *splits]
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
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="build only these (default: all)")
    parser.add_argument("--limit", type=int, help="write at most this many rows of each split")
    parser.add_argument("--num-proc", type=int, help="processes (default: one for each processor)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier build wrote to the folder")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload the folder to this data set on the Hub")
    parser.add_argument("--private", action="store_true", help="make that data set private, if it is new")
    config = builder_class(name).BUILDER_CONFIG_CLASS
    for field in dataclasses.fields(config):
        option = f"--{field.name.replace('_', '-')}"
        if field.type is bool:
            parser.add_argument(option, action="store_true", help=field.metadata["help"])
        elif "help" in field.metadata:
            default = "" if field.default is None else " (default: %(default)s)"
            parser.add_argument(
                option,
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
    except (ValueError, OSError, RuntimeError) as error:
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
