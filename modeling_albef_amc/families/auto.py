"""One way in to all families: any checkpoint that scores images and phrases, from its path alone."""

import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import cached_file, find_adapter_config_file, is_peft_available
from transformers.utils.versions import require_version

from ..pipeline import GroundedImage, PhraseGrounder, VisualGroundingPipeline, input_device
from .checkpoint_checks import naming_damage, read_object
from .decoders import DECODERS
from .family import Explain, Family
from .hooks import with_own_forward
from .processors import (
    QUIETLY,
    LoadedProcessor,
    check_tokens,
    max_tokens,
    num_known_tokens,
    tokenize_phrases,
    whole_images,
)
from .prompts import Prompt
from .registry import FAMILIES, METHODS, check_complete, explain_function, explainable, trained_method

# What peft's layers and wrappers of modules are switched by.
OF_ADAPTERS = "_active_adapter", "_disable_adapters", "scaling"
# Arguments of `from_pretrained` that Auto classes alone take, or that are not of a base model.
OF_AUTO_CLASSES = "config", "code_revision", "trust_remote_code", "adapter_kwargs", "_commit_hash", "_from_pipeline"
# Beside adapters: `config.grounding` of the model that they were trained in, if it has that.
GROUNDING = "grounding.json"
IN_PEFT = "base_model.model."  # what the names in the file of adapters begin with
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class AutoGrounder(PhraseGrounder):
    """A `PhraseGrounder` of any family of `FAMILIES`.

        >>> grounder = AutoGrounder.from_pretrained("Salesforce/blip-itm-base-coco")
        >>> grounder.score("photo.jpg", ["a black cat", "a dog"])
        [0.98, 0.03]
        >>> grounder.ground("photo.jpg", ["a black cat"])[0]["point"]
        (212, 140)

    Args:
        model: of a known family, or of any other if `explain` is given.
        processor: its processor; a copy is set to show the model whole images, see `whole_images`.
        explain: a function to use instead of the family's, see `Family.explain`.
        device: as of `torch.device`; default: the model's.
        max_encodings: encoded images that are kept from call to call, for more phrases of the same image, as long
            as the weights stay as they are; none of a model with offloaded weights.
    """

    methods = METHODS

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        explain: Explain | None = None,
        device: str | torch.device | None = None,
        max_encodings: int = 0,
    ):
        model = model.module if isinstance(model, DataParallel | DistributedDataParallel) else model
        family, encode_images = FAMILIES.get(model.config.model_type), None
        if family is not None:
            processor = whole_images(processor, model.config)
            if explain is None and family.encode_images is not None:
                encode_images = with_own_forward(family.encode_images)
        model = explainable(model if device is None else model.to(device))
        self.given_explain = explain
        explain = explain_function(model) if explain is None else with_own_forward(explain)
        super().__init__(model, processor, explain, encode_images)
        self.keeps_encodings, self.max_encodings = max_encodings > 0, max_encodings
        self.encodings, self.lock = OrderedDict(), threading.Lock()

    def __reduce__(self) -> tuple[type, tuple]:
        """Pickled and copied as what it was made of, without encodings."""
        return type(self), (self.model, self.processor, self.given_explain, None, self.max_encodings)

    @property
    def max_tokens(self) -> int:
        return max_tokens(self.model.config)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        explain: Explain | None = None,
        image_size: int | None = None,
        device: str | torch.device | None = None,
        max_encodings: int = 0,
        **options: Any,
    ) -> "AutoGrounder":
        """
        Args:
            path: folder or Hub id of a checkpoint that transformers, or this project, has saved.
            image_size: side in pixels that images are resized to; default: as the model was trained.
            explain, max_encodings: see the class. device: default: an accelerator if there is one.
            options: of `from_pretrained`: `revision`, `token`, `cache_dir` and the like, of the model and its processor
                alike; and of the model's alone, such as `dtype` or `attn_implementation`.

        Raises:
            ValueError: the family is unknown, a file is damaged, or there are no weights for a score of image and text.
        """
        model = load_model(path, **options)
        processor = load_processor(path, model, image_size, **hub_options(options))
        if device is None and not hasattr(model, "hf_device_map"):  # else its parts are where they belong
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        return cls(model, processor, explain, device, max_encodings)

    def method_functions(
        self, method: str | None, in_captions: bool = False
    ) -> tuple[Explain, Callable[..., torch.Tensor]]:
        """As of `PhraseGrounder`; and "gradient" and, of some families, "relevance" (by all layers).

        None: as they were trained.
        """
        if (method := method or trained_method(self.model)) != "relevance":
            return super().method_functions(method, in_captions)
        if in_captions:
            raise ValueError("relevance is of a whole text: it has no map of the words of a caption")
        return explain_function(self.model, method), METHODS[method]

    def explain_phrases(self, *args: Any, explain: Explain | None = None, **options: Any) -> Sequence[GroundedImage]:
        return super().explain_phrases(*args, explain=explain and with_own_forward(explain), **options)

    def _tokenize(self, texts: list[str], spans: list | None) -> Mapping[str, torch.Tensor]:
        inputs = tokenize_phrases(self.processor, texts, spans=spans)
        check_tokens(inputs["input_ids"], num_known_tokens(self.model.config))
        return inputs

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not self.keeps_encodings:
            return super().encode(pixel_values)
        state = weights_state(self.model)
        if state is None:
            return super().encode(pixel_values)
        digest = hashlib.sha256(pixel_values.cpu().contiguous().numpy()).digest()
        key = digest, tuple(pixel_values.shape), state, torch.is_autocast_enabled(pixel_values.device.type)
        with self.lock:
            encoded = self.encodings.pop(key, None)
        if encoded is None:
            encoded = super().encode(pixel_values)
        with self.lock:
            self.encodings[key] = encoded  # the newest
            while len(self.encodings) > self.max_encodings:
                self.encodings.popitem(last=False)
        return encoded


