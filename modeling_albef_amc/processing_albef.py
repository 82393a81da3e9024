"""Processor of ALBEF: images and phrases in, heatmaps, points and boxes in the images' own pixels out."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .gradcam import check_target_sizes, upsample_heatmaps
from .tokenization_albef import albef_tokenizer, clean_text, cleaned_span

# (first, end): the words `caption.split(" ")[first:end]`; None for all of it.
Span = Sequence[int] | None
# Options of tokenizers that a phrase has no use for: it is cleaned here, and is one row of tokens.
REFUSED = {
    "is_split_into_words": "a list of strings is a list of phrases: join the words of each phrase with blanks",
    "return_overflowing_tokens": "every phrase is one row of tokens: cut the phrases yourself",
    "text_pair": "a phrase is one text: join both",
    **dict.fromkeys(("text_target", "text_pair_target"), "a phrase has no target text"),
}


class AlbefCallKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict that mypy skips
    # Not in `valid_processor_kwargs`: its default is an argument of `__init__`, since only those are saved.
    max_words: int | None


class AlbefProcessor(ProcessorMixin):
    """An image processor and BERT's word pieces, cleaned and framed as ALBEF was trained: [CLS] in front, no [SEP].

    Args:
        image_processor: `AlbefImageProcessorPil` or its torchvision twin.
        tokenizer: any BERT tokenizer; the processor keeps a copy of it that adds no [SEP].
        max_words: words kept of a phrase: 50, and 30 for referring expressions. Calls can override it.

    >>> from PIL import Image
    >>> from modeling_albef_amc import AlbefImageProcessorPil, AlbefProcessor, tokenizer_from_texts
    >>> tokenizer = tokenizer_from_texts(["a red dog", "the tree"])
    >>> processor = AlbefProcessor(AlbefImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)
    >>> image = Image.new("RGB", (60, 40))
    >>> inputs = processor(images=image, text=["a red dog", "The tree!"], return_tensors="pt")
    >>> {name: tuple(value.shape) for name, value in inputs.items()}
    {'input_ids': (2, 4), 'attention_mask': (2, 4), 'pixel_values': (1, 3, 32, 32), 'image_index': (2,)}
    """

    def __init__(self, image_processor, tokenizer, max_words: int = 50):
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {max_words}")
        super().__init__(image_processor, albef_tokenizer(tokenizer))
        self.max_words = max_words

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | list[list[str]] | None = None,
        phrase_spans: Span | list[Span] | list[list[Span]] = None,
        **kwargs: Unpack[AlbefCallKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list of them.
            text: a phrase; a list of phrases, phrase i on image i or, when there is one image, all on that; or a list
                of lists, the phrases of each image (an image may have none).
            phrase_spans: to ground phrases in captions, laid out like `text`, which holds the captions: (first, end)
                are the words `caption.split(" ")[first:end]`, before the cleaning; None is the whole caption.
            kwargs: `return_tensors`, `max_words`, `max_length` (tokens, [CLS] included; without it no phrase is cut),
                and whatever the image processor and the tokenizer take.

        Returns: `pixel_values` (num_images, 3, height, width); `input_ids`, `attention_mask` (num_phrases, num_tokens);
            `image_index` (num_phrases,), where phrases come in lists of lists or are several on one image; with
            `phrase_spans`, `heatmap_token_mask` (num_phrases, num_tokens), 1 for the word pieces of the spans.

        Raises ValueError: a phrase, or a span, has nothing left after cleaning and cutting; phrases, spans and images
            do not match; an option asks for another layout of the tokens.
        """
        if images is None and text is None:
            raise ValueError("pass images, text or both: there is nothing to process")
        if text is None and phrase_spans is not None:
            raise ValueError("phrase_spans needs the captions that they are spans of: pass them as text")
        max_words = kwargs.pop("max_words", None)
        max_words = self.max_words if max_words is None else max_words
        merged = self._merge_kwargs(ProcessingKwargs, self.tokenizer.init_kwargs, **kwargs)
        merged["text_kwargs"].setdefault("padding", True)
        data = {}
        if text is not None:
            phrases, image_index = flatten_phrases(text)
            spans = None if phrase_spans is None else match_spans(phrase_spans, text)
            data.update(self._tokenize(phrases, spans, max_words, **merged["text_kwargs"]))
        if images is not None:
            data.update(self.image_processor(images, **merged["images_kwargs"]))
        if text is not None:
            if images is not None:
                image_index = match_phrases(text, phrases, image_index, len(data["pixel_values"]))
            data |= {} if image_index is None else {"image_index": image_index}
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def _tokenize(self, phrases: list[str], spans: list[Span] | None, max_words: int, **text_kwargs) -> dict[str, Any]:
        for option, instead in REFUSED.items():
            if text_kwargs.get(option):
                raise ValueError(f"{option} does not go with ALBEF's phrases: {instead}")
        if text_kwargs.get("add_special_tokens") is False:
            raise ValueError("add_special_tokens=False takes [CLS] away, which the model looks for at place 0")
        max_length = text_kwargs.get("max_length")
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length must leave room for [CLS] and a word: at least 2, got {max_length}")
        text_kwargs.setdefault("truncation", max_length is not None)
        encoded = self.tokenizer([clean_text(phrase, max_words) for phrase in phrases], **text_kwargs)
        for index, encoding in enumerate(encoded.encodings):
            # Looked for among the tokens, since control characters survive the cleaning but not the tokenizer.
            if 0 not in encoding.special_tokens_mask:
                raise ValueError(f"phrase {index} ({phrases[index]!r}) is empty after cleaning: leave it out")
        if spans is None:
            return dict(encoded)
        offsets, attention_mask = zip(*((encoding.offsets, encoding.attention_mask) for encoding in encoded.encodings))
        characters = partial(cleaned_span, max_words=max_words)
        return {**encoded, "heatmap_token_mask": span_tokens(offsets, attention_mask, phrases, spans, characters)}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Saves image processor, tokenizer and `max_words`, and the code that `trust_remote_code` runs."""
        # Else the last call's cutting and padding would be written into the tokenizer's file.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        # Belongs to the files alone: a processor is the same before and after it is saved.
        for saved in (self, self.image_processor):
            saved.__dict__.pop("auto_map", None)
        return files

    def post_process_grounding(self, heatmaps: Any, target_sizes: Any, threshold: float = 0.5) -> list[dict[str, Any]]:
        return post_process_grounding(heatmaps, target_sizes, threshold)


def flatten_phrases(text: Any) -> tuple[list[str], list[int] | None]:
    """The phrases in one list, and each one's image when they came in lists of lists."""
    if isinstance(text, str):
        return [text], None
    if not isinstance(text, list | tuple) or not text:
        raise ValueError(f"text must be a phrase, a list of phrases or a list of lists of phrases, got {text!r}")
    nested = all(isinstance(item, list | tuple) for item in text)
    phrases = [phrase for item in text for phrase in item] if nested else list(text)
    for index, phrase in enumerate(phrases):
        if not isinstance(phrase, str):
            raise ValueError(f"phrase {index} is {phrase!r}, not a string: pass phrases, or lists of phrases")
    if not phrases:
        raise ValueError("text holds no phrase: pass at least one")
    return phrases, [image for image, item in enumerate(text) for _ in item] if nested else None


