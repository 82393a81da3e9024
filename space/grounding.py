"""Image and lines in, the view out: the dictionary that the viewer shows and that the Space's API answers with."""

import base64
import io
from typing import Any

import torch
from PIL import Image

from errors import VisitorError
from modeling_albef_amc import clean_text
from modeling_albef_amc.families.auto import AutoGrounder
from modeling_albef_amc.families.processors import cleans_text, tokenize_phrases
from modeling_albef_amc.families.registry import FAMILIES
from modeling_albef_amc.gradcam import average_tokens
from modeling_albef_amc.processing_albef import post_process_grounding
from models import Loaded, ModelStore

MAX_PHRASES = 16
MAX_CHARACTERS = 4000
# Of the image in the answer, in pixels; points, boxes and maps are of the image itself.
PREVIEW_SIDE = 1280


def ground_lines(
    store: ModelStore,
    image: Image.Image,
    lines: str,
    model: str | None = None,
    compare: str | None = None,
    layer: int | None = None,
    link: str | None = None,
) -> dict[str, Any]:
    """The view: "photo", "models", "phrases", "request", as README.md describes it.

    Args:
        image: RGB, upright. lines: one phrase a line.
        model, compare: Hub ids, or ids of the catalogue; default: the default model, and none to compare with.
        link: what stands for the image in a link to this view.
    """
    phrases = read_lines(lines)
    loaded = [store.load(name) for name in dict.fromkeys([model or store.default, compare]) if name]
    answers = [explain(each, image, phrases, layer) for each in loaded]
    return {
        "photo": {"src": preview(image), "width": image.width, "height": image.height, "link": link},
        "models": [store.describe(each.entry) for each in loaded],
        "phrases": [
            {"text": phrase, "words": phrase.split(" "), "answers": list(of_phrase)}
            for phrase, of_phrase in zip(phrases, zip(*answers, strict=True), strict=True)
        ],
        "request": {
            "lines": "\n".join(phrases),
            "model": loaded[0].entry.id,
            "compare": loaded[1].entry.id if len(loaded) > 1 else None,
            "layer": layer,
        },
    }


def read_lines(lines: str) -> list[str]:
    """The phrases, with single blanks between their words."""
    if len(lines) > MAX_CHARACTERS:
        raise VisitorError(f"This text has {len(lines)} letters; at most {MAX_CHARACTERS} are read: shorten it.")
    phrases = [" ".join(line.split()) for line in lines.splitlines() if line.strip()]
    if not phrases:
        raise VisitorError("Write at least one phrase, for example: the red cup.")
    if len(phrases) > MAX_PHRASES:
        raise VisitorError(f"These are {len(phrases)} phrases; at most {MAX_PHRASES} are answered at a time.")
    return phrases


def explain(loaded: Loaded, image: Image.Image, phrases: list[str], layer: int | None) -> list[dict[str, Any]]:
    """What one model says of each phrase: probability, point, box, map, and a map for every word."""
    grounder = loaded.grounder
    _, pixel_values = grounder.read(image)
    with loaded.lock:
        words = [word_tokens(grounder, phrase) for phrase in phrases]
        try:
            all_on_one = torch.zeros(len(phrases), dtype=torch.long)
            (attention,) = grounder.attend(pixel_values, grounder.tokenize(phrases), all_on_one, layer=layer)
        except ValueError as error:
            raise VisitorError(f"This cannot be explained: {error}") from error
        _, heatmaps_of = grounder.method_functions(None)
        token_maps = heatmaps_of(attention, per_token=True).cpu()
    if not FAMILIES[grounder.model.config.model_type].has_token_maps:
        words = [[[] for _ in of_phrase] for of_phrase in words]
    maps, answers = average_tokens(token_maps, attention.token_mask.cpu()), []
    for number, probability in enumerate(attention.probability.tolist()):
        # One by one: of a large image, the maps of all phrases together would take gigabytes.
        (found,) = post_process_grounding(maps[number, None], (image.height, image.width))
        answers.append(
            {
                "score": probability,
                "present": probability >= loaded.entry.absent_below,
                "point": list(found["point"]),
                "box": list(found["box"]),
                "map": packed(maps[number]),
                "words": [
                    {"map": packed(token_maps[number, tokens].mean(dim=0)) if tokens else None, "tokens": len(tokens)}
                    for tokens in words[number]
                ],
            }
        )
    return answers


def word_tokens(grounder: AutoGrounder, phrase: str) -> list[list[int]]:
    """Which tokens belong to each word of a phrase; none to a word that cleaning leaves nothing of."""
    processor, shown = grounder.processor, f"“{phrase[:40]}…”"
    if cleans_text(processor):
        num_words = len(clean_text(phrase, max_words=len(phrase)).split(" "))
        if num_words > processor.max_words:  # it would cut them silently
            raise VisitorError(f"{shown} has {num_words} words; the model reads {processor.max_words}: shorten it.")
    spans = [(word, word + 1) for word in range(len(phrase.split(" ")))]
    words = tokens_at(grounder, phrase, spans)
    if any(words):
        return words
    try:
        num_tokens = tokenize_phrases(processor, [phrase])["input_ids"].shape[1]
    except ValueError:
        num_tokens = 0
    if num_tokens > grounder.max_tokens:
        raise VisitorError(f"{shown} has {num_tokens} word pieces; the model reads {grounder.max_tokens}: shorten it.")
    raise VisitorError(f"“{phrase[:40]}” has no word that can be looked for: write one, or leave the line out.")


def tokens_at(grounder: AutoGrounder, phrase: str, spans: list[tuple[int, int]]) -> list[list[int]]:
    """The tokens of each (first, end) span of words; none where cleaning leaves nothing of it."""
    try:
        tokens = grounder.tokenize([{"caption": phrase, "caption_span": span} for span in spans])
    except ValueError:  # nothing is left of one of them
        return [tokens_at(grounder, phrase, [span])[0] for span in spans] if len(spans) > 1 else [[]]
    return [row.nonzero().flatten().tolist() for row in tokens.heatmap_token_mask]


def packed(heatmap: torch.Tensor) -> dict[str, Any]:
    """(rows, columns) → a map as the viewer reads it."""
    values = heatmap.float().contiguous().numpy().astype("<f4").tobytes()
    return {"rows": heatmap.shape[0], "columns": heatmap.shape[1], "values": base64.b64encode(values).decode()}


def preview(image: Image.Image) -> str:
    """The image as a data URL, reduced where it is larger than a screen shows."""
    image, file = image.copy(), io.BytesIO()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BILINEAR)
    image.save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