class AutoGroundingPipeline(VisualGroundingPipeline):
    """`VisualGroundingPipeline` of any family of `FAMILIES`, with weights wherever accelerate has put them."""

    grounder_class: type[PhraseGrounder] = AutoGrounder

    def __init__(self, model: PreTrainedModel, *args, device: Any = None, **kwargs):
        # Pipeline takes the first entry of a device map for a device, which "disk" is none, and else moves the model.
        placed = vars(model).pop("hf_device_map", None) if device is None else None
        is_placed = device is None and (placed is not None or model.device.type == "meta")
        try:
            super().__init__(model, *args, device=model.device if is_placed else device, **kwargs)
        finally:
            if placed is not None:
                model.hf_device_map = placed
        if is_placed:
            self.device = input_device(model)


@torch.no_grad()
def weights_state(model: PreTrainedModel) -> bytes | None:
    """What is another after weights were changed by whatever means, or adapters switched; None: weights are offloaded.

    All of them are read: a tenth of a second for 200 million on a CPU.
    """
    switches = [vars(module).get(name) for module in model.modules() for name in OF_ADAPTERS]
    digest = hashlib.sha256(repr(switches).encode())
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_meta:
            return None
        bits = tensor.view(INTEGERS[tensor.element_size()])
        # Of each row, whose sum of bits no change is too small for. Changes that cancel in it, as of the signs of two
        # numbers, or of their order, are seen in a product with other numbers.
        sums = [bits.sum(-1, dtype=bits.dtype)]
        if tensor.ndim and tensor.is_floating_point():
            sums.append(tensor.float() @ fixed_numbers(tensor.shape[-1], tensor.device))
        for each in sums:
            digest.update(each.cpu().contiguous().numpy())
    return digest.digest()


@lru_cache(64)
def fixed_numbers(length: int, device: torch.device) -> torch.Tensor:
    """float32 (length,), the same every time."""
    return torch.rand(length, generator=torch.Generator().manual_seed(0)).to(device)


