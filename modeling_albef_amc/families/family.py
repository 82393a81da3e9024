"""What is known of a model family, in one record: a new family is a function, its record, and nothing elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from ..gradcam import PhraseAttention, resolve_image_index, uncompiled
from .hooks import check_input, own_pass, unwrapped
from .objectives import matching_loss
from .relevance import Modules

Explain = Callable[..., PhraseAttention]
Layers = Callable[[PreTrainedModel], Sequence[int]]


class Pass(NamedTuple):
    """What `Family.function` is called with: the arguments of `Family.explain`, checked and filled in.

    - `attention_mask`, of ones where none was given; `image_index`: None where phrase i belongs to image i.
    - `image_embeds`: of `Family.encode_images`, or None. `explanation`: the score, of `Family.layers`.
    """

    model: PreTrainedModel
    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_index: torch.Tensor | None
    create_graph: bool
    layer: int
    image_embeds: torch.Tensor | None = None
    explanation: str | None = None

    def own_images(self, of_images: torch.Tensor) -> torch.Tensor:
        """(num_images, …) → (num_phrases, …)"""
        return of_images if self.image_index is None else of_images[self.image_index]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        patch_size = vision_config(self.model.config).patch_size
        return self.pixel_values.shape[2] // patch_size, self.pixel_values.shape[3] // patch_size


class AdaptedModules(NamedTuple):
    """What LoRA trains of a model family: queries, keys, values and outputs of all attention, where those are linear.

    - `pattern`: regular expression of the whole names, in the base model, of the linear layers that get adapters.
    - `heads`: names of modules that are trained and saved in full. The head of a match score is smaller than adapters
      of it would be, and every gradient that draws a heatmap comes through it.
    - `never`: what no pattern reaches. ALBEF's momentum encoders follow by themselves; its MLM head writes words with
      the weights of the word embeddings.
    - `moving`: what moves without a gradient.
    """

    pattern: str
    heads: tuple[str, ...] = ()
    never: str | None = None
    moving: str | None = None


@dataclass(frozen=True)
class Size:
    """Of a small random model for tests and studies, its images in pixels, and its phrases in tokens.

    Args:
        std: of all its matrices: at a width as small as this, what transformers takes for wide models is too little.
        pad, eos: ids of the tokens that fill phrases up and end them.
    """

    width: int = 64
    layers: int = 3
    heads: int = 4
    image_size: int = 128
    patch_size: int = 16
    vocab_size: int = 100
    max_tokens: int = 24
    std: float = 0.12
    pad: int = 0
    eos: int = 3

    @property
    def encoder(self) -> dict[str, int]:
        sizes = dict(hidden_size=self.width, intermediate_size=2 * self.width)
        return sizes | dict(num_hidden_layers=self.layers, num_attention_heads=self.heads)

    @property
    def images(self) -> dict[str, int]:
        return dict(image_size=self.image_size, patch_size=self.patch_size)

    @property
    def text(self) -> dict[str, Any]:
        """Of a BERT without dropout."""
        tokens = dict(pad_token_id=self.pad, bos_token_id=1, eos_token_id=self.eos)
        no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        sizes = dict(vocab_size=self.vocab_size, max_position_embeddings=self.max_tokens)
        return self.encoder | no_dropout | tokens | sizes


@dataclass(frozen=True)
class Family:
    """What is known of a model family.

    Args:
        title: what people call it.
        model_class, processor_class: names in transformers, or of `own_classes`. The model is the one whose score is
            explained; heads for other tasks have others, or none.
        layers: the scores that can be explained, the default first, and by which layers of a model each.
        adapted: what LoRA trains.
        function: runs the model once, and says which score was computed from which attention, tokens, patches and grid.
        depth: how far up the default layer is; 1: the last.
        losses: what it learns from a batch beside AMC, by the names of `GroundingOutput`.
        training_class: with objectives of its own instead, where there is one.
        has_token_maps: the rows of the explained attention are the phrase's tokens, each of which has a map.
        modules: all attentions of a pass, for `relevance`; None: that is not worked out for the family.
        encode_images: what `explain` takes as `image_embeds`; None: it encodes images itself.
        attn_implementation: in which it hands out attention probabilities; None: in any.
        small_config: a `Size` → the configuration of a small model.
    """

    title: str
    model_class: str
    processor_class: str
    layers: dict[str, Layers]
    adapted: AdaptedModules
    function: Callable[[Pass], PhraseAttention] | None = None
    depth: float = 2 / 3
    losses: dict[str, Callable[..., torch.Tensor]] = field(default_factory=lambda: {"loss_itm": matching_loss})
    training_class: str | None = None
    has_token_maps: bool = True
    modules: Callable[[PreTrainedModel], Modules] | None = None
    encode_images: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] | None = None
    attn_implementation: str | None = "eager"
    small_config: Callable[..., transformers.PreTrainedConfig] | None = None
    own_classes: dict[str, type] = field(default_factory=dict)

    @uncompiled  # its score is differentiated by an attention inside the model
    def explain(  # noqa: PLR0913  those of a model's `forward`, and what is explained
        self,
        model: PreTrainedModel,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        create_graph: bool = False,
        layer: int | None = None,
        explanation: str | None = None,
        image_embeds: torch.Tensor | None = None,
    ) -> PhraseAttention:
        """Of models in wrappers and for callers without gradients too; `create_graph` reaches down to the weights.

        The explanation and the layer are those in `config.grounding`, unless others are given.
        """
        model = unwrapped(model)
        trained = vars(model.config).get("grounding", {})
        explanation = trained.get("explanation") if explanation is None else explanation
        layer = trained.get("layer") if layer is None else layer
        if explanation not in (None, *self.layers):
            known = " or ".join(map(repr, self.layers))
            raise ValueError(f"explanation {explanation!r}: this family is explained by {known} only.")
        layers = self.layers_of(model, explanation)
        layer = layers[min(int(self.depth * len(layers)), len(layers) - 1)] if layer is None else layer
        if layer not in layers:
            raise ValueError(f"layer {layer} is none of this model's: choose one of {', '.join(map(str, layers))}.")
        if attention_mask is not None:
            message = "A phrase is padded on the left, which the model does not read: pad on the right."
            check_input(model, attention_mask[:, 0].bool(), message)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        image_index = resolve_image_index(pixel_values, input_ids, image_index)
        if image_embeds is not None and not create_graph:
            image_embeds = image_embeds.detach()
        with torch.enable_grad(), own_pass(model):
            given = Pass(model, pixel_values, input_ids, mask, image_index, create_graph, layer, image_embeds)
            found = self.function(given._replace(explanation=explanation or next(iter(self.layers))))
            return found._replace(has_token_maps=self.has_token_maps)

    def layers_of(self, model: PreTrainedModel, explanation: str | None = None) -> Sequence[int]:
        """The layers that can explain a score of the model; None: its own."""
        return self.layers[explanation or next(iter(self.layers))](model)

    def patch_size(self, config: transformers.PreTrainedConfig) -> int:
        """Pixels a side of what an image is encoded as."""
        size = vision_config(config).patch_size
        return size if isinstance(size, int) else size[0]

    def load(self, name: str) -> Any:
        """A class of this record by its name; transformers imports its own when they are asked for."""
        return self.own_classes.get(name) or getattr(transformers, name)

    def small_model(self, size: Size | None = None, **options: Any) -> PreTrainedModel:
        """A small random model in evaluation mode; `options`: of the part whose attention is explained."""
        size = size or Size()
        config = self.small_config(size, **options)
        model = self.load(self.model_class)._from_config(config, attn_implementation=self.attn_implementation)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=size.std)
        return model.eval()


def vision_config(config: transformers.PreTrainedConfig) -> transformers.PreTrainedConfig:
    """Of the image encoder; ViLT's is that of the whole model."""
    return next((getattr(config, name) for name in ("vision_config", "image_config") if hasattr(config, name)), config)


def layers_of_text(model: PreTrainedModel) -> Sequence[int]:
    return range(model.config.text_config.num_hidden_layers)


def layers_of_images(model: PreTrainedModel) -> Sequence[int]:
    return range(model.config.vision_config.num_hidden_layers)
