"""`PhraseGrounder`, the engine: images and phrases in; scores, points, boxes and heatmaps in image pixels out."""

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import Pipeline, PreTrainedModel, ProcessorMixin
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .gradcam import PhraseAttention, attention_map, choose_tokens, gradcam
from .images import ImageSource, is_image, open_image
from .processing_albef import TOKENIZED, Span, post_process_grounding
from .tokenization_albef import check_characters, cleaned_words, is_blank
from .visualization import mark, overlay

# A phrase by itself, or in its caption: {"caption": "a man in a red hat", "caption_span": [3, 6]}.
Phrase = str | Mapping[str, Any]
Phrases = Phrase | list[Phrase]
Answer = dict[str, Any]
Explain = Callable[..., PhraseAttention]
ANSWER_OPTIONS = "threshold", "output_heatmaps", "output_pictures"


@dataclass
class Tokens:
    """Phrases, tokenized.

    - `phrases`: what is looked for; of a phrase in its caption the words of it.
    - The others (num_phrases, num_tokens), padded on the right. `heatmap_token_mask`: None for all tokens.
    """

    phrases: list[str]
    input_ids: Tensor
    attention_mask: Tensor
    heatmap_token_mask: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Tokens":
        mask = None if self.heatmap_token_mask is None else self.heatmap_token_mask[rows]
        return Tokens(self.phrases[rows], self.input_ids[rows], self.attention_mask[rows], mask)

    @classmethod
    def join(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """All phrases of the parts, padded to the longest."""

        def padded(columns: Iterable[Tensor]) -> Tensor:
            return pad_sequence([row for column in columns for row in column], batch_first=True)

        phrases = [phrase for part in parts for phrase in part.phrases]
        ids, mask = padded(part.input_ids for part in parts), padded(part.attention_mask for part in parts)
        if all(part.heatmap_token_mask is None for part in parts):
            return cls(phrases, ids, mask)
        chosen = (part.attention_mask if part.heatmap_token_mask is None else part.heatmap_token_mask for part in parts)
        return cls(phrases, ids, mask, padded(chosen))


@dataclass
class GroundedImage:
    """An image and its phrases on their way through the model.

    - `pixel_values` (1, 3, height, width) of the model; `size` (height, width) in pixels of the image itself.
    - `tokens`: None where there is no phrase. `image`: RGB, upright; None where no picture of it is wanted.
    - `scores`: a probability a phrase. `heatmaps`: (rows, columns) a phrase, or None.
    """

    pixel_values: Tensor
    size: tuple[int, int]
    tokens: Tokens | None
    image: Image.Image | None = None
    scores: Sequence[float] = ()
    heatmaps: Sequence[Tensor | None] = ()


class PhraseGrounder:
    """Says whether phrases fit images, and where in the images they are.

    Args:
        model: an ALBEF, or any model with `explain`; it is put into evaluation mode.
        processor: of the model; it must show the model whole images.
        explain: a function of model, pixel values, token ids, their mask, each phrase's image, which returns a
            `PhraseAttention` with its `probability`. Default: `model.explain`.
        encode_images: of model and pixel values, for `image_embeds` of `explain`: an image is encoded once for all its
            phrases. Default: `model.encode_images`, where `explain` is the model's own.
    """

    keeps_encodings = False  # from call to call
    tokenizing = threading.Lock()  # of all, as it cannot be pickled: a tokenizer keeps state in a call
    # Makes the context that the model runs in, such as `Accelerator.autocast`; heatmaps are made outside.
    autocast: Callable[[], AbstractContextManager] = nullcontext
    # By `method`, what turns the explanation of a pass into heatmaps.
    methods: dict[str, Callable[..., Tensor]] = {"gradcam": gradcam, "attention": attention_map}

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        explain: Explain | None = None,
        encode_images: Callable[..., Tensor] | None = None,
    ):
        if explain is None:
            if not hasattr(model, "explain"):
                model_type = model.config.model_type
                raise ValueError(f"No explanation is known for models of type {model_type!r}: pass explain")
            explain, encode_images = explain_itself, encode_itself
        self.model, self.processor, self.explain, self.encode_images = model.eval(), processor, explain, encode_images

    @property
    def max_tokens(self) -> int:
        """Word pieces of the longest phrase that the model reads."""
        return self.model.config.get_text_config().max_position_embeddings

    def ground(
        self,
        images: Any,
        phrases: Phrases | list[Phrases] | None = None,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        timeout: float = 30,
        **options: Any,
    ) -> Any:
        """
        Args:
            images: an image, see `open_image`; or a dictionary of "image" and "phrases"; or several of either, in a
                list, of pandas, or as what can only be gone through (a data set, a column of one, a generator).
            phrases: a phrase or a list of phrases for every image; or a list of lists, the phrases of each image. A
                phrase may be words of a caption: {"caption": "a man in a red hat", "caption_span": (3, 6)}.
            batch_size, num_workers: images a pass, forked processes that read indexed data. timeout: seconds for a URL.
            options: of `answer`: `threshold`, `output_heatmaps`, `output_pictures`; and of `explain_phrases`.

        Returns: a list of answers for one image, a list of such lists for a list of images, an iterator over such
            lists for a data set or a generator. One answer a phrase, a dictionary:
            - "phrase", "score": the phrase, and the probability in [0, 1] that it, or its caption, fits the image.
            - "point": (x, y) in pixels of the upright image, where the heatmap is highest.
            - "box": (x1, y1, x2, y2), half-open, in pixels, around the heat at that point.
            - "heatmap": (height, width) float32 array, not normalised.
            - "picture": the image under its heatmap, with point and box (Pillow, with `output_pictures`).

        Raises FileNotFoundError, ConnectionError: there is no such image. ValueError: an image is unreadable, a phrase
            is empty or too long, phrases and images do not match.
        """
        run = partial(self._run, batch_size=batch_size, num_workers=num_workers, timeout=timeout, **options)
        phrases = phrases if isinstance(phrases, str | Mapping | None) else list(phrases)  # of an iterator, too
        if hasattr(images, "iloc"):  # of pandas, whose rows have names
            images = images.to_dict("records") if hasattr(images, "columns") else images.tolist()
        if is_image(images) or isinstance(images, Mapping):
            return next(run([as_record(images, phrases)]))
        if isinstance(images, list | tuple | np.ndarray | Tensor):
            return list(run(Records(images, phrases)))
        if isinstance(images, Sized) and hasattr(images, "__getitem__"):
            return run(Records(images, phrases))
        if not isinstance(images, Iterable):
            raise ValueError(f"images must be an image, several images or a data set, not {type(images)}")
        pairs = zip(images, phrases, strict=True) if is_nested(phrases) else zip(images, repeat(phrases))
        return run(as_record(*pair) for pair in pairs)

    def score(self, images: Any, phrases: Phrases | list[Phrases] | None = None, **options: Any) -> Any:
        """The probability in [0, 1] that each phrase fits its image, in the layout of `ground`; no heatmaps."""
        answers = self.ground(images, phrases, output_points=False, **options)
        return map(scores_of, answers) if isinstance(answers, Iterator) else scores_of(answers)

    def _run(
        self, records: Any, batch_size: int, num_workers: int, timeout: float, **options: Any
    ) -> Iterator[list[Answer]]:
        explaining = {name: options.pop(name) for name in tuple(options) if name not in ANSWER_OPTIONS}
        # What is not indexed cannot be divided among processes, and a locked tokenizer not be handed to new ones.
        wrap, num_workers = (PipelineDataset, num_workers) if isinstance(records, Sized) else (PipelineIterator, 0)
        how = {"num_workers": num_workers, "multiprocessing_context": "fork" if num_workers else None}
        for batch in DataLoader(wrap(records, self.prepare, {"timeout": timeout}), batch_size, collate_fn=list, **how):
            for prepared in self.explain_phrases(batch, **explaining):
                yield self.answers(prepared, **options)

    def read(self, source: ImageSource, timeout: float = 30) -> tuple[Image.Image, Tensor]:
        """An image (RGB, upright), and its pixel values (1, 3, height, width). Errors: as of `open_image`."""
        image = open_image(source, timeout)
        return image, self.processor(images=[image], return_tensors="pt")["pixel_values"]

    def tokenize(self, phrases: list[Phrase]) -> Tokens:
        """Phrases, or words of captions, as the model takes them; several threads may call it."""
        texts, spans = map(list, zip(*map(text_and_span, phrases), strict=True))
        with self.tokenizing:
            inputs = self._tokenize(texts, None if all(span is None for span in spans) else spans)
        num_tokens, most = inputs["attention_mask"].sum(dim=1), self.max_tokens
        if num_tokens.max() > most:
            longest = texts[num_tokens.argmax()]
            raise ValueError(f"the phrase {longest!r} has {num_tokens.max()} word pieces, the model takes {most}")
        words = [text if span is None else " ".join(text.split(" ")[slice(*span)]) for text, span in zip(texts, spans)]
        return Tokens(words, inputs["input_ids"], inputs["attention_mask"], inputs.get("heatmap_token_mask"))

    def _tokenize(self, texts: list[str], spans: list[Span] | None) -> Mapping[str, Tensor]:
        return self.processor(text=texts, phrase_spans=spans, **TOKENIZED)

    def prepare(self, record: dict[str, Any], timeout: float = 30) -> GroundedImage:
        """A record of `as_record`, read and tokenized."""
        image, pixel_values = self.read(record["image"], timeout)
        most = getattr(self.processor, "max_words", None)
        for text, _ in map(text_and_span, record["phrases"] if most else ()):
            if (num_words := len(cleaned_words(text))) > most:
                raise ValueError(f"the phrase {text!r} has {num_words} words, {most} are read (max_words): shorten it")
        tokens = self.tokenize(record["phrases"]) if record["phrases"] else None
        return GroundedImage(pixel_values, (image.height, image.width), tokens, image)

    def explain_phrases(
        self,
        images: Sequence[GroundedImage],
        phrase_batch_size: int = 64,
        method: str | None = None,
        output_points: bool = True,
        explain: Explain | None = None,
        explanation: str | None = None,
        grounding_layer: int | None = None,
    ) -> Sequence[GroundedImage]:
        """Fills in the `scores` and `heatmaps`, over the grid of patches, of a batch of images.

        Args:
            phrase_batch_size: phrases a pass. output_points: False for scores alone.
            method: what makes the heatmaps: "gradcam" (the default), or "attention" (without a gradient).
            explain, explanation, grounding_layer: another function, score or layer than the model's own.
        """
        asked = [image for image in images if image.tokens is not None]
        if not asked:
            return images
        tokens = Tokens.join([image.tokens for image in asked])
        index = torch.arange(len(asked)).repeat_interleave(torch.tensor([len(image.tokens.phrases) for image in asked]))
        options = {k: v for k, v in (("explanation", explanation), ("layer", grounding_layer)) if v is not None}
        own_explain, heatmaps_of = self.method_functions(method, tokens.heatmap_token_mask is not None)
        sizes = sorted({tuple(image.pixel_values.shape[2:]) for image in asked})
        if len(sizes) > 1:
            raise ValueError(f"images of {sizes} (height, width) make no batch: resize them, or pass batch_size=1")
        pixel_values, explain = torch.cat([image.pixel_values for image in asked]), explain or own_explain
        scores, heatmaps = [], []
        for attention in self.attend(pixel_values, tokens, index, phrase_batch_size, explain, **options):
            if attention.probability is None:
                raise ValueError("the explain function gives no probability: see PhraseAttention")
            maps: Any = heatmaps_of(attention).detach().cpu() if output_points else [None] * len(attention.probability)
            if output_points and tokens.heatmap_token_mask is not None and not maps.flatten(1).any(dim=1).all():
                message = "words of captions have heatmaps of zeros, as at a last layer, whose score is of [CLS] alone"
                warnings.warn(f"{message}: choose an earlier grounding_layer", stacklevel=2)
            heatmaps += maps
            scores += attention.probability.tolist()
        for image in asked:
            count = len(image.tokens.phrases)
            image.scores, scores = scores[:count], scores[count:]
            image.heatmaps, heatmaps = heatmaps[:count], heatmaps[count:]
        return images

    def method_functions(self, method: str | None, in_captions: bool = False) -> tuple[Explain, Callable[..., Tensor]]:
        """What explains a pass, and what turns that into heatmaps; None: Grad-CAM."""
        if (method := method or "gradcam") not in self.methods:
            raise ValueError(f"method {method!r}: choose one of {', '.join(self.methods)}.")
        return self.explain, self.methods[method]

    def attend(
        self,
        pixel_values: Tensor,
        tokens: Tokens,
        image_index: Tensor,
        phrase_batch_size: int = 64,
        explain: Explain | None = None,
        **options: Any,
    ) -> Iterator[PhraseAttention]:
        """What is looked at in images (num_images, 3, height, width), and how well each phrase fits, pass by pass.
        `image_index` (num_phrases,) is each phrase's image, ascending; `options` are of `explain`, such as `layer`."""
        device, explain = input_device(self.model.eval()), explain or self.explain  # it may have been trained since
        pixel_values, image_embeds = pixel_values.to(device), None
        is_reused = len(image_index) > phrase_batch_size or self.keeps_encodings
        if is_reused and explain is self.explain and self.encode_images is not None:
            image_embeds = torch.cat([self.encode(image[None]) for image in pixel_values])
        for first in range(0, len(image_index), phrase_batch_size):
            rows = slice(first, first + phrase_batch_size)
            part, index = tokens[rows], image_index[rows]
            images = slice(int(index[0]), int(index[-1]) + 1)  # those between are all that is needed
            if image_embeds is not None:
                options["image_embeds"] = image_embeds[images]
            inputs = (tensor.to(device) for tensor in (part.input_ids, part.attention_mask, index - images.start))
            with self.autocast():
                attention = explain(self.model, pixel_values[images], *inputs, **options)
            chosen = part.heatmap_token_mask
            yield attention if chosen is None else choose_tokens(attention, chosen)

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """What `encode_images` gives of an image (1, 3, height, width)."""
        with self.autocast():
            return self.encode_images(self.model, pixel_values)

    def answers(self, grounded: GroundedImage, **options: Any) -> list[Answer]:
        """One answer a phrase, in pixels of the image; see `ground`. Options: of `answer`."""
        return [self.answer(grounded, number, **options) for number in range(len(grounded.scores))]

    def answer(
        self,
        grounded: GroundedImage,
        number: int,
        threshold: float = 0.5,
        output_heatmaps: bool = True,
        output_pictures: bool = False,
    ) -> Answer:
        """The answer of one phrase, by its number among those of the image; `threshold`: heat at its box's edge, see
        `post_process_grounding`; `output_heatmaps`, `output_pictures`: with "heatmap" (which takes memory), "picture".
        """
        heatmap = grounded.heatmaps[number]
        answer = {"phrase": grounded.tokens.phrases[number], "score": grounded.scores[number]}
        if heatmap is None:
            return answer
        (found,) = post_process_grounding(heatmap[None], grounded.size, threshold)
        heat = found.pop("heatmap").numpy()
        answer |= found | ({"heatmap": heat} if output_heatmaps else {})
        if output_pictures:
            answer["picture"] = mark(overlay(grounded.image, heat), found["point"], [found["box"]])
        return answer


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs: its own device, or the one that accelerate brings offloaded weights to."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules() if model.device.type == "meta")
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((torch.device(device) for device in devices if device is not None), model.device)