def match_spans(phrase_spans: Any, text: Any) -> list[Span]:
    """One span a phrase, in one list, from spans that are laid out like `text`."""
    if isinstance(text, str):
        return [phrase_spans]
    if not isinstance(phrase_spans, list | tuple) or len(phrase_spans) != len(text):
        raise ValueError(f"phrase_spans must be laid out like text: {phrase_spans!r} does not fit {text!r}")
    return [span for spans, item in zip(phrase_spans, text, strict=True) for span in match_spans(spans, item)]


def span_tokens(
    offsets: Sequence, attention_mask: Sequence, captions: list[str], spans: list[Span], characters: Callable
) -> list[list[int]]:
    """Which tokens, at `offsets` (start, end) of the tokenized texts, are word pieces of the spans: 1, others 0, a row
    a caption; without a span, its attention mask. `characters`: caption, span → (start, end) in the tokenized text."""
    rows = []
    for index, (caption, span) in enumerate(zip(captions, spans, strict=True)):
        if span is None:
            rows.append(attention_mask[index])
            continue
        name = f"phrase {index} ({caption!r})"
        try:
            start, end = characters(caption, span)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        # [CLS] and padding are nowhere in the text: theirs is (0, 0).
        rows.append([int(max(start, first) < min(end, last)) for first, last in offsets[index]])
        if 1 not in rows[-1]:
            raise ValueError(f"{name}: no token is left of the words of the span {span!r}")
    return rows


# However a tokenizer was saved: models look for a phrase's first token at place 0.
TOKENIZED = {"padding": True, "padding_side": "right", "return_attention_mask": True, "return_tensors": "pt"}


def match_phrases(text: Any, phrases: list[str], image_index: list[int] | None, num_images: int) -> list[int] | None:
    """Each phrase's image; None when phrase i belongs to image i."""
    if image_index is not None:
        if len(text) != num_images:
            raise ValueError(f"text has {len(text)} lists of phrases for {num_images} images: pass one list an image")
        return image_index
    if len(phrases) == num_images:
        return None
    if num_images == 1:
        return [0] * len(phrases)
    raise ValueError(f"{len(phrases)} phrases for {num_images} images: pass one phrase an image, or a list of lists")


