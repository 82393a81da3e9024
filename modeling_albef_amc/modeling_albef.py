"""ALBEF (Li et al., NeurIPS 2021, arXiv 2107.07651): encoders, image-text heads, and heatmaps of phrases."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_albef import (
    ImageGroups,
    additive_mask,
    checkpointed,
    eager_attention_forward,
    explained_interface,
    group_by_image,
)
from .configuration_albef import AlbefConfig, AlbefTextConfig, AlbefVisionConfig
from .gradcam import (
    PhraseAttention,
    average_tokens,
    choose_tokens,
    gradcam,
    leaving_inference_mode,
    resolve_image_index,
    uncompiled,
)

KeyValue = tuple[Tensor, Tensor]
# Hidden states, and attention probabilities where they are at hand.
StatesAndAttention = tuple[Tensor, Tensor | None]
OF_MAPS = "create_graph", "explanation", "grounding_layer", "heatmap_token_mask", "output_token_heatmaps"


@dataclass
class AlbefEncoderOutput(ModelOutput):
    """Output of one encoder.

    - `last_hidden_state` (batch_size, sequence_length, hidden_size).
    - `text_hidden_state` (num_phrases, num_tokens, hidden_size): of the text layers, before the image is seen.
    - `explained_attention` (num_phrases, num_heads, num_tokens, 1 + num_patches): of the explained layer.
    - `hidden_states`, `attentions`, `cross_attentions`: of every layer, when asked for.
    """

    last_hidden_state: torch.FloatTensor | None = None
    text_hidden_state: torch.FloatTensor | None = None
    explained_attention: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AlbefOutput(ModelOutput):
    """Output of `AlbefModel`.

    - `itm_logits` (num_phrases, 2): does the phrase fit its image? Index 1 is "yes".
    - `heatmaps` (num_phrases, rows, columns): where in the image; not negative, not normalised.
    - `token_heatmaps` (num_phrases, num_tokens, rows, columns): the same for every word piece.
    - `image_features` (num_images, projection_dim), `text_features` (num_phrases, projection_dim): ITC, unit length.
    - `last_hidden_state` (num_phrases, num_tokens, hidden_size): of the fusion encoder.
    - `hidden_states`, `attentions`, `cross_attentions`: of the text and fusion layers, when asked for.
    - `vision_model_output`: of the image encoder.
    """

    itm_logits: torch.FloatTensor | None = None
    heatmaps: torch.FloatTensor | None = None
    token_heatmaps: torch.FloatTensor | None = None
    image_features: torch.FloatTensor | None = None
    text_features: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    vision_model_output: AlbefEncoderOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class AlbefAttention(nn.Module):
    """From queries, keys and values to the context, by any attention interface."""

    def __init__(self, config: AlbefVisionConfig | AlbefTextConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False

    def split_heads(self, states: Tensor) -> Tensor:
        """(batch_size, length, hidden_size) → (batch_size, num_heads, length, head_dim)"""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attention_interface: Callable | None,
        image_groups: ImageGroups | None = None,
    ) -> StatesAndAttention:
        num_tokens = query.shape[2]
        query = query if image_groups is None else image_groups.join(query)
        dropout = self.attention_dropout if self.training else 0.0
        # No kernel of a CPU has dropout. Written out, all probabilities would be kept where they need not be explained.
        is_checkpointed = attention_interface is None and dropout > 0 and query.device.type == "cpu"
        name = "eager" if is_checkpointed else self.config._attn_implementation
        interface = attention_interface or ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        attend = partial(interface, self, scaling=self.scaling, dropout=dropout)
        states = query, key, value, attention_mask
        context, probabilities = checkpointed(attend, *states, training=is_checkpointed, is_random=True)
        if image_groups is not None:
            context, probabilities = image_groups.part(context, probabilities, num_tokens)
        return context.flatten(2), probabilities


class AlbefVisionAttention(AlbefAttention):
    def __init__(self, config: AlbefVisionConfig):
        super().__init__(config)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, attention_interface: Callable | None = None) -> StatesAndAttention:
        query, key, value = (self.split_heads(states) for states in self.qkv(hidden_states).chunk(3, dim=-1))
        context, probabilities = self.attend(query, key, value, None, attention_interface)
        return self.projection(context), probabilities


class AlbefLayer(GradientCheckpointingLayer):
    """A transformer layer with an MLP, whose wide states are computed again in the backward pass."""

    def add_mlp(self, config: AlbefVisionConfig | AlbefTextConfig) -> None:
        # Behind the attention: weights are drawn in the order of the modules, and a seed is to give the same ones.
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def recompute(self, function: Callable, states: Tensor) -> Tensor:
        # The adapters of peft may have dropout.
        is_random = hasattr(self.intermediate, "base_layer") or hasattr(self.output, "base_layer")
        return checkpointed(function, states, training=self.training, is_random=is_random)

    def contract(self, wide_states: Tensor) -> Tensor:
        """(…, intermediate_size) → (…, hidden_size): the second half of the MLP."""
        return self.dropout(self.recompute(lambda states: self.output(self.activation(states)), wide_states))


class AlbefVisionLayer(AlbefLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: AlbefVisionConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AlbefVisionAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.add_mlp(config)

    def forward(self, hidden_states: Tensor, attention_interface: Callable | None = None) -> StatesAndAttention:
        context, probabilities = self.attention(self.layernorm_before(hidden_states), attention_interface)
        hidden_states = hidden_states + self.dropout(context)
        wide = self.recompute(lambda states: self.intermediate(self.layernorm_after(states)), hidden_states)
        return hidden_states + self.contract(wide), probabilities


def sine_positions(grid: tuple[int, int], hidden_size: int) -> Tensor:
    """(rows * columns, hidden_size): sines and cosines of rows and columns, as of time in arXiv 1706.03762; from one
    radian a patch to half of one over the longer side, as slower ones hardly change in an image."""
    places = torch.cartesian_prod(*map(torch.arange, grid))
    angles = places[:, :, None] * torch.logspace(0, -math.log10(2 * max(grid)), math.ceil(hidden_size / 4))
    return torch.cat([angles.flatten(1).sin(), angles.flatten(1).cos()], dim=1)[:, :hidden_size]


class AlbefVisionEmbeddings(nn.Module):
    def __init__(self, config: AlbefVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        rows, columns = config.grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + rows * columns, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def interpolated_positions(self, grid: tuple[int, int]) -> Tensor:
        """The learned positions on another grid of patches (bicubic), (1, 1 + rows * columns, hidden_size)."""
        # An exported program serves all grids: it may not be built for the one that it was traced with.
        if not torch.compiler.is_compiling() and grid == self.config.grid:
            return self.position_embeddings
        cls_position, patch_positions = self.position_embeddings.split([1, self.position_embeddings.shape[1] - 1], 1)
        patch_positions = patch_positions.unflatten(1, self.config.grid).permute(0, 3, 1, 2)
        patch_positions = F.interpolate(patch_positions.float(), size=grid, mode="bicubic", align_corners=False)
        patch_positions = patch_positions.flatten(2).transpose(1, 2).to(cls_position.dtype)
        return torch.cat([cls_position, patch_positions], dim=1)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = True) -> Tensor:
        num_channels, patch_size = self.config.num_channels, self.config.patch_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
            shape = tuple(pixel_values.shape)
            raise ValueError(f"pixel_values must be (num_images, {num_channels}, height, width), not {shape}.")
        height, width = pixel_values.shape[2:]
        if height % patch_size or width % patch_size:
            raise ValueError(f"Images of {height} x {width} pixels are not a whole number of patches of {patch_size}.")
        if not interpolate_pos_encoding and (height // patch_size, width // patch_size) != self.config.grid:
            raise ValueError(f"Images of {height} x {width} pixels have no learned positions: interpolate them.")
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        positions = self.interpolated_positions(tuple(patches.shape[2:]))
        cls_token = self.cls_token.expand(pixel_values.shape[0], -1, -1)
        return self.dropout(torch.cat([cls_token, patches.flatten(2).transpose(1, 2)], dim=1) + positions)


def check_read(kwargs: dict[str, Any]) -> None:
    """ValueError: an argument that other models read, or AlbefModel.forward alone, would be ignored."""
    for name in ("inputs_embeds", "position_ids", "labels", "return_loss", *OF_MAPS):
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise ValueError(f"ALBEF reads no {name} here: see AlbefModel.forward (of model.albef) for what there is.")


def recorded_outputs(config: AlbefConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pass, with what a configuration asks every pass to record."""
    check_read(kwargs)
    parts = config, config.vision_config, config.text_config
    names = "output_hidden_states", "output_attentions"
    return {name: True for name in names if any(getattr(part, name) for part in parts)} | kwargs


