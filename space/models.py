"""Which models the Space shows, and how it loads one: its own, its owner's, or any that a visitor names.

No code of any model is ever run and no pickle opened. Of a visitor's model only the files in `FILES` are fetched, to a
folder that is gone once it is loaded, and what its configuration could have transformers fetch is taken out.
"""

import json
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from errors import VisitorError
from modeling_albef_amc.families.auto import AutoGrounder, load_model, load_processor
from modeling_albef_amc.families.processors import PROCESSOR_FILES
from modeling_albef_amc.families.registry import FAMILIES

HERE = Path(__file__).parent
FILES = ["config.json", "model.safetensors", *PROCESSOR_FILES, "tokenizer.json", "tokenizer_config.json"]
FILES += ["special_tokens_map.json", "vocab.txt"]
# By these, transformers would take code, kernels or other models from elsewhere.
FOREIGN = {"auto_map", "custom_pipelines", "quantization_config", "audio_tokenizer", "experts_implementation"}
FOREIGN |= {"attn_implementation", "_attn_implementation", "_attn_implementation_internal"}
MAX_BYTES = 2 * 2**30
MAX_PARAMETERS = 600_000_000
MAX_LAYERS = 48
MAX_SIDE = 768
MAX_PATCHES = 48**2  # of an image: attention takes memory by their square
MAX_MODELS = 4
MAX_ENCODINGS = 16  # images a model


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
    grounder: AutoGrounder
    lock: threading.Lock = field(default_factory=threading.Lock)


class ModelStore:
    """The last few models that were asked for: the catalogue's, the owner's, and those that visitors named.

    Args:
        catalogue: its first model is the default one.
        preferred: a Hub id or folder to be first instead; if it cannot be loaded, the page says so.
    """

    def __init__(self, catalogue: list[Entry], preferred: str | None = None, max_models: int = MAX_MODELS):
        self.max_models, self.kept, self.lock = max_models, OrderedDict(), threading.Lock()
        self.loading_own, self.loading_strangers = threading.Lock(), threading.Lock()
        self.note = None
        if preferred is not None:
            new = Entry(preferred, Path(preferred).name, "see its card")
            entry = next((entry for entry in catalogue if entry.id == preferred), new)
            try:
                self.keep(load_own(entry))
                catalogue = [entry, *(other for other in catalogue if other != entry)]
            except VisitorError as error:
                self.note = f"{error} Shown instead: {catalogue[0].title}."
        self.catalogue = {entry.id: entry for entry in catalogue}
        self.default = catalogue[0].id
        self.load(self.default)

    def load(self, model_id: str) -> Loaded:
        """The model, from memory where it is kept. The owner's are waited for; of strangers', one is loaded."""
        if loaded := self.find(model_id):
            return loaded
        if model_id in self.catalogue:
            with self.loading_own:
                return self.find(model_id) or self.keep(load_own(self.catalogue[model_id]))
        if not self.loading_strangers.acquire(blocking=False):
            raise VisitorError("Another model is just being loaded: try again in a minute, or choose one of the list.")
        try:
            return self.keep(load_strangers(model_id))
        finally:
            self.loading_strangers.release()

    def find(self, model_id: str) -> Loaded | None:
        with self.lock:
            if model_id in self.kept:
                self.kept.move_to_end(model_id)
            return self.kept.get(model_id)

    def keep(self, loaded: Loaded) -> Loaded:
        with self.lock:
            self.kept[loaded.entry.id] = loaded
            while len(self.kept) > self.max_models:
                self.kept.popitem(last=False)
        return loaded

    def describe(self, entry: Entry) -> dict[str, Any]:
        note = self.note if entry.id == self.default else None
        return {"id": entry.id, "title": entry.title, "trained_on": entry.trained_on, "note": note}


def read_catalogue() -> list[Entry]:
    return [Entry(**entry) for entry in json.loads((HERE / "models.json").read_text())]


def load_own(entry: Entry) -> Loaded:
    """A model that the Space's owner chose: a folder below this one, any other folder, or a Hub id."""
    folder = HERE / entry.id if (HERE / entry.id).is_dir() else Path(entry.id)
    with load_errors(entry, folder):
        if not folder.is_dir():
            folder = Path(snapshot_download(entry.id, allow_patterns=FILES))
        return load_folder(entry, folder)