def post_process_grounding(
    heatmaps: Tensor | list[Tensor],
    target_sizes: Tensor | np.ndarray | list[tuple[int, int]] | tuple[int, int],
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Heatmaps of the patch grid → answers in the pixels of the original images.

    Args:
        heatmaps: (num_phrases, rows, columns), or a list of (rows, columns).
        target_sizes: (num_phrases, 2), the (height, width) in pixels of each phrase's image, or one pair for all.
        threshold: how far up from the map's minimum (0) to its maximum (1) a pixel must be to belong to the box.

    Returns: one dictionary a phrase. "heatmap": (height, width) float32, upsampled bicubically, not normalised.
        "point": (x, y), the pixel of its first maximum in row order. "box": (x1, y1, x2, y2), half-open, in pixels,
        around the pixels that reach the threshold and hang together, by their edges, with that point. Of a constant
        map they are (0, 0) and the whole image.

    >>> left = Tensor([[[1.0, 0.0], [1.0, 0.0]]])
    >>> (answer,) = post_process_grounding(left, target_sizes=(40, 60))
    >>> answer["box"], tuple(answer["heatmap"].shape)
    ((0, 0, 30, 40), (40, 60))
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    maps, results = check_heatmaps(heatmaps), []
    for heatmap, size in zip(maps, check_target_sizes(target_sizes, len(maps)), strict=True):
        upsampled = upsample_heatmaps(heatmap[None], size)[0]
        y, x = divmod(upsampled.argmax().item(), size[1])
        results.append({"heatmap": upsampled, "point": (x, y), "box": box_around_point(upsampled, (x, y), threshold)})
    return results


def check_heatmaps(heatmaps: Tensor | list[Tensor]) -> list[Tensor]:
    """Maps one by one, (rows, columns) each and finite, detached."""
    if not isinstance(heatmaps, Tensor | list | tuple):
        raise ValueError(f"heatmaps must be a tensor, outputs.heatmaps with output_heatmaps=True, not {type(heatmaps)}")
    if isinstance(heatmaps, Tensor) and heatmaps.ndim != 3:
        raise ValueError(f"heatmaps must be (num_phrases, rows, columns), got the shape {tuple(heatmaps.shape)}")
    maps = [heatmap.detach() for heatmap in heatmaps]
    for index, heatmap in enumerate(maps):
        if heatmap.ndim != 2 or heatmap.numel() == 0:
            raise ValueError(f"heatmap {index} must be (rows, columns), got the shape {tuple(heatmap.shape)}")
        if not heatmap.isfinite().all():
            raise ValueError(f"heatmap {index} has NaN or infinite values: the model diverged or its input is broken")
    return maps


def box_around_point(heatmap: Tensor, point: tuple[int, int], threshold: float) -> tuple[int, int, int, int]:
    """The tight box, half-open xyxy, of the 4-connected region around `point` (x, y) that reaches the threshold."""
    low, high = heatmap.aminmax()
    inside = (heatmap - low >= threshold * (high - low)).cpu().numpy()
    # Whole runs instead of pixels: a smooth map has few.
    rows, starts, stops = horizontal_runs(inside)
    of_row = [bisect_left(rows, row) for row in range(len(inside) + 1)]
    x, y = point
    waiting = [bisect_right(starts, x, of_row[y], of_row[y + 1]) - 1]
    reached = set(waiting)
    while waiting:
        run = waiting.pop()
        for row in {max(rows[run] - 1, 0), min(rows[run] + 1, len(inside) - 1)}:
            bounds = of_row[row], of_row[row + 1]
            touching = range(bisect_right(stops, starts[run], *bounds), bisect_left(starts, stops[run], *bounds))
            waiting += {*touching} - reached
            reached |= {*touching}
    rows_reached = [rows[run] for run in reached]
    left, right = min(starts[run] for run in reached), max(stops[run] for run in reached)
    return left, min(rows_reached), right, max(rows_reached) + 1


def horizontal_runs(inside: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Of every unbroken run of True in a (height, width) array: row, first column, column after the last; in order."""
    width = inside.shape[1] + 1
    closed = np.zeros((len(inside), width + 1), dtype=bool)
    closed[:, 1:-1] = inside
    edges = np.flatnonzero(closed[:, 1:] != closed[:, :-1]).reshape(-1, 2)
    return (edges[:, 0] // width).tolist(), (edges[:, 0] % width).tolist(), (edges[:, 1] % width).tolist()
