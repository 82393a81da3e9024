"""Photo and lines in, the view out: the dictionary that the viewer shows and that the Space's API answers with."""

import base64
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import nn

from modeling_albef_amc import clean_text, gradcam
from modeling_albef_amc.families.registry import FAMILIES, explain_function
from modeling_albef_amc.gradcam import average_tokens
from modeling_albef_amc.pipeline import max_tokens
from modeling_albef_amc.processing_albef import cleans_text, post_process_grounding, span_tokens, tokenize_phrases
from modeling_albef_amc.tokenization_albef import cleaned_span, span_characters
from models import Entry, Loaded, ModelError, load_own, load_strangers

MAX_PHRASES = 16
MAX_CHARACTERS = 4000
MAX_MODELS = 4
MAX_ENCODINGS = 32
# Of the picture in the answer, in pixels; points, boxes and maps are of the photo itself.
PREVIEW_SIDE = 1280


class LinesError(ValueError):
    """A sentence for the visitor: what is wrong with the lines, and what to do."""


class Recent:
    """The last few values by key; the one not asked for the longest goes first. Many threads may use it at once."""

    def __init__(self, size: int):
        self.size, self.values, self.lock = size, OrderedDict(), threading.Lock()

    def get(self, key: Hashable) -> Any:
        """The value, or None."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
            return self.values.get(key)

    def put(self, key: Hashable, value: Any) -> None:
        with self.lock:
            self.values[key] = value
            self.values.move_to_end(key)
            while len(self.values) > self.size:
                self.values.popitem(last=False)


class RememberingEncoder(nn.Module):
    """An image encoder that does not encode the same pixels again while it remembers them."""

    def __init__(self, encoder: nn.Module, remembered: Recent):
        super().__init__()
        # An object of its own tells its encodings from those of other encoders, as long as they are remembered.
        self.encoder, self.remembered, self.name = encoder, remembered, object()

    def forward(self, pixel_values: torch.Tensor, **options) -> Any:
        pixels = hashlib.sha256(pixel_values.cpu().contiguous().numpy()).digest()
        key = self.name, pixels, tuple(pixel_values.shape), tuple(sorted(options.items()))
        encoded = self.remembered.get(key)
        if encoded is None:
            encoded = self.encoder(pixel_values, **options)
            self.remembered.put(key, encoded)
        return encoded


class Grounder:
    """
    Answers requests with models that it keeps: the catalogue's, the owner's, and the last few that visitors named.

    Args:
        catalogue: its first model is the default one.
        preferred: a Hub id or folder to be first instead; if it cannot be loaded, the page says so.
        max_models, max_encodings: how many models, and encoded images of all models together, are kept.

    Raises:
        ModelError: the default model cannot be loaded.
    """

    def __init__(
        self,
        catalogue: list[Entry],
        preferred: str | None = None,
        max_models: int = MAX_MODELS,
        max_encodings: int = MAX_ENCODINGS,
    ):
        self.models, self.encodings = Recent(max_models), Recent(max_encodings)
        self.loading, self.loading_a_strangers = threading.Lock(), threading.Lock()
        self.note = None
        if preferred is not None:
            known = [entry for entry in catalogue if entry.id == preferred]
            entry = known[0] if known else Entry(preferred, preferred.rstrip("/").split("/")[-1], "see its card")
            try:
                self.keep(load_own(entry))
                catalogue = [entry, *(other for other in catalogue if other != entry)]
            except ModelError as error:
                self.note = f"{error} Shown instead: {catalogue[0].title}."
        self.catalogue = {entry.id: entry for entry in catalogue}
        self.default = catalogue[0].id
        self.load(self.default)

    def load(self, model_id: str) -> Loaded:
        """The model, from memory where it is kept.

        Raises:
            ModelError: there is no such model here.
        """
        loaded = self.models.get(model_id)
        if loaded is not None:
            return loaded
        if model_id in self.catalogue:
            with self.loading:
                return self.models.get(model_id) or self.keep(load_own(self.catalogue[model_id]))
        if not self.loading_a_strangers.acquire(blocking=False):
            raise ModelError("Another model is just being loaded: try again in a minute, or choose one of the list.")
        try:
            return self.keep(load_strangers(model_id))
        finally:
            self.loading_a_strangers.release()

    def keep(self, loaded: Loaded) -> Loaded:
        loaded.model.vision_model = RememberingEncoder(loaded.model.vision_model, self.encodings)
        self.models.put(loaded.entry.id, loaded)
        return loaded

    def describe(self, entry: Entry) -> dict[str, Any]:
        note = self.note if entry.id == self.default else None
        return {"id": entry.id, "title": entry.title, "trained_on": entry.trained_on, "note": note}

    def ground(
        self,
        photo: Image.Image,
        lines: str,
        model: str | None = None,
        compare: str | None = None,
        layer: int | None = None,
        link: str | None = None,
    ) -> dict[str, Any]:
        """
        Args:
            photo: RGB, upright.
            lines: one phrase a line.
            model, compare: Hub ids, or ids of the catalogue; the default model, and none to compare with.
            layer: the explained layer of the text encoder; default: each model's own.
            link: what stands for the photo in a link to this view.

        Returns: the view: "photo", "models", "phrases", "request", as README.md describes it.

        Raises:
            ModelError, LinesError: a sentence for the visitor.
        """
        phrases = read_lines(lines)
        loaded = [self.load(model or self.default)]
        if compare and compare != loaded[0].entry.id:
            loaded.append(self.load(compare))
        answers = [explain(each, photo, phrases, layer) for each in loaded]
        return {
            "photo": {"src": preview(photo), "width": photo.width, "height": photo.height, "link": link},
            "models": [self.describe(each.entry) for each in loaded],
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
    """The phrases, with single blanks between their words.

    Raises:
        LinesError: there is none, or there are too many, or far too long ones.
    """
    if len(lines) > MAX_CHARACTERS:
        raise LinesError(f"This text has {len(lines)} letters; at most {MAX_CHARACTERS} are read: shorten it.")
    phrases = [" ".join(line.split()) for line in lines.splitlines() if line.strip()]
    if not phrases:
        raise LinesError("Write at least one phrase, for example: the red cup.")
    if len(phrases) > MAX_PHRASES:
        raise LinesError(f"These are {len(phrases)} phrases; at most {MAX_PHRASES} are answered at a time.")
    return phrases


def explain(loaded: Loaded, photo: Image.Image, phrases: list[str], layer: int | None) -> list[dict[str, Any]]:
    """What one model says of each phrase: score, point, box, map, and a map for every word.

    Raises:
        LinesError: a phrase has no word, or more than the model reads; or the model has no such layer.
    """
    model, processor = loaded.model, loaded.processor
    words = [tokens_of_words(loaded, phrase) for phrase in phrases]
    pixel_values = processor(images=photo, return_tensors="pt")["pixel_values"].to(model.device)
    inputs = tokenize_phrases(processor, phrases).to(model.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    of_photo = torch.zeros(len(phrases), dtype=torch.long, device=model.device)
    with loaded.lock, torch.no_grad():
        try:
            explained = explain_function(model)(model, pixel_values, ids, mask, of_photo, layer=layer)
        except ValueError as error:
            raise LinesError(f"This cannot be explained: {error}") from error
        maps = gradcam(explained, per_token=True).cpu()
    if not FAMILIES[model.config.model_type].has_token_maps:
        words = [[[] for _ in of_phrase] for of_phrase in words]
    answers, mask = [], explained.token_mask.cpu()
    whole = average_tokens(maps, mask)
    for number, probability in enumerate(explained.probability.tolist()):
        # One by one: of a large photo, the maps of all phrases together would take gigabytes.
        (found,) = post_process_grounding(whole[number][None], (photo.height, photo.width))
        answers.append(
            {
                "score": probability,
                "present": probability >= loaded.entry.absent_below,
                "point": list(found["point"]),
                "box": list(found["box"]),
                "map": packed(whole[number]),
                "words": [word_answer(maps[number], tokens) for tokens in words[number]],
            }
        )
    return answers


def word_answer(maps: torch.Tensor, tokens: list[int]) -> dict[str, Any]:
    """The mean map of a word's tokens. A word that the model does not see has none, and no map.

    Args:
        maps: (num_tokens, rows, columns).
        tokens: the word's.
    """
    return {"map": packed(maps[tokens].mean(dim=0)) if tokens else None, "tokens": len(tokens)}


def tokens_of_words(loaded: Loaded, phrase: str) -> list[list[int]]:
    """Which tokens belong to each word of a phrase; none to a word that cleaning leaves nothing of.

    Raises:
        LinesError: the phrase has no word, or more than the model reads.
    """
    text, characters, num_words = phrase, span_characters, len(phrase.split(" "))
    if cleans_text(loaded.processor):
        # The processor would cut it silently.
        most = loaded.processor.max_words
        text = clean_text(phrase, max_words=len(phrase))
        if len(text.split(" ")) > most:
            raise LinesError(f"“{phrase[:40]}…” has {num_words} words; the model reads {most}: shorten it.")
        characters = partial(cleaned_span, max_words=most)
    encoded = loaded.processor.tokenizer(text, return_offsets_mapping=True, return_attention_mask=True)
    offsets, mask = encoded["offset_mapping"], encoded["attention_mask"]
    most = max_tokens(loaded.model.config)
    if len(mask) > most:
        raise LinesError(f"“{phrase[:40]}…” has {len(mask)} word pieces; the model reads {most}: shorten it.")
    words = []
    for number in range(num_words):
        try:
            (chosen,) = span_tokens([offsets], [mask], [phrase], [(number, number + 1)], characters)
        except ValueError:  # nothing is left of this word
            chosen = []
        words.append([token for token, is_chosen in enumerate(chosen) if is_chosen])
    if not any(words):
        raise LinesError(f"“{phrase[:40]}” has no word that can be looked for: write one, or leave the line out.")
    return words


def packed(heatmap: torch.Tensor) -> dict[str, Any]:
    """(rows, columns) → a map as the viewer reads it."""
    values = heatmap.float().contiguous().numpy().astype("<f4").tobytes()
    return {"rows": heatmap.shape[0], "columns": heatmap.shape[1], "values": base64.b64encode(values).decode()}


def preview(photo: Image.Image) -> str:
    """The photo as a data URL, reduced where it is larger than a screen shows."""
    scale = PREVIEW_SIDE / max(photo.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in photo.size)
        photo = photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
