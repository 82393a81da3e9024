"""Where the images of a data set are: beside the files that name them, in archives, at addresses."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

import pyarrow as pa
from datasets import Dataset, Image, IterableDataset, LargeList, List, Value
from datasets.table import table_cast

from modeling_albef_amc.images import download


def place_images(
    table: pa.Table, names: list[str], folders: list[str], schema: pa.Schema, fetch: bool = False
) -> pa.Table:
    """Paths in these columns, and images that are only a path, as images in files; see `placed`.

    Args:
        fetch: images that are addresses, too; those that cannot be had stay addresses, which are named when it is
            their turn.

    Raises ValueError: there is a relative path, and another number of folders.
    """
    contents: dict[str, bytes | None] = {}

    def place(image: str | dict | list | None) -> dict | list | None:
        if isinstance(image, list):
            return [place(each) for each in image]
        image = {"bytes": None, "path": image} if isinstance(image, str) else image
        if image and image["bytes"] is None and image["path"] in contents:
            return {"bytes": contents[image["path"]], "path": image["path"]}
        if image and image["bytes"] is None and is_within(image["path"]):
            return read_within(image["path"])
        if not image or image["bytes"] is not None or "://" in (image["path"] or "://"):
            return image if image and any(image.values()) else None
        return {"bytes": None, "path": placed(image["path"], folders)}

    for name in names:
        given = table[name].to_pylist()
        if fetch:
            contents = fetched(addresses_in(given))
        images = pa.array(place(given), schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, images)
    return table_cast(table, schema)


def placed(path: str, folders: list[str]) -> str:
    """Where the file of a path is, by whichever spelling of it there is one: equal paths are equal images.

    Raises ValueError: as of `place_images`.
    """
    name = os.path.normpath(path)
    if len(folders) != 1 and not os.path.isabs(name):
        raise ValueError(f"Files in several folders name images by relative paths, such as {path}: keep them in one.")
    forms = [name]
    if "\\" in name or "%" in name or not name.isascii():  # of Windows; as in addresses; of another form of Unicode
        called = [each.replace("\\", "/") for each in (unquote(name), name)]
        forms += [os.path.normpath(normalize(form, each)) for each in called for form in ("NFD", "NFC")]
    wholes = [os.path.join("".join(folders[:1]), form) for form in forms]
    return next(filter(os.path.isfile, wholes[:-1]), wholes[-1])


def image_key(path: str, folders: list[str]) -> str:
    """What two paths of the same image have in common; errors as of `placed`."""
    place = path if "://" in path else placed(path, folders)
    return os.path.realpath(place) if os.path.exists(place) else place


def addresses_in(images: Any) -> set[str]:
    if isinstance(images, list):
        return set().union(*map(addresses_in, images))
    path = images.get("path") if isinstance(images, dict) and images["bytes"] is None else images
    return {path} if isinstance(path, str) and is_address(path) else set()


def fetched(addresses: set[str]) -> dict[str, bytes | None]:
    """What is there; None of what cannot be had."""

    def fetch(address: str) -> bytes | None:
        try:
            return download(address, timeout=30)
        except ConnectionError:
            return None

    with ThreadPoolExecutor(16) as pool:
        return dict(zip(addresses, pool.map(fetch, addresses)))


def is_address(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def is_within(path: str | None) -> bool:
    """Whether a file is in an archive, or on the Hub, by the address that datasets gives it."""
    return bool(path) and path.startswith(("zip://", "hf://"))


def read_within(path: str) -> dict[str, Any]:
    """An image `is_within`: its bytes, under its name there."""
    stored = pa.array([{"bytes": None, "path": path}], Image().pa_type)
    try:
        (image,) = Image().embed_storage(stored).to_pylist()
    except FileNotFoundError:  # named when it is its turn
        image = {"bytes": None}
    return image | {"path": path.partition("::")[0].partition("://")[2]}


def is_unplaced(path: str | None) -> bool:
    """Whether it is relative, or has more than one spelling."""
    return bool(path) and "://" not in path and not (os.path.isabs(path) and os.path.normpath(path) == path)


def has_paths(dataset: Dataset | IterableDataset, name: str, fetch: bool) -> bool:
    """Whether a column of images may hold relative paths, files in archives, or addresses to fetch; of undecoded images
    on disk, whether it does."""
    feature = dataset.features[name]
    while isinstance(feature, List | LargeList):
        feature = feature.feature
    if isinstance(feature, Value) or isinstance(dataset, IterableDataset):
        return not isinstance(feature, Value) or feature.dtype in ("string", "large_string")
    for table in dataset.select_columns([name]).with_format("arrow").iter(batch_size=1000):
        for images in table[name].chunks:
            while pa.types.is_nested(images.type) and not pa.types.is_struct(images.type):
                images = images.flatten()
            paths = images.field("path").filter(images.field("bytes").is_null()).to_pylist()
            if any(is_unplaced(path) or is_within(path) or (fetch and path and is_address(path)) for path in paths):
                return True
    return False