def known_family(model_type: str | None, path: str) -> Family:
    """ValueError: `model_type`, of the checkpoint at `path`, is none of `FAMILIES`."""
    if not isinstance(model_type, str):
        raise ValueError(f"{path} is no checkpoint: it has no config.json that says of what type its model is.")
    if model_type not in FAMILIES:
        raise ValueError(
            f"{path} is a checkpoint of type {model_type!r}, which cannot be explained here; known are "
            f"{', '.join(FAMILIES)}. Choose another one, or write its family's function and pass it on: "
            "AutoGrounder(model, processor, explain=function), see docs/families.md."
        )
    return FAMILIES[model_type]


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those options of `from_pretrained` that say which files of a checkpoint are meant, and how they are had."""
    names = "revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies"
    return {name: options[name] for name in names if options.get(name) is not None}


def check_peft(needs: str) -> None:
    """ImportError, which begins with what `needs` it: peft is missing, or does not fit the transformers installed."""
    if not is_peft_available():
        raise ImportError(f"{needs} peft: pip install 'albef-amc[lora]'.")
    from transformers.integrations.peft import MIN_PEFT_VERSION

    # Older ones do not load what was trained in full beside adapters, and say nothing.
    require_version("transformers>=5.18", "LoRA goes with transformers 5.18 and newer.")
    hint = f"transformers {transformers.__version__} goes with it, peft 0.20 and 0.21 with transformers 5.18 to 5.23."
    require_version(f"peft>={MIN_PEFT_VERSION}", hint)


def base_of(path: str, **hub: Any) -> tuple[str, dict[str, Any]]:
    """The checkpoint that LoRA adapters belong to, with its own `hub_options`; of any other checkpoint itself.

    Raises ValueError: there is no such folder, or the base model is not named, or cannot be had. ImportError: see
    `check_peft`.
    """
    check_place(path)
    file = find_adapter_config_file(path, **hub)
    folder = Path(path, hub.get("subfolder", ""))
    if file is None or (folder / "config.json").is_file():  # with both, transformers takes the weights beside them
        return path, hub
    check_peft(f"{path} has LoRA adapters, which need")
    settings = read_object(Path(file))
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{file} is damaged: it does not name the base model (base_model_name_or_path).")
    base_hub = hub_options({**hub, "subfolder": None, "revision": settings.get("revision")})
    try:
        read_config(base, **base_hub)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} names a base model {base} that cannot be loaded: {error}") from error
    return base, base_hub


def check_place(path: str) -> None:
    """ValueError: it is no folder, and no Hub id."""
    if not Path(path).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise ValueError(f"there is no folder {path}, and a Hub id has the form name or owner/name")


def read_config(path: str, **hub: Any) -> dict[str, Any]:
    """The config.json of a checkpoint as it is in the file.

    Raises ValueError: see `check_place`. OSError: it has none, or cannot be had from the Hub.
    """
    check_place(path)
    try:
        return PreTrainedConfig.get_config_dict(path, **hub)[0]
    except OSError as error:
        if Path(path).is_dir():
            raise
        raise OSError(f"there is no folder {path}, and it cannot be had from the Hub: {error}") from error


def load_model(
    path: str, *, training: bool = False, attn_implementation: str | dict[str, str] | None = None, **options: Any
) -> PreTrainedModel:
    """A checkpoint as the class of its family that scores phrases, in evaluation mode. No code of its own is run.

    Args:
        path: folder or Hub id; also of LoRA adapters, which are put into their base model.
        training: with the family's own training objectives, where it has some, and in float32 unless `dtype` says else.
        attn_implementation: default: "eager" of all but ALBEF, since the others hand out attention only so.
        options: of `from_pretrained`. Errors: as of `AutoGrounder.from_pretrained`.
    """
    hub = hub_options(options)
    base, base_hub = base_of(path, **hub)
    options = {name: value for name, value in options.items() if name not in hub} | base_hub
    if "torch_dtype" in options:  # as it was called
        options["dtype"] = options.pop("torch_dtype")
    with naming_damage(Path(path, hub.get("subfolder", "")), Path(base, base_hub.get("subfolder", ""))):
        # The configuration class of an unknown family would be code of the checkpoint's own.
        family = known_family(read_config(base, **base_hub).get("model_type"), path)
        is_training = training and family.training_class is not None
        model_class = family.load(family.training_class if is_training else family.model_class)
        # Named even where it is None, since a checkpoint could name one that is fetched from the Hub.
        options |= {} if not training else {"dtype": options.get("dtype") or torch.float32}
        options["attn_implementation"] = attn_implementation or family.attn_implementation
        model, loading = model_class.from_pretrained(base, output_loading_info=True, **options)
        if not is_training:
            check_complete(path, model, loading["missing_keys"])
        model.newly_initialized = frozenset(loading["missing_keys"])
        merge = f"Merge them into a plain checkpoint: albef-amc merge {path} --output FOLDER."
        try:  # of DoRA, and of a class without objectives, transformers does not find what was trained in full
            state = adapter_state(model, path, **hub) if is_training and base != path else None
            options = {"adapter_kwargs": hub, "adapter_state_dict": state}
            missing = model.load_adapter(path, **options).missing_keys if base != path else ()
        except ValueError as error:  # VeRA's share matrices
            raise ValueError(f"{path}: its adapters cannot be loaded ({error}) {merge}") from error
        except RuntimeError as error:
            if "mismatch" not in str(error):
                raise
            raise ValueError(
                f"{path}: its adapters are of another size than its base model {base}: give it the one that they were "
                "trained with, saved with its new tokens if it was given any."
            ) from error
        missing = [name for name in missing if "momentum_encoder." not in name]  # which `groundable` drops
        if base != path:
            load_grounding(saving_grounding(model), path, **hub)
    if missing:
        raise ValueError(f"{path}: {min(missing)} of its adapters cannot be loaded. {merge}")
    return explainable(model.eval())


def adapter_state(model: PreTrainedModel, path: str, **hub: Any) -> dict[str, torch.Tensor]:
    """The tensors of adapters by their names in `model`, be they of the base model inside it."""
    from peft.utils import load_peft_weights

    state = load_peft_weights(path, device="cpu", **hub)
    inside = "" if adapted_part(model, state) is model else f"{model.base_model_prefix}."
    return {name.replace(IN_PEFT, IN_PEFT + inside, 1): tensor for name, tensor in state.items()}


def adapted_part(model: PreTrainedModel, names: Iterable[str]) -> PreTrainedModel:
    """What adapters with tensors of these names are of: `model`, or the base model inside it, as `AlbefModel` is."""
    children = dict(model.named_children())
    is_whole = any(name.removeprefix(IN_PEFT).partition(".")[0] in children for name in names)
    return model if is_whole else children.get(model.base_model_prefix, model)


class AdapterError(Exception):
    """Adapters that cannot be loaded. No ValueError, after which `pipeline` would load them in another way."""


class AutoModelForVisualGrounding(_BaseAutoModelClass):
    """`from_pretrained` gives a checkpoint the class of its family that scores phrases; AutoModel's BLIP does not."""

    _model_mapping = _LazyAutoMapping(
        CONFIG_MAPPING_NAMES,
        OrderedDict((name, family.model_class) for name, family in FAMILIES.items() if not family.own_classes),
    )

    @classmethod
    def from_pretrained(cls, path: str, *args, output_loading_info: bool = False, **kwargs):
        """As of all Auto classes; but missing weights are an error, unless the caller gets the loading info.

        Raises AdapterError: for what `load_model`, by which adapters are loaded, raises a ValueError.
        """
        if not args and not output_loading_info and base_of(path, **hub_options(kwargs))[0] != path:
            try:
                return load_model(path, **{name: kwargs[name] for name in kwargs if name not in OF_AUTO_CLASSES})
            except ValueError as error:
                raise AdapterError(str(error)) from error
        model, loading = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, loading
        check_complete(path, model, loading["missing_keys"])
        return model


