"""`pipeline("visual-grounding")`: photos and phrases in; scores, points, boxes and heatmaps in photo pixels out."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import Pipeline, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .families import FAMILIES, Explain, explain_function, explainable, heatmap_function
from .family_processors import max_tokens, whole_photos
from .gradcam import choose_tokens
from .photos import Phrases, Records, as_record, is_nested, is_photo, open_photo, text_and_span
from .pictures import mark, overlay
from .processing_albef import post_process_grounding, tokenize_captions, tokenize_phrases


class VisualGroundingPipeline(Pipeline):
    """
    Says for each phrase whether it fits its photo, and where in the photo it is, by any family of `families.py`.

        >>> ground = pipeline("visual-grounding", model="org/albef-amc", trust_remote_code=True)
        >>> for answer in ground("photo.jpg", ["a black cat", "the remote on the left"]):
        ...     print(answer["phrase"], answer["score"], answer["point"], answer["box"])

    After `import modeling_albef_amc` a checkpoint's own code is not needed, nor `trust_remote_code`.

    Options, of the pipeline or of a call:
        threshold: of the box, see `post_process_grounding`; 0.5.
        output_heatmaps: put "heatmap" into the answers; True. For many phrases on large photos rather False.
        output_pictures: put "picture" into the answers; False.
        output_points: explain the scores; True. Without it answers are "phrase" and "score".
        explanation, grounding_layer: another score or layer than the family's own; see `families.py`.
        method: what makes the heatmap: "gradcam", "attention" (without a gradient), or "relevance" (by all layers).
        explain: a function to use instead of the family's; it must give the `probability`.
        batch_size, num_workers: photos a pass (1), and processes that read them (0).
        phrase_batch_size: phrases a pass (64). A photo with more phrases is encoded again for each further pass.
        timeout: seconds to wait for a URL; 30.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None = None, **kwargs):
        if processor is None:
            raise ValueError("the pipeline needs the processor too: pipeline(..., model=model, processor=processor)")
        if kwargs.get("explain") is None:
            explain_function(model)  # raises for a family that is unknown
        if model.config.model_type in FAMILIES:
            processor = whole_photos(processor, model.config)
        explainable(model)
        super().__init__(model=model.eval(), processor=processor, **kwargs)

    def __call__(
        self, images: Any, phrases: Phrases | list[Phrases] | None = None, **options
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]] | Iterator[list[dict[str, Any]]]:
        """
        Args:
            images: a photo: a path, a URL, a Pillow image, an array or tensor (height, width), (height, width, 3) or
                (3, height, width); or a dictionary of "image" and "phrases"; or several of either, in a list, or as
                what can only be gone through (a data set, a column of one, a generator).
                Paths, URLs and Pillow images are turned upright first, as their EXIF orientation says and as photos
                are shown: answers are in pixels of the upright photo.
            phrases: a phrase or a list of phrases for every photo; or a list of lists, the phrases of each photo. Not
                needed with dictionaries. Instead of a string, a phrase may be words of a caption, as they are in
                `caption.split(" ")`: {"caption": "a man in a red hat", "caption_span": (3, 6)} looks for "a red hat".
            options: see the class.

        Returns:
            A list of answers for one photo, a list of such lists for a list of photos, an iterator over such lists for
            a data set or a generator. One answer a phrase, a dictionary:
            - "phrase", "score": the phrase, and the probability in [0, 1] that it, or the caption that it was given
              in, fits the photo.
            - "point": (x, y), where the heatmap is highest.
            - "box": (x1, y1, x2, y2), half-open, around the heat at that point.
            - "heatmap": (height, width) float32 array, not normalised.
            - "picture": the photo under its heatmap, with point and box (Pillow, with `output_pictures`).

        Raises:
            FileNotFoundError, ConnectionError: there is no such photo, or the URL cannot be had.
            ValueError: a photo is unreadable, a phrase is empty or too long, phrases and photos do not match.
        """
        if is_photo(images) or isinstance(images, Mapping):
            return super().__call__(as_record(images, phrases), **options)
        if isinstance(images, list | tuple | np.ndarray | torch.Tensor):
            records = Records(images, phrases)
            # transformers looks at the first item of a list.
            return super().__call__([records[row] for row in range(len(records))], **options) if len(records) else []
        if isinstance(images, Sized) and hasattr(images, "__getitem__"):
            return super().__call__(Records(images, phrases), **options)
        if not isinstance(images, Iterable):
            raise ValueError(f"images must be a photo, several photos or a data set, not {type(images)}")
        pairs = zip(images, phrases, strict=True) if is_nested(phrases) else zip(images, repeat(phrases))
        return super().__call__((as_record(*pair) for pair in pairs), **options)

    def _sanitize_parameters(
        self,
        timeout: float | None = None,
        explain: Explain | None = None,
        explanation: str | None = None,
        grounding_layer: int | None = None,
        method: str | None = None,
        phrase_batch_size: int | None = None,
        threshold: float | None = None,
        output_heatmaps: bool | None = None,
        output_pictures: bool | None = None,
        output_points: bool | None = None,
    ) -> tuple[dict, dict, dict]:
        forward = dict(
            explain=explain,
            explanation=explanation,
            layer=grounding_layer,
            method=method,
            phrase_batch_size=phrase_batch_size,
            output_points=output_points,
        )
        answer = dict(threshold=threshold, output_heatmaps=output_heatmaps, output_pictures=output_pictures)
        steps = dict(timeout=timeout), forward, answer
        return tuple({name: value for name, value in step.items() if value is not None} for step in steps)

    def get_inference_context(self):
        # Families switch gradients on and off by themselves; a function of the user's own may not.
        return torch.enable_grad

    def get_iterator(
        self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[list[dict[str, Any]]]:
        wrapper = PipelineDataset if isinstance(inputs, Sized) else PipelineIterator
        items = wrapper(inputs, self.preprocess, preprocess_params)
        # What is not indexed cannot be divided among processes.
        num_workers = num_workers if isinstance(inputs, Sized) else min(num_workers, 1)
        for batch in DataLoader(items, num_workers=num_workers, batch_size=batch_size, collate_fn=list):
            for output in self.forward(batch, **forward_params):
                yield self.postprocess(output, **postprocess_params)

    def run_single(self, inputs, *params) -> list[dict[str, Any]]:
        return next(self.get_iterator([inputs], 0, 1, *params))

    def preprocess(self, record: dict[str, Any], timeout: float = 30) -> dict[str, Any]:
        photo, phrases = open_photo(record["image"], timeout), record["phrases"]
        if not phrases:
            return {"photo": photo, "phrases": phrases, "inputs": None}
        texts, spans = map(list, zip(*map(text_and_span, phrases), strict=True))
        inputs = {**self.processor(images=photo, return_tensors="pt"), **tokenize_phrases(self.processor, texts)}
        if any(span is not None for span in spans):
            inputs |= tokenize_captions(self.processor, texts, spans)
        num_tokens, most = inputs["attention_mask"].sum(dim=1), max_tokens(self.model.config)
        if num_tokens.max() > most:
            longest = texts[num_tokens.argmax()]
            raise ValueError(f"the phrase {longest!r} has {num_tokens.max()} word pieces, the model takes {most}")
        phrases = [
            text if span is None else " ".join(text.split(" ")[slice(*span)])
            for text, span in zip(texts, spans, strict=True)
        ]
        return {"photo": photo, "phrases": phrases, "inputs": inputs}

    def _forward(
        self,
        batch: list[dict[str, Any]],
        explain: Explain | None = None,
        method: str = "gradcam",
        phrase_batch_size: int = 64,
        output_points: bool = True,
        **options,
    ) -> list[dict[str, Any]]:
        inputs = [item["inputs"] for item in batch if item["phrases"]]
        if not inputs:
            return [answered(item, iter(()), iter(())) for item in batch]
        pixel_values = torch.cat([each["pixel_values"] for each in inputs])
        in_captions = any("heatmap_token_mask" in each for each in inputs)
        heatmaps_of, explain = heatmap_function(method), explain or explain_function(self.model, method)
        if in_captions and method == "relevance":
            raise ValueError("relevance is of a whole text: it has no map of the words of a caption")
        input_ids, attention_mask, chosen = (
            pad_sequence([row for each in inputs for row in each.get(name, each["attention_mask"])], batch_first=True)
            for name in ("input_ids", "attention_mask", "heatmap_token_mask")
        )
        counts = torch.tensor([len(each["input_ids"]) for each in inputs], device=input_ids.device)
        image_index = torch.arange(len(inputs), device=input_ids.device).repeat_interleave(counts)
        heatmaps, scores = [], []
        for rows in torch.arange(len(input_ids), device=input_ids.device).split(phrase_batch_size):
            # Phrases are in the order of their photos: only those between the first and the last are needed.
            first, last = image_index[rows[0]], image_index[rows[-1]]
            explained = explain(
                self.model,
                pixel_values[first : last + 1],
                input_ids[rows],
                attention_mask[rows],
                image_index[rows] - first,
                **options,
            )
            if explained.probability is None:
                raise ValueError("the explain function gives no probability: see PhraseAttention")
            if in_captions:
                explained = choose_tokens(explained, chosen[rows])
            heatmaps.extend(heatmaps_of(explained) if output_points else [None] * len(rows))
            scores.extend(explained.probability.tolist())
        heatmaps, scores = iter(heatmaps), iter(scores)
        return [answered(item, heatmaps, scores) for item in batch]

    def postprocess(
        self,
        output: dict[str, Any],
        threshold: float = 0.5,
        output_heatmaps: bool = True,
        output_pictures: bool = False,
    ) -> list[dict[str, Any]]:
        photo, answers = output["photo"], []
        for phrase, heatmap, score in zip(output["phrases"], output["heatmaps"], output["scores"], strict=True):
            if heatmap is None:
                answers.append({"phrase": phrase, "score": score})
                continue
            (found,) = post_process_grounding(heatmap[None], (photo.height, photo.width), threshold)
            heat = found["heatmap"].numpy()
            answer = {"phrase": phrase, "score": score, "point": found["point"], "box": found["box"]}
            if output_heatmaps:
                answer["heatmap"] = heat
            if output_pictures:
                answer["picture"] = mark(overlay(photo, heat), found["point"], found["box"])
            answers.append(answer)
        return answers

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """The model, its processor and the code, for `pipeline("visual-grounding", …, trust_remote_code=True)`.

        ALBEF's `save_pretrained` alone leaves what the pipeline needs as well; other families know nothing of it.
        """
        config = self.model.config
        if config.model_type != "albef":
            classes = {"impl": f"pipeline.{type(self).__name__}", "pt": [type(self.model).__name__]}
            config.custom_pipelines = {"visual-grounding": classes}
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory)
        self.model.save_pretrained(save_directory, *args, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def answered(item: dict[str, Any], heatmaps: Iterator[torch.Tensor], scores: Iterator[float]) -> dict[str, Any]:
    """A photo with its phrases and, taken from the iterators, their heatmaps and scores."""
    phrases = item["phrases"]
    return {
        "photo": item["photo"],
        "phrases": phrases,
        "heatmaps": [next(heatmaps) for _ in phrases],
        "scores": [next(scores) for _ in phrases],
    }


__all__ = ["VisualGroundingPipeline"]
