"""Builds a dataset and writes it as a folder of Parquet files that `datasets.load_dataset` reads.

    albef-amc build scenes --output data/scenes
    albef-amc build coco --data_dir coco --images_dir coco/images --output data/coco

(or `python -m dataset_scripts.build …`) then `datasets.load_dataset("data/scenes", split="train")`, with
`streaming=True` too. `--push_to_hub org/name` uploads the folder, and "org/name" loads it. Images and masks are
embedded; the rows of an image follow each other and share its bytes in the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import BUILDERS

if TYPE_CHECKING:
    from .builder import GroundingBuilder


_WRITTEN = re.compile(r"README\.md|data|data/[\w.]+-\d{5}\.parquet")  # what a build leaves in its folder


def builder_class(name: str) -> type[GroundingBuilder]:
    """The builder class of a name in `BUILDERS`; imports that builder's module only."""
    if name not in BUILDERS:
        raise ValueError(f"no builder {name!r}, choose from {', '.join(BUILDERS)}")
    return getattr(import_module(f".{name}", __package__), BUILDERS[name][0])


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
) -> GroundingBuilder:
    """Builds the dataset `name` into the folder `output`: `README.md` and `data/<split>-<job>.parquet`.

    The folder appears under its name when it is complete, or not at all. A call that was killed is gone on with by the
    same call, unless files that it reads have changed since; what it has done lies in the hidden folder
    `.<output>.building` beside the output until a build of that output ends.

    Args:
        splits: The names of those to build; default: all.
        limit: At most this many rows of each split.
        num_proc: Processes that work at the same time; default: one for each processor. The bytes are the same.
        overwrite: Replace what an earlier build wrote to `output`.
        repo_id: What the card says the data set is called on the Hub; nothing is uploaded.
        options: For the builder, as its class in `options` has them.

    Returns:
        The builder: `info.splits` has the counts, `report` what was kept and dropped.

    Raises:
        ValueError: Bad options or bad data, an unknown split, or not one row came out.
        RuntimeError: A process was killed, as when memory runs out.
        FileExistsError: `output` is not empty, and `overwrite` is not given or it holds what no build wrote; it cannot
            be replaced; or another call is building it.
    """
    from .data_card import data_card
    from .parquet_writer import write_splits

    for key, value in (("limit", limit), ("num_proc", num_proc)):
        if value is not None and value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    output = Path(output).resolve()  # of a link, the folder that it leads to
    _check_output(output, overwrite)
    # Options first: bad ones must not touch what an earlier call left.
    with tempfile.TemporaryDirectory() as cache:
        builder = builder_class(name)(cache_dir=cache, **options)
    scratch = output.parent / f".{output.name}.building"
    settings = {"name": name, "splits": splits, "limit": limit, **options, "files": state_of(options)}
    mark = hashlib.sha256(json.dumps(settings, default=str, sort_keys=True).encode()).hexdigest()
    folder = scratch / mark[:16]
    with _locked(scratch, output):
        _check_output(output, overwrite)
        if folder.exists():
            print(f"Going on with what an earlier call left in {scratch}.")
        folder.mkdir(exist_ok=True)
        try:
            write_splits(builder, folder, limit, num_proc or os.cpu_count() or 1, splits)
        except ValueError:
            shutil.rmtree(folder)  # of data that must be mended first; what else ends a build leaves it to go on
            raise
        data_card(builder, name, _command(name, splits, limit, options), repo_id).save(folder / "README.md")
        shutil.rmtree(folder / "notes")
        if output.exists():
            output.rename(scratch / "replaced")
        folder.rename(output)
        shutil.rmtree(scratch)
    return builder