def load_strangers(model_id: str) -> Loaded:
    """A model that a visitor named, from the Hub; what names code from elsewhere is taken out of its files."""
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", model_id, re.ASCII):
        instead = "write a Hub id, such as Salesforce/blip-itm-base-coco"
        raise VisitorError(f"“{model_id[:100]}” is no model's name: {instead}.")
    entry = Entry(model_id, model_id.split("/")[1], "see its page on the Hub")
    with tempfile.TemporaryDirectory(prefix="model-") as folder, load_errors(entry, folder):
        try:
            # Without the owner's token: what is private stays so.
            hub = HfApi(token=False)
            revision = hub.model_info(model_id).sha
            check_size(model_id, hub.list_repo_tree(model_id, revision=revision))
            hub.snapshot_download(model_id, revision=revision, local_dir=folder, allow_patterns=FILES)
        except RepositoryNotFoundError as error:
            raise VisitorError(f"There is no public model {model_id} on the Hub: check the spelling.") from error
        for path in Path(folder).glob("*config.json"):
            without_foreign(path)
        return load_folder(entry, Path(folder))


@contextmanager
def load_errors(entry: Entry, folder: str | Path) -> Iterator[None]:
    """Files and servers fail in every way there is: the visitor is told which model it was, and why."""
    try:
        yield
    except VisitorError:
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].replace(str(folder), entry.id)
        raise VisitorError(f"The model {entry.id} could not be loaded, try again or choose another: {why}") from error


def check_size(model_id: str, files: Iterable[RepoFile | RepoFolder]) -> None:
    """Before anything is fetched: the files are not too large, and have weights as safetensors."""
    sizes = {file.path: file.size for file in files if isinstance(file, RepoFile) and file.path in FILES}
    if "model.safetensors" not in sizes:
        raise VisitorError(f"{model_id} has no model.safetensors, and other files of weights are not opened here.")
    size = sum(sizes.values())
    if size > MAX_BYTES:
        raise VisitorError(f"{model_id} has {size / 2**30:.1f} GB; at most {MAX_BYTES // 2**30} are loaded here.")


def without_foreign(path: Path) -> None:
    """Takes out of a JSON file, at every depth, what names code or loaders from elsewhere."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(item) for key, item in value.items() if key not in FOREIGN}
        return [cleaned(item) for item in value] if isinstance(value, list) else value

    path.write_text(json.dumps(cleaned(json.loads(path.read_text())), indent=2) + "\n")


def load_folder(entry: Entry, folder: Path) -> Loaded:
    """A checkpoint of a known family, not too large."""
    if not (folder / "config.json").is_file():
        adapters = "if it has LoRA adapters alone, merge them (albef-amc merge) and name the merged model"
        raise VisitorError(f"{entry.id} has no config.json and is no whole model: {adapters}.")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type not in FAMILIES:
        raise VisitorError(f"{entry.id} is a model of type {model_type!r}; known here: {', '.join(FAMILIES)}.")
    family = FAMILIES[model_type]
    check_configuration(entry, family.load(family.model_class), folder)
    model = load_model(str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True)
    processor = load_processor(str(folder), model, local_files_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    grounder = AutoGrounder(model.requires_grad_(False), processor, device=device, max_encodings=MAX_ENCODINGS)
    check_image_size(entry, grounder.processor.image_processor, model.config)
    return Loaded(entry, grounder)


def check_configuration(entry: Entry, model_class: type[PreTrainedModel], folder: Path) -> None:
    """Before memory is taken for it: the model has not too many layers or parameters."""
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    parts = (config, *(getattr(config, name) for name in config.sub_configs))
    layers = max(getattr(part, "num_hidden_layers", 0) for part in parts)
    if layers > MAX_LAYERS:
        raise VisitorError(f"{entry.id} has {layers} layers; at most {MAX_LAYERS} are loaded here.")
    with torch.device("meta"):
        millions, most = model_class(config).num_parameters() / 1e6, MAX_PARAMETERS / 1e6
    if millions > most:
        raise VisitorError(f"{entry.id} has {millions:.0f} million parameters; at most {most:.0f} are loaded here.")


def check_image_size(entry: Entry, images: BaseImageProcessor, config: PreTrainedConfig) -> None:
    """The processor does not enlarge every image beyond what can be encoded here, in pixels and in patches."""
    sizes = [getattr(images, name, None) or {} for name in ("size", "crop_size", "pad_size")]
    largest = max(side or 0 for size in sizes for side in dict(size).values())
    if largest > MAX_SIDE:
        raise VisitorError(f"{entry.id} takes images of {largest} pixels; at most {MAX_SIDE} are encoded here.")
    patches = (largest // FAMILIES[config.model_type].patch_size(config)) ** 2
    if patches > MAX_PATCHES:
        raise VisitorError(f"{entry.id} takes images of {patches:,} patches; at most {MAX_PATCHES:,} are encoded here.")
