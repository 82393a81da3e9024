"""The paper's benchmarks as data: how each is evaluated, and what has been published on it (AMC, arXiv 2206.15462)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Every metric in a sentence, for reports. The first of a protocol is the one that tables show.
METRICS = {
    "pointing_game": "The heatmap is upsampled bicubically to the size of the image; its first maximum in row order "
    "must lie strictly inside a box of the phrase.",
    "box_accuracy": "Of the detector's proposals the one with the highest sum(heatmap inside) / area ** 0.5 must have "
    "an intersection over union of at least 0.5 with a box of the phrase, pixels counted inclusively. A phrase "
    "without a proposal that scores above 0 counts as wrong.",
    "heatmap_box": "No detector: the box around the pixels that reach half the heatmap's range and hang together with "
    "its maximum must have an intersection over union of at least 0.5 with a box of the phrase.",
}
TITLES = {"pointing_game": "pointing accuracy", "box_accuracy": "box accuracy", "heatmap_box": "heatmap-box accuracy"}

# (split, metric) → percent.
Scores = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Protocol:
    """How phrases are grounded and how the answers are scored.

    Args:
        metrics: of METRICS; none to ground only. Phrases without a box are not scored.
        image_size: pixels a side that images are resized to; None for the checkpoint's own.
        max_words: words kept of a phrase; None for the checkpoint's own.
        in_caption: ask with the caption that a phrase is a part of, and average the maps of the phrase's word pieces
            only; the probability is the whole caption's. Otherwise the phrase is asked alone, as published.
        one_box: every phrase has exactly one box at most; several are an error. Otherwise any of them will do.
        splits: that are evaluated by default.
        published: method → its scores.
    """

    name: str = "pointing game"
    metrics: tuple[str, ...] = ("pointing_game", "heatmap_box")
    image_size: int | None = None
    max_words: int | None = None
    in_caption: bool = False
    one_box: bool = False
    splits: tuple[str, ...] = ("test",)
    published: Mapping[str, Scores] = field(default_factory=dict)

    def spelled_out(self) -> dict[str, Any]:
        """All that a reader of the scores must know, for JSON."""
        in_caption = "the caption, for its score; the heatmap is the mean of the maps of the phrase's word pieces"
        return {
            "name": self.name,
            "image_size": self.image_size,
            "max_words": self.max_words,
            "text": in_caption if self.in_caption else "the phrase alone",
            "boxes": "one box a phrase" if self.one_box else "any box of the phrase",
            "metrics": {metric: METRICS[metric] for metric in self.metrics},
        }


def _pointing(percent: float) -> Scores:
    return {("test", "pointing_game"): percent}


def _refcoco(*percents: float) -> Scores:
    """Of testA and testB, by the pointing game and, where they are known, box accuracy."""
    places = [(split, metric) for metric in ("pointing_game", "box_accuracy") for split in ("testA", "testB")]
    return dict(zip(places, percents))


GROUNDING_ONLY = Protocol(name="grounding", metrics=())
BENCHMARKS = {
    "flickr30k": Protocol(
        name="Flickr30k Entities",
        image_size=256,
        max_words=50,
        published={
            "ALBEF, no tuning": _pointing(79.38),
            "ALBEF + AMC (VG boxes)": _pointing(86.49),
            "SelfEQ (VG, no boxes)": _pointing(81.90),
            "SelfEQ (COCO, no boxes)": _pointing(84.07),
            "SynGround (real + synthetic)": _pointing(87.26),
            "VMRM (detector-based)": _pointing(81.11),
            "InfoGround (detector-based)": _pointing(76.74),
        },
    ),
    "refcoco+": Protocol(
        name="RefCOCO+",
        metrics=("pointing_game", "box_accuracy", "heatmap_box"),
        image_size=384,
        max_words=30,
        one_box=True,
        splits=("testA", "testB"),
        published={
            "ALBEF, no tuning": _refcoco(69.35, 53.77, 65.89, 46.25),
            "ALBEF + AMC (VG boxes)": _refcoco(78.89, 61.16, 80.34, 64.55),
            "SelfEQ (no boxes)": _refcoco(75.10, 55.49),
            "SynGround (real + synthetic)": _refcoco(79.06, 63.67),
            "VMRM (detector-based)": _refcoco(58.87, 50.32),
            "InfoGround (detector-based)": _refcoco(39.80, 41.11),
        },
    ),
    "referit": Protocol(
        name="ReferIt",
        image_size=384,
        max_words=30,
        published={
            "ALBEF, no tuning (derived)": _pointing(59.72),
            "ALBEF + AMC (VG boxes)": _pointing(73.17),
            "SelfEQ (VG, no boxes)": _pointing(67.40),
            "SelfEQ (COCO, no boxes)": _pointing(62.75),
        },
    ),
}


def table(title: str, columns: list[str], rows: Mapping[str, Mapping[str, float]], decimals: int = 1) -> str:
    """Percentages as Markdown, one row a method: method → column → percent; "–" stands for what is missing."""
    width = max(len(name) for name in [title, *rows])
    widths = [max(len(column), decimals + 3) for column in columns]
    lines = [f"| {title:{width}} | " + " | ".join(f"{c:>{w}}" for c, w in zip(columns, widths)) + " |"]
    lines.append(f"|{'-' * (width + 2)}|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    for name, scores in rows.items():
        cells = (f"{scores[c]:{w}.{decimals}f}" if c in scores else f"{'–':>{w}}" for c, w in zip(columns, widths))
        lines.append(f"| {name:{width}} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def published_table(protocol: Protocol, models: Mapping[str, Any], splits: list[str]) -> str:
    """Own scores below the published ones, in percent, for these splits; boxes found without a detector come last.

    Args:
        models: name → split → summary of `scoring.summarize`.
    """
    places = {(split, metric): f"{split}, {TITLES[metric]}" for metric in protocol.metrics for split in splits}
    rows = {
        name: {title: scores[place] for place, title in places.items() if place in scores}
        for name, scores in protocol.published.items()
    }
    own = {
        f"{name}, in captions" if protocol.in_caption else name: {
            title: 100 * of[split][metric]["accuracy"]
            for (split, metric), title in places.items()
            if metric in of[split]
        }
        for name, of in models.items()
    }
    columns = [title for title in places.values() if any(title in row for row in own.values())]
    return table(protocol.name, columns, rows | own, decimals=2)
