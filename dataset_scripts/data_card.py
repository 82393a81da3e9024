"""The data card of a built data set: what is in it, where it comes from, and under which licence."""

from collections import Counter
from pathlib import Path

from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from .builder import GroundingBuilder

_SIZES = (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")


def data_card(builder: GroundingBuilder, name: str, command: str, repo_id: str | None = None) -> DatasetCard:
    """The YAML that `load_dataset` reads, and text for people, of what a builder has built.

    Args:
        command: that builds it, without any path.
        repo_id: its name on the Hub, for the code that loads it.
    """
    info = builder.info
    rows = sum(split.num_examples for split in info.splits.values())
    data = DatasetCardData(
        pretty_name=f"albef-amc {name}",
        license=info.license or None,
        language="en",
        size_categories=next((size for limit, size in _SIZES if rows < limit), "n>1M"),
        task_categories=["zero-shot-object-detection"],
        tags=["visual-grounding", "referring-expressions"],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in info.splits]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return DatasetCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("data_card_template.md")),
        description=info.description.strip(),
        license_name=info.license,
        splits=[(split, f"{each.num_examples:,}") for split, each in info.splits.items()],
        kept=_sorted_counts(builder.report.kept),
        dropped=_sorted_counts(builder.report.dropped),
        command=command,
        repo_id=repo_id,
        source=builder.source.strip(),
    )


def _sorted_counts(counts: Counter[str]) -> list[tuple[str, str]]:
    return [(what, f"{count:,}") for what, count in sorted(counts.items())]