def build_in_cache(name: str, data_dir: str, images_dir: str, **options: Any) -> tuple[Path, str]:
    """The folder of the build in datasets' cache, and its report, "" where nothing was dropped; errors as of `build`.

    The folder is called by all that the rows depend on: where the files lie, their sizes and times, the options, and
    the code of the builders. Of several processes one builds, and the others wait for it.
    """
    from datasets import config
    from huggingface_hub.utils import WeakFileLock

    options |= {"data_dir": os.path.abspath(data_dir), "images_dir": os.path.abspath(images_dir)}
    mark = hashlib.sha256(repr((sorted(options.items()), state_of(options))).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        mark.update(file.read_bytes())
    folder = Path(config.HF_DATASETS_CACHE, "albef_amc", f"{name}-{mark.hexdigest()[:16]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    told = Path(f"{folder}.txt")  # written last: without it the build is not whole
    with WeakFileLock(f"{folder}.lock"):
        if not (told.exists() and folder.exists()):
            report = build(name, folder, overwrite=True, **options).report
            part = told.with_suffix(".part")
            part.write_text(str(report) if report.dropped else "", "utf-8")
            part.replace(told)
        return folder, told.read_text("utf-8")


@contextmanager
def _locked(scratch: Path, output: Path) -> Iterator[None]:
    """A block that no other process is in with this scratch folder, for an output that can be replaced."""
    scratch.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends, however it does
        except BlockingIOError as error:
            raise FileExistsError(f"{output} is being built by another call: wait for it to end") from error
        try:
            if not output.exists() and (scratch / "replaced").exists():  # by a call that was killed then
                (scratch / "replaced").rename(output)
            if output.exists():
                output.rename(scratch / "probe").rename(output)
        except OSError as error:
            raise FileExistsError(f"{output} cannot be replaced ({error.strerror}): choose a folder in it") from error
        yield
    finally:
        with suppress(OSError):  # it has work in it, or is gone
            scratch.rmdir()
        os.close(descriptor)


def state_of(options: dict[str, Any]) -> str:
    """Another text when a file that is read has changed or come: what an earlier call wrote is then of the old ones."""
    data_dir, images_dir, records = (options.get(key) or "" for key in ("data_dir", "images_dir", "records"))
    words = [word.strip() for value in options.values() for word in str(value).split(",")]
    files = {path for word in words for path in (word, os.path.join(data_dir, word))}
    seen = set()
    for top in filter(None, (data_dir, images_dir, records and os.path.join(data_dir, records))):
        for folder, folders, names in os.walk(top, followlinks=True):
            # Hidden folders hold no data, but what builds write; of links, one may lead back.
            folders[:] = [name for name in folders if not name.startswith(".")]
            place = os.path.realpath(folder)
            if place in seen:
                folders.clear()
                continue
            seen.add(place)
            files.update(os.path.join(folder, name) for name in names)
    found = ((path, os.stat(path)) for path in files if os.path.isfile(path))
    states = sorted((path, state.st_size, state.st_mtime_ns) for path, state in found)
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _check_output(output: Path, overwrite: bool) -> None:
    if re.search(r"[\[\]*?]", str(output)):
        raise ValueError(f"{output}: load_dataset takes [, ], * and ? in a path for patterns; choose another folder")
    if not output.exists():
        return
    if not output.is_dir():
        raise FileExistsError(f"{output} is a file: name a folder")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{output} is not empty: choose another folder, or say --overwrite")
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if not _WRITTEN.fullmatch(name) or path.is_dir() != (name == "data"):
            raise FileExistsError(f"{output} will not be replaced: it holds {name!r}, which no build wrote")
    card = output / "README.md"
    if not card.exists() or b"albef-amc" not in card.read_bytes():
        raise FileExistsError(f"{output} will not be replaced: it has no README.md that a build wrote")


def _command(name: str, splits: Sequence[str] | None, limit: int | None, options: dict[str, Any]) -> str:
    """The command that builds this again: what differs from the defaults, of paths only what is in the data folder."""
    defaults = {field.name: field.default for field in dataclasses.fields(BUILDERS[name][1])}
    words = ["albef-amc", "build", name]
    for key, value in {**options, "limit": limit}.items():
        if value != defaults.get(key) or key == "data_dir":
            is_path = isinstance(value, str | Path) and (key != "annotations" or Path(value).is_absolute())
            text = Path(value).name if is_path else str(value)
            words += [f"--{key}"] if value is True else [f"--{key}", text]
    if splits is not None:
        words += ["--splits", *splits]
    return shlex.join(words)


def create_repository(repo_id: str, private: bool) -> str:
    """Makes the data set's repository on the Hub, if it is not there, and tries to write; returns its whole name."""
    from huggingface_hub import CommitOperationAdd, HfApi

    repo_id = HfApi().create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True).repo_id
    # A token may be good for reading only, which the Hub does not mind as long as the repository is there.
    HfApi().preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"# Data card")], repo_type="dataset")
    return repo_id


