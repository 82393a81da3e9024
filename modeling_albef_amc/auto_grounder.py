"""One way in to all families: any checkpoint that scores images and phrases, from its path alone."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import find_adapter_config_file, is_peft_available

from .checkpoint_checks import check_files, read_object
from .families import FAMILIES, Explain, Family, check_complete, explain_function, explainable
from .family_processors import whole_photos
from .photos import Phrases
from .pipeline import VisualGroundingPipeline


class AutoGrounder:
    """A model of any family that says whether phrases fit photos, and where in them they are.

        >>> grounder = AutoGrounder.from_pretrained("Salesforce/blip-itm-base-coco")
        >>> grounder.score("photo.jpg", ["a black cat", "a dog"])
        [0.98, 0.03]
        >>> grounder.ground("photo.jpg", ["a black cat"])[0]["point"]
        (212, 140)

    Args:
        model: of a known family, or of any other if `explain` is given.
        processor: its processor; it is set to show the model whole photos, see `whole_photos`.
        explain: a function to use instead of the family's, see `families.py`.
        device: as of `torch.device`; default: an accelerator if there is one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        explain: Explain | None = None,
        device: str | torch.device | None = None,
    ):
        self.explain = explain or explain_function(model)
        self.pipeline = VisualGroundingPipeline(
            model, processor, task="visual-grounding", explain=explain, device=device
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        explain: Explain | None = None,
        image_size: int | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> "AutoGrounder":
        """
        Args:
            path: folder or Hub id of a checkpoint that transformers, or this project, has saved.
            image_size: side in pixels that photos are resized to; default: as the model was trained.
            explain, device: see the class.
            options: of `from_pretrained`: `revision`, `token`, `cache_dir` and the like, of the model and its processor
                alike; and of the model's alone, such as `dtype` or `attn_implementation`.

        Raises:
            ValueError: the family is unknown, or the checkpoint has no weights for a score of image and text.
        """
        model = load_model(path, **options)
        return cls(model, load_processor(path, model, image_size, **hub_options(options)), explain, device)

    @property
    def model(self) -> PreTrainedModel:
        return self.pipeline.model

    @property
    def processor(self) -> ProcessorMixin:
        return self.pipeline.processor

    def score(self, images: Any, phrases: Phrases | list[Phrases] | None = None, **options: Any) -> Any:
        """The probability in [0, 1] that each phrase fits its photo; nothing is explained.

        Arguments and errors: as of `ground`. Returns: a number where that has an answer.
        """
        answers = self.pipeline(images, phrases, output_points=False, **options)
        if isinstance(answers, Iterator):
            return (scores_of(of_photo) for of_photo in answers)
        return scores_of(answers) if answers and isinstance(answers[0], dict) else [scores_of(each) for each in answers]

    def ground(self, images: Any, phrases: Phrases | list[Phrases] | None = None, **options: Any) -> Any:
        """Scores, points, boxes and heatmaps in photo pixels: `VisualGroundingPipeline.__call__`."""
        return self.pipeline(images, phrases, **options)


def scores_of(answers: list[dict[str, Any]]) -> list[float]:
    return [answer["score"] for answer in answers]


def known_family(model_type: str | None, path: str) -> Family:
    """
    Raises:
        ValueError: `model_type` is none of `FAMILIES`.
    """
    if not isinstance(model_type, str):
        raise ValueError(f"{path} is no checkpoint: it has no config.json that says of what type its model is.")
    if model_type not in FAMILIES:
        raise ValueError(
            f"{path} is a checkpoint of type {model_type!r}, which cannot be explained here; known are "
            f"{', '.join(FAMILIES)}. Choose another one, or write its family's function and pass it on: "
            "AutoGrounder(model, processor, explain=function), see modeling_albef_amc/families.py."
        )
    return FAMILIES[model_type]


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those options of `from_pretrained` that say which files of a checkpoint are meant, and how they are had."""
    names = "revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies"
    return {name: options[name] for name in names if options.get(name) is not None}


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub (default: main)")
    parser.add_argument("--token", help="for private models of the Hub; default: HF_TOKEN, or that of `hf auth login`")


def base_of(path: str, **hub: Any) -> tuple[str, dict[str, Any]]:
    """The checkpoint that LoRA adapters belong to, and options for it; of any other checkpoint itself.

    Args:
        path: folder or Hub id. hub: `hub_options`, of `path`.

    Returns: folder or Hub id, and its own `hub_options`: revision and subfolder are those that the adapters name.

    Raises:
        ImportError: it has adapters, and peft is missing.
        ValueError: the adapters do not say so.
    """
    file = find_adapter_config_file(path, **hub)
    folder = Path(path, hub.get("subfolder", ""))
    if file is None or (folder / "config.json").is_file():  # with both, transformers takes the weights beside them
        return path, hub
    if not is_peft_available():
        raise ImportError(f"{path} has LoRA adapters, which need peft: pip install peft.")
    settings = read_object(Path(file))
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{file} is damaged: it does not name the base model (base_model_name_or_path).")
    return base, hub_options({**hub, "subfolder": None, "revision": settings.get("revision")})


def load_model(
    path: str, *, training: bool = False, attn_implementation: str | None = None, **options: Any
) -> PreTrainedModel:
    """A checkpoint as the class of its family that scores phrases, in evaluation mode. No code of its own is run.

    Args:
        path: folder or Hub id; also of LoRA adapters, which are put into their base model.
        training: with the family's own training objectives, where it has some.
        attn_implementation: default: "eager" of all but ALBEF, since the others hand out attention only so.
        options: of `from_pretrained`.

    Raises:
        ValueError: see `AutoGrounder.from_pretrained`.
    """
    hub = hub_options(options)
    base, base_hub = base_of(path, **hub)
    for folder in {Path(path, hub.get("subfolder", "")), Path(base, base_hub.get("subfolder", ""))}:
        check_files(folder)
    # As it is in the file: the configuration class of an unknown family would be code of the checkpoint's own.
    config, _ = PreTrainedConfig.get_config_dict(base, **base_hub)
    family = known_family(config.get("model_type"), path)
    # Named even where it is None, since a checkpoint could name one that is fetched from the Hub.
    if attn_implementation is None and config["model_type"] != "albef":
        attn_implementation = "eager"
    options = {name: value for name, value in options.items() if name not in hub} | base_hub
    options |= {"attn_implementation": attn_implementation}
    model_class = family.training_class if training and family.training_class is not None else family.model_class
    try:
        model, loading = model_class.from_pretrained(base, output_loading_info=True, **options)
    except StrictDataclassError as error:
        raise ValueError(f"{path}: its config.json is no configuration of the model: {error}") from error
    if model_class is not family.training_class:
        check_complete(path, model, loading["missing_keys"])
    if base != path:
        missing = model.load_adapter(path, adapter_kwargs=hub).missing_keys
        if missing:  # of DoRA, which transformers does not find
            raise ValueError(
                f"{path}: {min(missing)} of its adapters cannot be loaded. Merge them into a plain checkpoint: "
                f"python -m trainer.lora merge {path} --output FOLDER."
            )
    return explainable(model.eval())


def load_processor(path: str, model: PreTrainedModel, image_size: int | None = None, **hub: Any) -> ProcessorMixin:
    """The processor of a checkpoint, set to show the model whole photos.

    Args:
        hub: `hub_options`.

    Raises:
        ValueError: one of its files is damaged; the message names it.
    """
    check_files(Path(path, hub.get("subfolder", "")))
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False, **hub)
    return whole_photos(processor, model.config, image_size)
