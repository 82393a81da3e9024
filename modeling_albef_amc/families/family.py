"""What is known of a model family, in one record: a new family is a function, its record, and nothing elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from ..gradcam import PhraseAttention
from .objectives import matching_loss
from .relevance import Modules

Explain = Callable[..., PhraseAttention]


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
        explain: runs the model once: `explain(model, pixel_values, input_ids, attention_mask, image_index,
            create_graph)` returns which score was computed from which attention, tokens, patches and grid. `layer`
            explains another layer and `explanation` another score.
        model_class, processor_class: names in transformers, or of `own_classes`. The model is the one whose score is
            explained; heads for other tasks have others, or none.
        adapted: what LoRA trains.
        loss: what it learns from a batch, beside AMC.
        training_class: with objectives of its own instead, where there is one.
        has_token_maps: the rows of the explained attention are the phrase's tokens, each of which has a map.
        layers: what `layer` of `explain` may be; None: as its `family_function` says.
        modules: all attentions of a pass, for `relevance`; None: that is not worked out for the family.
        encode_images: what `explain` takes as `image_embeds`; None: it encodes images itself.
        attn_implementation: in which it hands out attention probabilities; None: in any.
        small_config: a `Size` → the configuration of a small model.
    """

    title: str
    explain: Explain
    model_class: str
    processor_class: str
    adapted: AdaptedModules
    loss: Callable[..., torch.Tensor] = matching_loss
    training_class: str | None = None
    has_token_maps: bool = True
    layers: Callable[[PreTrainedModel], Sequence[int]] | None = None
    modules: Callable[[PreTrainedModel], Modules] | None = None
    encode_images: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] | None = None
    attn_implementation: str | None = "eager"
    small_config: Callable[[Size], transformers.PreTrainedConfig] | None = None
    own_classes: dict[str, type] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layers is None:
            object.__setattr__(self, "layers", self.explain.layers)

    def load(self, name: str) -> Any:
        """A class of this record by its name; transformers imports its own when they are asked for."""
        return self.own_classes.get(name) or getattr(transformers, name)

    def small_model(self, size: Size | None = None, **options: Any) -> PreTrainedModel:
        """A small random model in evaluation mode.

        Args:
            options: of the configuration of the part whose attention is explained.
        """
        size = size or Size()
        config = self.small_config(size, **options)
        model = self.load(self.model_class)._from_config(config, attn_implementation=self.attn_implementation)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=size.std)
        return model.eval()


def layers_of_text(model: PreTrainedModel) -> Sequence[int]:
    return range(model.config.text_config.num_hidden_layers)


def layers_of_images(model: PreTrainedModel) -> Sequence[int]:
    return range(model.config.vision_config.num_hidden_layers)