def upload(folder: Path, repo_id: str) -> str:
    """Uploads a built folder, and deletes there the Parquet files of an earlier build; returns the commit's address."""
    from huggingface_hub import HfApi

    there = [file.rfilename for file in HfApi().dataset_info(repo_id).siblings or []]
    commit = HfApi().upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        commit_message="Built by albef-amc",
        delete_patterns=[name for name in there if name.startswith("data/") and not (folder / name).exists()] or None,
    )
    return commit.commit_url


def _parser(prog: str, name: str, parser_class: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command line of one builder: the common options and its own."""
    options = BUILDERS[name][1]
    parser = parser_class(prog=f"{prog} {name}", description=options.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="build only these (default: all)")
    parser.add_argument("--limit", type=int, help="write at most this many rows of each split")
    parser.add_argument("--num_proc", type=int, help="processes (default: one for each processor)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier build wrote to the folder")
    parser.add_argument("--push_to_hub", metavar="ORG/NAME", help="upload the folder to this data set on the Hub")
    parser.add_argument("--private", action="store_true", help="make that data set private, if it is new")
    for field in dataclasses.fields(options):
        text = field.metadata["help"]
        if field.default is False:
            parser.add_argument(f"--{field.name}", action="store_true", help=text)
            continue
        kind = str if field.default is None else type(field.default)
        default = "" if field.default is None else " (default: %(default)s)"
        required = field.name == "data_dir"
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, required=required, help=text + default)
    return parser


def main(
    arguments: Sequence[str] | None = None,
    prog: str = "python -m dataset_scripts.build",
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> None:
    """The command line; `arguments` without the program's name. Options may be written with dashes, too."""
    arguments = sys.argv[1:] if arguments is None else arguments
    arguments = [re.sub("^--[^=]+", lambda option: "--" + option[0][2:].replace("-", "_"), word) for word in arguments]
    top = parser_class(
        prog=prog,
        description="Build a dataset as a folder of Parquet files for datasets.load_dataset.",
        epilog="datasets:\n" + "\n".join(f"  {name:20} {each.__doc__}" for name, (_, each) in BUILDERS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "dataset", choices=list(BUILDERS), metavar="DATASET", help="one of those below; see DATASET --help"
    )
    name = top.parse_args(arguments[:1]).dataset
    options = vars(_parser(prog, name, parser_class).parse_args(arguments[1:]))
    repo_id, private = options.pop("push_to_hub"), options.pop("private")

    from huggingface_hub.errors import HTTPError

    hub_errors = HTTPError, OSError, ValueError  # refused, not reached, offline on purpose, no such name
    try:
        if repo_id is not None:
            repo_id = create_repository(repo_id, private)
    except hub_errors as error:
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
        except hub_errors as error:
            again = f"hf upload {repo_id} {folder} --repo-type dataset --delete 'data/*.parquet'"
            sys.exit(f"error: {folder} is whole, but was not uploaded. Try again with `{again}`.\n{error}")


if __name__ == "__main__":
    main()
