"""Which models the Space shows, and how it loads one: its own, its owner's, or any that a visitor names.

No code of any model is ever run and no pickle opened. Of a visitor's model only the files in `FILES` are fetched, to a
folder that is gone once it is loaded, and what its configuration could have transformers fetch is taken out.
"""

import json
import re
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin

from modeling_albef_amc import AlbefProcessor, AutoModelForVisualGrounding
from modeling_albef_amc.families import FAMILIES
from modeling_albef_amc.family_processors import whole_photos

HERE = Path(__file__).parent
FILES = [
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
]
# By these, transformers would take code, kernels or other loaders from elsewhere.
FOREIGN = {
    "auto_map",
    "custom_pipelines",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "quantization_config",
    "audio_tokenizer",
}
# Of the disk, of what the Hub answers and of being offline; of huggingface_hub's HTTP library; of names.
UNREACHABLE = OSError, HfHubHTTPError.__base__, HFValidationError
PROCESSORS: dict[str, type[ProcessorMixin]] = {
    "albef": AlbefProcessor,
    "blip": transformers.BlipProcessor,
    "blip-2": transformers.Blip2Processor,
    "vilt": transformers.ViltProcessor,
    "bridgetower": transformers.BridgeTowerProcessor,
    "clip": transformers.CLIPProcessor,
    "altclip": transformers.AltCLIPProcessor,
    "chinese_clip": transformers.ChineseCLIPProcessor,
    "siglip": transformers.SiglipProcessor,
}
MAX_BYTES = 2 * 2**30
MAX_PARAMETERS = 600_000_000
MAX_LAYERS = 48
MAX_SIDE = 768


class ModelError(ValueError):
    """A sentence for the visitor: why there is no such model here, and what to do."""


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue: `id` is a Hub id or a folder below this one.

    A phrase whose match is less probable than `absent_below` is shown as "not in this image".
    """

    id: str
    title: str
    trained_on: str
    absent_below: float = 0.5


@dataclass
class Loaded:
    """A model ready to answer, one request at a time."""

    entry: Entry
    model: PreTrainedModel
    processor: ProcessorMixin
    lock: threading.Lock = field(default_factory=threading.Lock)


def read_catalogue(path: Path = HERE / "models.json") -> list[Entry]:
    return [Entry(**entry) for entry in json.loads(path.read_text())]


def load_own(entry: Entry) -> Loaded:
    """A model that the Space's owner chose: a folder below this one, any other folder, or a Hub id.

    Raises:
        ModelError: it is not there, or no model of a known family.
    """
    folder = HERE / entry.id if (HERE / entry.id).is_dir() else Path(entry.id)
    try:
        folder = folder if folder.is_dir() else snapshot_download(entry.id, allow_patterns=FILES)
        return load_folder(entry, Path(folder))
    except UNREACHABLE as error:
        raise ModelError(f"The model {entry.id} could not be loaded: {first_line(error)}") from error


def load_strangers(model_id: str) -> Loaded:
    """A model that a visitor named, from the Hub.

    Raises:
        ModelError: it is not there, too large, or no model of a known family with all its weights.
    """
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", model_id, re.ASCII):
        raise ModelError(
            f"“{model_id[:100]}” is no model's name: write a Hub id, such as Salesforce/blip-itm-base-coco."
        )
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        try:
            # Without the owner's token: what is private stays so.
            hub = HfApi(token=False)
            revision = hub.model_info(model_id).sha
            check_size(model_id, hub.list_repo_tree(model_id, revision=revision))
            hub.snapshot_download(model_id, revision=revision, local_dir=folder, allow_patterns=FILES)
        except RepositoryNotFoundError as error:
            raise ModelError(f"There is no public model {model_id} on the Hub: check the spelling.") from error
        except UNREACHABLE as error:
            raise ModelError(
                f"The Hub does not hand out {model_id} now: try again, or choose another model."
            ) from error
        try:
            for path in Path(folder).glob("*config.json"):
                without_foreign(path)
            return load_folder(Entry(model_id, model_id.split("/")[1], "see its page on the Hub"), Path(folder))
        except ModelError:
            raise
        except Exception as error:  # files of strangers fail in every way there is
            raise ModelError(f"The model {model_id} could not be loaded: {first_line(error)}") from error


def check_size(model_id: str, files: Iterable[RepoFile | RepoFolder]) -> None:
    """ModelError: the files that would be fetched are too large, or there are no weights as safetensors."""
    sizes = {file.path: file.size for file in files if isinstance(file, RepoFile) and file.path in FILES}
    if "model.safetensors" not in sizes:
        raise ModelError(f"{model_id} has no model.safetensors, and other files of weights are not opened here.")
    size = sum(sizes.values())
    if size > MAX_BYTES:
        raise ModelError(f"{model_id} has {size / 2**30:.1f} GB; at most {MAX_BYTES // 2**30} are loaded here.")


def without_foreign(path: Path) -> None:
    """Takes out of a JSON file, at every depth, what names code or loaders from elsewhere."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(item) for key, item in value.items() if key not in FOREIGN}
        return [cleaned(item) for item in value] if isinstance(value, list) else value

    path.write_text(json.dumps(cleaned(json.loads(path.read_text())), indent=2) + "\n")


def load_folder(entry: Entry, folder: Path) -> Loaded:
    """
    Raises:
        ModelError: the family is unknown, the model too large, weights are missing, or there is no processor.
    """
    family = json.loads((folder / "config.json").read_text()).get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"{entry.id} is a model of type {family!r}; known here: {', '.join(FAMILIES)}.")
    safely = {"trust_remote_code": False, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, **safely)
    check_configuration(entry, config)
    model, loading = AutoModelForVisualGrounding.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        attn_implementation="sdpa" if family == "albef" else "eager",
        output_loading_info=True,
        **safely,
    )
    if loading["missing_keys"]:
        raise ModelError(f"{entry.id} lacks weights of a model that matches phrases: {min(loading['missing_keys'])}, …")
    processor = PROCESSORS[family].from_pretrained(folder, **safely)
    check_image_size(entry, processor)
    processor = whole_photos(processor, config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Loaded(entry, model.eval().requires_grad_(False).to(device), processor)


def check_configuration(entry: Entry, config: Any) -> None:
    """Before memory is taken for it. ModelError: the model has too many layers or parameters."""
    parts = (config, *(getattr(config, name) for name in config.sub_configs))
    layers = [getattr(part, "num_hidden_layers", 0) for part in parts]
    if max(layers) > MAX_LAYERS:
        raise ModelError(f"{entry.id} has {max(layers)} layers; at most {MAX_LAYERS} are loaded here.")
    with torch.device("meta"):
        parameters = AutoModelForVisualGrounding.from_config(config).num_parameters()
    if parameters > MAX_PARAMETERS:
        size = f"{parameters / 1e6:.0f} million parameters"
        raise ModelError(f"{entry.id} has {size}; at most {MAX_PARAMETERS // 10**6} are loaded here.")


def check_image_size(entry: Entry, processor: ProcessorMixin) -> None:
    """ModelError: the processor would enlarge every photo beyond what can be encoded here."""
    sizes = [getattr(processor.image_processor, name, None) or {} for name in ("size", "crop_size", "pad_size")]
    largest = max(side or 0 for size in sizes for side in dict(size).values())
    if largest > MAX_SIDE:
        raise ModelError(f"{entry.id} takes images of {largest} pixels; at most {MAX_SIDE} are encoded here.")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