def explain_itself(model: PreTrainedModel, *inputs: Tensor, **options: Any) -> PhraseAttention:
    return model.explain(*inputs, **options)


def encode_itself(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    return model.encode_images(pixel_values)


def scores_of(answers: Answer | list) -> Any:
    return answers["score"] if isinstance(answers, dict) else [scores_of(each) for each in answers]


class Records(Dataset):
    """Images and their phrases as records {"image", "phrases"}, read one by one."""

    def __init__(self, images: Any, phrases: Any):
        if is_nested(phrases) and len(phrases) != len(images):
            raise ValueError(f"{len(phrases)} lists of phrases for {len(images)} images: pass one list an image")
        self.images, self.phrases = images, phrases

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return as_record(self.images[row], self.phrases[row] if is_nested(self.phrases) else self.phrases)


def is_nested(phrases: Any) -> bool:
    return isinstance(phrases, list | tuple) and any(isinstance(item, list | tuple | np.ndarray) for item in phrases)


def as_record(image: Any, phrases: Any) -> dict[str, Any]:
    """{"image", "phrases"} with the phrases, none of them empty, in a list."""
    if isinstance(image, Mapping) and not {"bytes", "path"} & image.keys():
        phrases = image.get("phrases") if phrases is None else phrases
        if "image" not in image:
            raise ValueError(f'a record needs "image" and "phrases", this one has {", ".join(map(repr, image))}')
        image = image["image"]
    if phrases is None:
        raise ValueError('no phrases were given: pass them after the images, or in the records as "phrases"')
    phrases = [phrases] if isinstance(phrases, str | Mapping) else list(phrases)
    for text, _ in map(text_and_span, phrases):
        if not isinstance(text, str):
            raise ValueError(f"a phrase must be a string, not {text!r}; for one image pass one list of phrases")
        check_characters(text)
        if is_blank(text):
            raise ValueError(f"a phrase is empty ({text!r}): give it a word or leave it out")
    return {"image": image, "phrases": phrases}


def text_and_span(phrase: Phrase) -> tuple[str, Span]:
    """What the model is asked, and the (first, end) of the words in it that are to be found; None for all of it."""
    if not isinstance(phrase, Mapping):
        return phrase, None
    missing = {"caption", "caption_span"} - phrase.keys()
    if missing:
        raise ValueError(f'a phrase in its caption needs "caption" and "caption_span"; {phrase!r} lacks {missing}')
    return phrase["caption"], phrase["caption_span"]


class VisualGroundingPipeline(Pipeline):
    """transformers' way to a `PhraseGrounder`, whose options for `ground` are options of the pipeline or of a call.

    >>> ground = pipeline("visual-grounding", model="org/albef-amc", trust_remote_code=True)
    >>> ground("photo.jpg", ["a black cat", "the remote on the left"])[0]["point"]
    (212, 140)
    """

    grounder_class = PhraseGrounder
    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin | None = None, explain: Explain | None = None, **kwargs
    ):
        if processor is None:
            raise ValueError("the pipeline needs the processor too: pipeline(..., model=model, processor=processor)")
        self.grounder = self.grounder_class(model, processor, explain)
        super().__init__(model=self.grounder.model, processor=self.grounder.processor, **kwargs)

    def __call__(self, images: Any, phrases: Phrases | list[Phrases] | None = None, **options: Any) -> Any:
        """Arguments, answers and errors: of `PhraseGrounder.ground`."""
        sizes = {"batch_size": self._batch_size or 1, "num_workers": self._num_workers or 0}
        return self.grounder.ground(images, phrases, **{**sizes, **self._preprocess_params, **options})

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        return options, {}, {}

    def _unused(self, *args: Any, **options: Any) -> Any:
        """The steps that transformers asks for are the engine's."""
        raise NotImplementedError

    preprocess = _forward = postprocess = _unused

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """The model with its code, and its processor."""
        self.model.save_pretrained(save_directory, *args, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