for own_class in (family.load(family.model_class) for family in FAMILIES.values() if family.own_classes):
    AutoModelForVisualGrounding.register(own_class.config_class, own_class, exist_ok=True)


def save_grounding(model: PreTrainedModel, folder: Path) -> None:
    """Saves beside adapters how a model is explained, and a generative one asked: no file of its base model says it."""
    grounding, file = vars(model.config).get("grounding"), folder / GROUNDING
    if grounding is None:
        file.unlink(missing_ok=True)  # of an earlier run
    else:
        file.write_text(json.dumps(grounding, indent=2))


def saving_grounding(model: PreTrainedModel) -> PreTrainedModel:
    """A model that saves it whoever saves its adapters."""

    def save_pretrained(self: PreTrainedModel, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        type(self).save_pretrained(self, save_directory, *args, **kwargs)
        if self._hf_peft_config_loaded and kwargs.get("is_main_process", True):
            save_grounding(self, Path(save_directory))

    model.save_pretrained = MethodType(save_pretrained, model)
    return model


def load_grounding(model: PreTrainedModel, adapters: str, **hub: Any) -> None:
    """The model is explained, and a generative one asked, as it was when these adapters were trained."""
    file = cached_file(adapters, GROUNDING, **hub, **QUIETLY)
    if file is None:
        return
    content = read_object(Path(file))
    try:
        if model.config.model_type in DECODERS:
            Prompt(**content["prompt"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it has no prompt as models are asked by. Get it again.") from error
    model.config.grounding = content


def processor_source(path: str, **hub: Any) -> tuple[str, dict[str, Any]]:
    """Where the processor of a checkpoint is: beside it, or at the base model of adapters that were saved alone."""
    names = "processor_config.json", "preprocessor_config.json"
    is_beside = any(cached_file(path, name, **hub, **QUIETLY) for name in names)
    return (path, hub) if is_beside else base_of(path, **hub)


def load_processor(path: str, model: PreTrainedModel, image_size: int | None = None, **hub: Any) -> ProcessorMixin:
    """The processor of a checkpoint, set to show the model whole images. ValueError: a file of it is damaged."""
    path, hub = processor_source(path, **hub)
    with naming_damage(Path(path, hub.get("subfolder", ""))):
        is_generative = model.config.model_type in DECODERS
        load = LoadedProcessor if is_generative else partial(AutoProcessor.from_pretrained, trust_remote_code=False)
        processor = load(path, **hub)
    return whole_images(processor, model.config, image_size)
