"""The data card of a built data set: what is in it, where it comes from, and under which licence."""

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

# What each column of `features.FEATURES` holds.
COLUMNS = {
    "image": "what the phrase is about",
    "image_id": "the same for all rows of an image, which follow each other: `builder/name in the source#mark`, where "
    "the mark tells photos of one name apart",
    "phrase": "what is looked for in the image",
    "boxes": "one for each instance of the phrase, `[x1, y1, x2, y2]` in pixels of the image, half-open; none for a "
    "phrase without a region",
    "masks": "one for each instance, in the same order: an 8-bit PNG of the image's size, 0 and 255; none where only "
    "boxes are known",
    "caption": "the sentence that the phrase is a part of, its words parted by single blanks; or none",
    "caption_span": '(first, end): `caption.split(" ")[first:end]` are the phrase\'s words; empty without a caption',
    "categories": "kinds of the phrase, such as “people”, where the source has them",
    "proposals": "a detector's boxes in the image, as `boxes`, where there are some",
    "absent": "whether the phrase is known to fit nothing in the image",
}
SIZES = (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")
UNKNOWN_LICENSE = (
    "The source states no licence that the builder knows of: look it up there before you publish or use this data."
)


def data_card(
    builder: datasets.GeneratorBasedBuilder, name: str, command: str, repo_id: str | None = None
) -> DatasetCard:
    """
    The card that makes a folder of Parquet files a data set: the YAML that `load_dataset` reads, and text for people.

    Args:
        builder: after its run: `info` has the counts, `report` what was kept and dropped, `source` where it is from.
        name: of the builder. command: that builds it, without any path.
        repo_id: its name on the Hub, for the code that loads it.
    """
    info = builder.info
    rows = sum(split.num_examples for split in info.splits.values())
    data = DatasetCardData(
        pretty_name=f"albef-amc {name}",
        license=info.license or None,
        language="en",
        size_categories=next((size for limit, size in SIZES if rows < limit), "n>1M"),
        task_categories=["zero-shot-object-detection"],
        tags=["visual-grounding", "referring-expressions"],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in info.splits]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    splits = [(split, f"{info.splits[split].num_examples:,}") for split in info.splits]
    columns = [(f"`{column}`", _type(info.features[column]), COLUMNS[column]) for column in info.features]
    kept = [(what, f"{count:,}") for what, count in sorted(builder.report.kept.items())]
    dropped = [(reason, f"{count:,}") for reason, count in sorted(builder.report.dropped.items())]
    sections = [
        f"# {data.pretty_name}",
        info.description.strip(),
        "## How to use",
        USAGE.format(id=repo_id or "path/to/this/folder", split=next(iter(info.splits))),
        "## Splits",
        _table(("split", "rows"), splits),
        "## Columns",
        "One row is one phrase with its image. The region of a phrase is the union of its instances.",
        _table(("column", "type", "holds"), columns),
        "## How it was made",
        f"`{command}`, by the project albef-amc.",
        _table(("kept", "number"), kept),
        _table(("dropped, by reason", "number"), dropped) if dropped else "No record was dropped.",
        "## Source and licence",
        builder.source.strip(),
        f"Home: {info.homepage}" if info.homepage else "",
        f"Licence: {info.license}." if info.license else UNKNOWN_LICENSE,
        f"## Citation\n\n```bibtex\n{info.citation.strip()}\n```" if info.citation else "",
    ]
    text = "\n\n".join(section for section in sections if section)
    return DatasetCard(f"---\n{data}\n---\n\n{text}\n")


USAGE = """```python
from datasets import load_dataset

dataset = load_dataset("{id}", split="{split}")  # streaming=True reads it without downloading all of it
row = dataset[0]
print(row["phrase"], row["boxes"], row["image"].size)
```"""


def _type(feature: object) -> str:
    """A feature in a few words."""
    if isinstance(feature, datasets.List):
        return (
            f"list of {_type(feature.feature)}"
            if feature.length == -1
            else f"{feature.length} × {_type(feature.feature)}"
        )
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__.lower()


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