class AlbefPreTrainedModel(PreTrainedModel):
    config: AlbefConfig
    base_model_prefix = "albef"
    main_input_name = "pixel_values"
    input_modalities: tuple[str, ...] = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["AlbefVisionLayer", "AlbefTextLayer", "AlbefVisionEmbeddings", "AlbefTextEmbeddings"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefVisionEmbeddings):
            init.trunc_normal_(module.cls_token, std=module.config.initializer_range)
            positions = sine_positions(module.config.grid, module.config.hidden_size)
            # Half as large as projections of patches of unit variance: beside them, less is drowned.
            scale = module.config.initializer_range * module.patch_embedding.weight[0].numel() ** 0.5 / 2
            init.copy_(module.position_embeddings, F.pad(scale * positions, (0, 0, 1, 0))[None])
        elif isinstance(module, AlbefModel):
            init.constant_(module.temperature, module.config.temperature)


class AlbefVisionModel(AlbefPreTrainedModel):
    """The image encoder."""

    config: AlbefVisionConfig
    base_model_prefix = "vision_model"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embedding"
    _can_record_outputs = {"hidden_states": AlbefVisionLayer, "attentions": AlbefVisionAttention}

    def __init__(self, config: AlbefVisionConfig):
        super().__init__(config)
        self.embeddings = AlbefVisionEmbeddings(config)
        self.layers = nn.ModuleList([AlbefVisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = True, **kwargs: Unpack[TransformersKwargs]
    ) -> AlbefEncoderOutput:
        """Hidden states (num_images, 1 + num_patches, hidden_size), after the final norm, of images (num_images,
        num_channels, height, width): multiples of the patch size; without `interpolate_pos_encoding`, of `image_size`.
        """
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states, _ = layer(hidden_states)
        return AlbefEncoderOutput(last_hidden_state=self.layernorm(hidden_states))

    def explain(
        self, pixel_values: Tensor, image_index: Tensor | None, layer: int, create_graph: bool
    ) -> StatesAndAttention:
        """Hidden states (num_phrases, 1 + num_patches, hidden_size), and the attention probabilities of `layer`.

        From there on every phrase has its own copy of its image, so that each attention serves one score only.
        """
        with torch.set_grad_enabled(create_graph):
            hidden_states = self.embeddings(pixel_values)
            for lower_layer in self.layers[:layer]:
                hidden_states, _ = lower_layer(hidden_states)
        return self._explained_layers(*own_rows((hidden_states,), image_index), layer, create_graph)

    @uncompiled
    @torch.enable_grad()
    def _explained_layers(self, hidden_states: Tensor, explained_layer: int, create_graph: bool) -> StatesAndAttention:
        """The explained layer, all above it and the norm."""
        recorded = []
        for index in range(explained_layer, len(self.layers)):
            interface = explained_interface(index, explained_layer, create_graph)
            hidden_states, attention = self.layers[index](hidden_states, interface)
            recorded.append(attention)
        return self.layernorm(hidden_states), recorded[0]


class AlbefTextAttention(AlbefAttention):
    """BERT's attention block, post-norm: over the text, or from the text to an image of another width."""

    def __init__(self, config: AlbefTextConfig, key_value_size: int):
        super().__init__(config)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_value_size, config.hidden_size)
        self.value = nn.Linear(key_value_size, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(batch_size, length, key_value_size) → keys and values, each (batch_size, num_heads, length, head_dim)"""
        return self.split_heads(self.key(states)), self.split_heads(self.value(states))

    def forward(
        self,
        hidden_states: Tensor,
        key_value: KeyValue,
        attention_mask: Tensor | None = None,
        attention_interface: Callable | None = None,
        image_groups: ImageGroups | None = None,
    ) -> StatesAndAttention:
        query = self.split_heads(self.query(hidden_states))
        context, probabilities = self.attend(query, *key_value, attention_mask, attention_interface, image_groups)
        return self.layernorm(hidden_states + self.dropout(self.dense(context))), probabilities


class AlbefTextLayer(AlbefLayer):
    """A BERT layer; in the fusion encoder with cross-attention between self-attention and MLP."""

    def __init__(self, config: AlbefTextConfig, is_fusion_layer: bool):
        super().__init__()
        self.self_attention = AlbefTextAttention(config, key_value_size=config.hidden_size)
        if is_fusion_layer:
            self.cross_attention = AlbefTextAttention(config, key_value_size=config.encoder_hidden_size)
        self.add_mlp(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        image_key: Tensor | None = None,
        image_value: Tensor | None = None,
        self_interface: Callable | None = None,
        cross_interface: Callable | None = None,
        image_groups: ImageGroups | None = None,
    ) -> StatesAndAttention:
        key_value = self.self_attention.project(hidden_states)
        hidden_states, _ = self.self_attention(hidden_states, key_value, attention_mask, self_interface)
        probabilities = None
        # Key and value are no pair in the signature: reentrant gradient checkpointing looks for tensors there only.
        if image_key is not None:
            cross = hidden_states, (image_key, image_value), None, cross_interface, image_groups
            hidden_states, probabilities = self.cross_attention(*cross)
        return self.layernorm(hidden_states + self.contract(self.intermediate(hidden_states))), probabilities


class AlbefTextEmbeddings(nn.Module):
    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.max_length = config.max_position_embeddings
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        num_tokens = input_ids.shape[1]
        if num_tokens > self.max_length:
            raise ValueError(f"Text of {num_tokens} tokens: at most {self.max_length} have a position. Truncate it.")
        positions = torch.arange(num_tokens, device=input_ids.device)
        if (first := first_tokens(attention_mask)) is not None:
            positions = (positions - first[:, None].to(positions.device)).clamp(min=0)
        # One segment only, as ALBEF was trained: token type 0 everywhere.
        states = self.position_embeddings(positions) + self.token_type_embeddings(torch.zeros_like(positions))
        return self.dropout(self.layernorm(self.word_embeddings(input_ids) + states))


class FusionInputs(NamedTuple):
    """What all fusion layers of a pass are given: `mask` is that of the configured attention."""

    mask: Any
    attention_mask: Tensor | None
    image_key_values: list[KeyValue]
    image_index: Tensor | None
    groups: ImageGroups | None
    explained_layer: int | None
    create_graph: bool


class AlbefTextModel(AlbefPreTrainedModel):
    """The text encoder (layers below `fusion_layer`) and the fusion encoder (the others)."""

    config: AlbefTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _input_embed_layer = "word_embeddings"
    _can_record_outputs = {
        "hidden_states": AlbefTextLayer,
        "attentions": OutputRecorder(AlbefTextAttention, index=1, layer_name=".self_attention"),
        "cross_attentions": OutputRecorder(AlbefTextAttention, index=1, layer_name=".cross_attention"),
    }

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.embeddings = AlbefTextEmbeddings(config)
        self.layers = nn.ModuleList(
            [AlbefTextLayer(config, index >= config.fusion_layer) for index in range(config.num_hidden_layers)]
        )
        self.post_init()

    def project_images(self, image_embeds: Tensor) -> list[KeyValue]:
        """Keys and values of images (num_images, 1 + num_patches, encoder_hidden_size) for every fusion layer."""
        # Contiguous: matrix products would make, and training keep, a copy in every pass.
        pairs = (layer.cross_attention.project(image_embeds) for layer in self.layers[self.config.fusion_layer :])
        return [(key.contiguous(), value.contiguous()) for key, value in pairs]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
        image_key_values: list[KeyValue] | None = None,
        image_index: Tensor | None = None,
        explained_layer: int | None = None,
        create_graph: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefEncoderOutput:
        """Text alone (`input_ids`), fusion (`text_embeds` and images), or both in one pass (`input_ids` and images).

        Args:
            input_ids, attention_mask: (num_phrases, num_tokens), 1 for tokens, 0 for padding.
            text_embeds: (num_phrases, num_tokens, hidden_size), what the text layers gave.
            image_key_values: from `project_images`.
            image_index: (num_phrases,), which image each phrase belongs to; none: phrase i belongs to image i.
            explained_layer: the fusion layer whose cross-attention is recorded, counted from the first text layer.
            create_graph: the explanation is to be differentiated.
        """
        check_read(kwargs)
        if (input_ids is None) == (text_embeds is None):
            raise ValueError("Give either input_ids or text_embeds.")
        fusion_layer = self.config.fusion_layer
        hidden_states = self.embeddings(input_ids, attention_mask) if text_embeds is None else text_embeds
        mask, is_plain = attention_mask, self.config._attn_implementation in ("eager", "sdpa")
        if is_plain and mask is not None and mask.ndim == 2 and mask.device.type != "cpu":
            mask = mask[:, None, None].bool()  # else transformers waits for the GPU to see whether it hides anything
        mask = create_bidirectional_mask(self.config, hidden_states, mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() if explained_layer is None else create_graph):
            for layer in self.layers[:fusion_layer] if text_embeds is None else ():
                hidden_states, _ = layer(hidden_states, mask)
            text_hidden_state, explained_attention = hidden_states, None
            if image_key_values is None:
                return AlbefEncoderOutput(last_hidden_state=hidden_states, text_hidden_state=text_hidden_state)
            groups = group_by_image(image_index, len(image_key_values[0][0]))
            images = image_key_values, image_index, groups
            inputs = FusionInputs(mask, attention_mask, *images, explained_layer, create_graph)
            for index in range(fusion_layer, len(self.layers) if explained_layer is None else explained_layer):
                hidden_states, _ = self._fuse(index, hidden_states, inputs)
        if explained_layer is not None:
            hidden_states, explained_attention = self._explained_layers(hidden_states, inputs)
        return AlbefEncoderOutput(hidden_states, text_hidden_state, explained_attention)

    def _fuse(self, index: int, hidden_states: Tensor, inputs: FusionInputs) -> StatesAndAttention:
        """Hidden states and attention probabilities of one fusion layer."""
        is_eager = inputs.create_graph and index > inputs.explained_layer
        # The explained attention starts a graph in which each phrase has rows of its own.
        groups = None if index == inputs.explained_layer else inputs.groups
        key_value = inputs.image_key_values[index - self.config.fusion_layer]
        return self.layers[index](
            hidden_states,
            additive_mask(inputs.attention_mask, hidden_states.dtype) if is_eager else inputs.mask,
            *(own_rows(key_value, inputs.image_index) if groups is None else key_value),
            eager_attention_forward if is_eager else None,
            explained_interface(index, inputs.explained_layer, inputs.create_graph),
            groups,
        )

    @uncompiled
    @torch.enable_grad()
    def _explained_layers(self, hidden_states: Tensor, inputs: FusionInputs) -> StatesAndAttention:
        """The explained layer and all above it: hidden states, and the explained layer's probabilities."""
        hidden_states, attention = self._fuse(inputs.explained_layer, hidden_states, inputs)
        for index in range(inputs.explained_layer + 1, len(self.layers)):
            hidden_states, _ = self._fuse(index, hidden_states, inputs)
        return hidden_states, attention


def first_tokens(attention_mask: Tensor | None) -> Tensor | None:
    """(num_phrases,), the place of each phrase's [CLS]: 0, unless it is padded on the left; None where all are 0.

    `attention_mask` is (num_phrases, num_tokens), 0 for padding; or (num_phrases, 1, 1 or num_tokens, num_tokens), of
    bool or to add to attention scores. A row that is masked as a whole has a heatmap of zeros.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim == 2:
        return attention_mask.to(torch.int32).argmax(dim=1)
    is_bool = attention_mask.dtype == torch.bool
    if attention_mask.ndim != 4 or not (is_bool or attention_mask.is_floating_point()):
        raise ValueError(
            "attention_mask must be (num_phrases, num_tokens), or four-dimensional of bool or of what to add to "
            f"attention scores, not {tuple(attention_mask.shape)} of {attention_mask.dtype}."
        )
    is_seen = attention_mask if is_bool else attention_mask.float().exp() > 0  # -10000 hides a token as -inf does
    return is_seen.flatten(1, 2).any(dim=1).to(torch.int32).argmax(dim=1)


def cls_states(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(num_phrases, num_tokens, hidden_size) → (num_phrases, hidden_size), of each phrase's [CLS]"""
    first = first_tokens(attention_mask)
    if first is None:
        return states[:, 0]
    # Not len(): a program that is exported would be for one number of phrases.
    return states[torch.arange(states.shape[0], device=states.device), first.to(states.device)]


def own_rows(of_images: tuple[Tensor, ...], image_index: Tensor | None) -> tuple[Tensor, ...]:
    """States, or keys and values, of the images → of each phrase."""
    return of_images if image_index is None else tuple(states[image_index.to(states.device)] for states in of_images)


class AlbefModel(AlbefPreTrainedModel):
    """Scores how well phrases fit images, and shows where in the image each phrase is.

    >>> from modeling_albef_amc import AlbefConfig, AlbefModel
    >>> small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> vision, text = dict(**small, image_size=32, patch_size=8), dict(**small, fusion_layer=1, vocab_size=40)
    >>> model = AlbefModel(AlbefConfig(vision_config=vision, text_config=text, grounding_layer=1)).eval()
    >>> image, phrases = torch.zeros(1, 3, 32, 32), torch.tensor([[2, 7, 9], [2, 8, 5]])
    >>> outputs = model(image, phrases, output_heatmaps=True)
    >>> outputs.itm_logits.shape, outputs.heatmaps.shape  # softmax(-1)[:, 1] of the logits are probabilities
    (torch.Size([2, 2]), torch.Size([2, 4, 4]))
    """

    _keys_to_ignore_on_load_unexpected = [r"^mlm_head\.", r"^momentum_encoder\.", r"_queue$", r"^queue_pointer$"]

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.vision_model = AlbefVisionModel(config.vision_config)
        self.text_model = AlbefTextModel(config.text_config)
        self.vision_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature)))
        self.post_init()

    def save_pretrained(self, save_directory: str | PathLike, *args, **kwargs) -> None:
        # The code of the training objectives is not saved with it.
        if getattr(self.config, "auto_map", None):
            self.config.auto_map.pop("AutoModelForPreTraining", None)
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def itc_image_features(self, image_embeds: Tensor) -> Tensor:
        """(num_images, 1 + num_patches, hidden_size) of the image encoder → ITC features, unit length"""
        return F.normalize(self.vision_projection(image_embeds[:, 0]), dim=-1)

    def itc_text_features(self, text_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(num_phrases, num_tokens, hidden_size) of the text layers → ITC features, unit length"""
        return F.normalize(self.text_projection(cls_states(text_embeds, attention_mask)), dim=-1)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = True, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` (num_images, projection_dim): ITC features, unit length. The others: of the image encoder."""
        kwargs = recorded_outputs(self.config, kwargs)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        features = self.itc_image_features(vision.last_hidden_state)
        return BaseModelOutputWithPooling(vision.last_hidden_state, features, vision.hidden_states, vision.attentions)

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` (num_phrases, projection_dim): ITC features, unit length. The others: of the text layers."""
        text = self.text_model(input_ids, attention_mask, **recorded_outputs(self.config, kwargs))
        features = self.itc_text_features(text.last_hidden_state, attention_mask)
        return BaseModelOutputWithPooling(text.last_hidden_state, features, text.hidden_states, text.attentions)

    @leaving_inference_mode
    @can_return_tuple
    @merge_with_config_defaults
    def forward(  # noqa: PLR0913 - inputs of a model
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        output_heatmaps: bool = False,
        output_token_heatmaps: bool = False,
        heatmap_token_mask: Tensor | None = None,
        explanation: Literal["itm", "itc"] = "itm",
        grounding_layer: int | None = None,
        create_graph: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefOutput:
        """
        Args:
            pixel_values: (num_images, 3, height, width). Each image is encoded once, however many phrases it has.
            input_ids, attention_mask: (num_phrases, num_tokens), padded on either side.
            image_index: (num_phrases,), which image each phrase belongs to. May be left out with one phrase an image
                (in the same order), or with a single image.
            output_heatmaps, output_token_heatmaps: explain the score of each phrase, of every word piece ("itm" only).
            heatmap_token_mask: (num_phrases, num_tokens), 1 for the tokens whose maps are averaged; default all.
            explanation: "itm": the match score by a cross-attention; "itc": the scaled image-text similarity by the
                [CLS] row of a self-attention of the image encoder.
            grounding_layer: the explained layer; default `config.grounding_layer` ("itm") or `vision_grounding_layer`.
            create_graph: keep the heatmaps differentiable; default: in training mode, unless gradients are off.
            kwargs: `interpolate_pos_encoding`, `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        kwargs = recorded_outputs(self.config, kwargs)
        if pixel_values is None or input_ids is None:
            if output_heatmaps or output_token_heatmaps:
                raise ValueError("Heatmaps need both pixel_values and input_ids.")
            return self._encode_alone(pixel_values, input_ids, attention_mask, **kwargs)
        inputs = pixel_values, input_ids, attention_mask, image_index
        if not (output_heatmaps or output_token_heatmaps):
            if create_graph is not None or heatmap_token_mask is not None or grounding_layer is not None:
                raise ValueError("create_graph, heatmap_token_mask and grounding_layer need output_heatmaps=True.")
            return self._score(inputs, **kwargs)[0]
        if explanation == "itc" and output_token_heatmaps:
            raise ValueError("The 'itc' explanation has one map a phrase. Word pieces: explanation='itm'.")
        if create_graph is None:
            create_graph = self.training and torch.is_grad_enabled()
        with torch.set_grad_enabled(create_graph):
            output, phrase_attention = self._explain(inputs, create_graph, grounding_layer, explanation, **kwargs)
            token_heatmaps = gradcam(phrase_attention, create_graph, per_token=True)
            if heatmap_token_mask is not None:
                phrase_attention = choose_tokens(phrase_attention, heatmap_token_mask)
            found = {"heatmaps": average_tokens(token_heatmaps, phrase_attention.token_mask)}
            found |= {"token_heatmaps": token_heatmaps} if output_token_heatmaps else {}
            if not create_graph:
                found |= {name: output[name].detach() for name in ("itm_logits", "last_hidden_state")}
        return AlbefOutput(**{**output, **found})  # what is set on an output is lost when torch 2.6 compiles

    def _encode_alone(
        self, pixel_values: Tensor | None, input_ids: Tensor | None, attention_mask: Tensor | None, **kwargs
    ) -> AlbefOutput:
        if pixel_values is None and input_ids is None:
            raise ValueError("Give pixel_values, input_ids or both.")
        if pixel_values is not None:
            vision = self.vision_model(pixel_values, **kwargs)
            return AlbefOutput(image_features=self.itc_image_features(vision[0]), vision_model_output=vision)
        text = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
        states = dict(hidden_states=text.hidden_states, attentions=text.attentions)
        return AlbefOutput(text_features=text.pooler_output, last_hidden_state=text.last_hidden_state, **states)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(num_images, 3, height, width) → (num_images, 1 + num_patches, hidden_size), `image_embeds` of `explain`."""
        return self.vision_model(pixel_values).last_hidden_state

    @uncompiled
    def explain(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        create_graph: bool = False,
        layer: int | None = None,
        explanation: Literal["itm", "itc"] = "itm",
        image_embeds: Tensor | None = None,
    ) -> PhraseAttention:
        """What `gradcam` makes heatmaps of, and the probability that each phrase fits. Arguments: as of `forward`,
        whose `grounding_layer` is `layer`; and `image_embeds`, of `encode_images`, to encode no image again.
        """
        inputs = pixel_values, input_ids, attention_mask, image_index
        with torch.set_grad_enabled(create_graph):
            output, attention = self._explain(inputs, create_graph, layer, explanation, image_embeds=image_embeds)
        match_logit = output.itm_logits[:, 1] - output.itm_logits[:, 0]
        return attention._replace(probability=match_logit.detach().float().sigmoid(), match_logit=match_logit)

    def _explain(
        self, inputs: tuple, create_graph: bool, layer: int | None, explanation: str, **kwargs
    ) -> tuple[AlbefOutput, PhraseAttention]:
        if explanation == "itm":
            layer = self.config.grounding_layer if layer is None else layer
            return self._score(inputs, layer, create_graph=create_graph, **kwargs)
        if explanation != "itc":
            raise ValueError(f"explanation {explanation!r}: choose 'itm' or 'itc'.")
        output, _ = self._score(inputs, **kwargs)
        return output, self._explain_itc(inputs, output.text_features, layer, create_graph)

    def _score(
        self, inputs: tuple, layer: int | None = None, image_embeds: Tensor | None = None, **kwargs
    ) -> tuple[AlbefOutput, PhraseAttention | None]:
        """One pass from pixels and phrases to ITM logits; with the `layer` to explain, what `gradcam` needs as well."""
        pixel_values, input_ids, attention_mask, image_index = inputs
        image_index = resolve_image_index(pixel_values, input_ids, image_index)
        token_mask = None if layer is None else tokens_to_explain(input_ids, attention_mask)
        create_graph = kwargs.pop("create_graph", False)
        vision = AlbefEncoderOutput(last_hidden_state=image_embeds)
        if image_embeds is None:
            vision = self.vision_model(pixel_values, **kwargs)
        images = self.text_model.project_images(vision.last_hidden_state), image_index
        encoded, itm_logits = self.match(input_ids, attention_mask, *images, layer, create_graph=create_graph, **kwargs)
        names = "last_hidden_state", "hidden_states", "attentions", "cross_attentions"
        output = AlbefOutput(
            itm_logits=itm_logits,
            image_features=self.itc_image_features(vision.last_hidden_state),
            text_features=self.itc_text_features(encoded.text_hidden_state, attention_mask),
            vision_model_output=vision,
            **{name: encoded.get(name) for name in names},
        )
        explained = itm_logits, encoded, token_mask, self.patch_grid(pixel_values)
        return output, None if layer is None else match_attention(*explained)

    def match(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        image_key_values: list[KeyValue],
        image_index: Tensor | None,
        explained_layer: int | None = None,
        **kwargs,
    ) -> tuple[AlbefEncoderOutput, Tensor]:
        """`text_model` on phrases and encoded images: its output, and the ITM logits (num_phrases, 2)."""
        first, last = self.config.text_config.fusion_layer, self.config.text_config.num_hidden_layers - 1
        if explained_layer is not None and not first <= explained_layer <= last:
            raise ValueError(f"grounding_layer {explained_layer} is no fusion layer: choose one of {first}..{last}.")
        kwargs |= dict(image_key_values=image_key_values, image_index=image_index, explained_layer=explained_layer)
        encoded = self.text_model(input_ids, attention_mask, **kwargs)
        for name, most in (("attentions", last), ("cross_attentions", last - first)):
            if encoded.get(name) and len(encoded[name]) <= most:  # of those alone that ran eagerly
                encoded[name] = ()
        head = self.itm_logits if explained_layer is None else self._explained_itm_logits
        return encoded, head(encoded.last_hidden_state, attention_mask)

    def itm_logits(self, fused_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(num_phrases, num_tokens, hidden_size) of the fusion encoder → (num_phrases, 2)"""
        return self.itm_head(cls_states(fused_states, attention_mask))

    _explained_itm_logits = uncompiled(torch.enable_grad()(itm_logits))

    def _explain_itc(
        self, inputs: tuple, text_features: Tensor, layer: int | None, create_graph: bool
    ) -> PhraseAttention:
        """The scaled image-text similarity and the self-attention of image-encoder layer `layer`, [CLS] row only."""
        num_layers = self.config.vision_config.num_hidden_layers
        layer = self.config.vision_grounding_layer if layer is None else layer
        if not -num_layers <= layer < num_layers:
            raise ValueError(f"grounding_layer {layer} is outside the image encoder's {num_layers} layers.")
        pixel_values, *_, image_index = inputs
        image_index = resolve_image_index(pixel_values, text_features, image_index)
        states, attention = self.vision_model.explain(pixel_values, image_index, layer % num_layers, create_graph)
        cls_row = F.pad(torch.ones(len(attention), 1, device=attention.device), (0, attention.shape[2] - 1))
        patches = slice(1, None), self.patch_grid(pixel_values)
        return PhraseAttention(
            self._itc_score(states, text_features), attention, cls_row, *patches, has_token_maps=False
        )

    @uncompiled
    @torch.enable_grad()
    def _itc_score(self, image_embeds: Tensor, text_features: Tensor) -> Tensor:
        image_features = self.itc_image_features(image_embeds)
        similarity = (image_features * text_features.to(image_features.device)).sum(dim=-1)
        return similarity / self.temperature.to(similarity.device)

    def patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches of these images."""
        patch_size = self.config.vision_config.patch_size
        return pixel_values.shape[2] // patch_size, pixel_values.shape[3] // patch_size


def tokens_to_explain(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(num_phrases, num_tokens), 1 for the tokens of each phrase."""
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(f"attention_mask must be (num_phrases, num_tokens) here, not {tuple(attention_mask.shape)}.")
    return torch.ones_like(input_ids) if attention_mask is None else attention_mask


@uncompiled
@torch.enable_grad()
def match_attention(
    itm_logits: Tensor, encoded: AlbefEncoderOutput, token_mask: Tensor, grid: tuple[int, int]
) -> PhraseAttention:
    """Explains `itm_logits[:, 1]` by the cross-attention that was recorded; `grid` is (rows, columns) of patches."""
    score, attention, places = itm_logits[:, 1], encoded.explained_attention, first_tokens(token_mask)
    return PhraseAttention(score, attention, token_mask, slice(1, None), grid, cls_places=places)
