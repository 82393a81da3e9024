"""Generative models, explained by an attention of their language model to the image: see `decoders`.

The image comes first, then the phrase: what its tokens, and the answer, look at among the image's tokens is the map.
Two scores can be explained. "yes": the log-odds of the answer yes to the question whether the image shows the phrase
(VQAScore, arXiv 2404.01291). "likelihood": the mean log-probability of the phrase's tokens as the answer (arXiv
2306.01879), a rank and no calibrated probability, since phrases are not equally likely without an image.

What comes before the phrase is computed once an image, in the model's own attention (SDPA, flash); what comes after it
for each phrase, in eager attention, from the keys and values of the former.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..gradcam import PhraseAttention
from .family import AdaptedModules, Family, Layers, Pass, Size
from .hooks import explained_attention, tensor_on
from .objectives import caption_loss, matching_loss
from .prompts import ImageText, Prompt, make_prompt

# LoRA's: the language model's attention, and what turns image features into its tokens.
ATTENTION_AND_PROJECTOR = (
    r"model\.(language_model|text_model)\.layers\.\d+\.self_attn\.[qkvo]_proj"
    r"|model\.multi_modal_projector\.(linear|linear_1|linear_2|patch_merger\.merging_layer)"
    r"|model\.connector\.modality_projection\.proj|model\.visual\.merger\.(mlp\.[02]|linear_fc\d)"
)
# How far up the default layer is: 14 of 32 in LLaVA-1.5 ("MLLMs Know Where to Look", arXiv 2502.17422).
DEPTH = 0.44
# What transformers calls keys and values, and called them before 5.24.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
# Where the configuration does not say what size of images a model was trained with: pixels of 16 x 16 cells of Qwen's.
IMAGE_SIZE = 448


@dataclass(frozen=True)
class Decoder(Family):
    """A family of generative models.

    Args:
        cell: of the configuration, pixels a side of what one image token stands for.
        features: of the model and pixel values, what its language model gets of each image.
        image_text: what its processor makes of the place of an image in a text.
        only_squares: the grid of other images would be another than it seems, without an error.
        any_size: images may have another size than in training. num_after: features behind those of the grid.
        is_whole: nothing of the language model can be computed before the phrase is known.
    """

    cell: Callable[[PreTrainedConfig], int] | None = None
    features: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] | None = None
    image_text: ImageText = field(default_factory=ImageText)
    only_squares: bool = True
    any_size: bool = False
    num_after: int = 0
    is_whole: bool = False
    layers: dict[str, Layers] = field(
        default_factory=lambda: dict.fromkeys(("yes", "likelihood"), full_attention_layers)
    )
    adapted: AdaptedModules = field(default_factory=lambda: AdaptedModules(ATTENTION_AND_PROJECTOR))
    depth: float = DEPTH
    losses: dict[str, Callable] = field(
        default_factory=lambda: {"loss_itm": partial(matching_loss, is_drawn=True), "loss_caption": caption_loss}
    )
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", partial(decoder, self))
        object.__setattr__(self, "encode_images", partial(encode_images, self))

    def make_prompt(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
    ) -> Prompt:
        """How a model is asked. ValueError: see `prompts.make_prompt`."""
        return make_prompt(config, tokenizer, chat_template, self.image_text)

    def explained_modules(self, model: PreTrainedModel, layer: int) -> tuple[nn.Module, nn.Module]:
        """Where the graph begins, and the attention that is explained."""
        module = model.get_decoder().layers[layer]
        return module, module.self_attn

    def states(
        self, model: PreTrainedModel, tail: "Tail", encoded: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, slice | torch.Tensor]:
        """Of the tail's tokens (num_phrases, num_tokens, hidden_size); and which keys of the attention are the grid's.

        `encoded`: of `encode_images`, each phrase's own.
        """
        is_whole, prompt = encoded.ndim == 3, Prompt.of(model.config)
        num_features = encoded.shape[1] if is_whole else encoded.shape[4] - len(prompt.before)
        prefix = Prefix.of(self, model.config, grid, num_features, encoded.device)
        inputs = (whole_inputs if is_whole else tail_inputs)(model, prefix, tail, encoded)
        return language_states(model, inputs).last_hidden_state[:, -tail.input_ids.shape[1] :], prefix.patches

    def small_model(self, size: Size | None = None, **options: Any) -> PreTrainedModel:
        """Words differ as much as they do in a trained model, or attention would not tell them apart."""
        model = super().small_model(size, **options)
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_()
        return model

    def grid(self, config: PreTrainedConfig, pixel_values: torch.Tensor) -> tuple[int, int]:
        """(rows, columns) of image tokens. ValueError: the image has no whole ones."""
        height, width = pixel_values.shape[-2:]
        side = self.cell(config)
        if height % side or width % side:
            raise ValueError(f"Images of {height} x {width} pixels are not a whole number of cells of {side}.")
        if self.only_squares and height != width:
            raise ValueError(f"{self.title} takes square images, not {height} x {width} pixels: see whole_images.")
        return height // side, width // side


# Prefix: all that comes before the phrase and does not depend on it ---------------------------------------------------


@dataclass
class Prefix:
    """The image's part of a prompt.

    - `input_ids` (num_tokens,); `is_image`: which of them stand for the image. `patches`: where its grid is among them.
    - `position_ids` (3, num_tokens): of Qwen-VL's rotary embedding, by time, row and column; None: as they are counted.
    - `next_place`: the position of what follows.
    """

    input_ids: torch.Tensor
    is_image: torch.Tensor
    patches: slice | torch.Tensor
    position_ids: torch.Tensor | None
    next_place: int

    @classmethod
    def of(
        cls, family: Decoder, config: PreTrainedConfig, grid: tuple[int, int], num_features: int, device: torch.device
    ) -> "Prefix":
        """`num_features`: image tokens; those that are not of the grid are behind it, or [CLS] before it.

        Raises ValueError: they are fewer than the grid's cells, or too many.
        """
        (rows, columns), image, prompt = grid, config.image_token_id, Prompt.of(config)
        end = prompt.row_end
        num_before = 0 if end else num_features - rows * columns - family.num_after
        if num_before not in (0, 1):
            raise ValueError(
                f"{num_features} features of an image of {rows} x {columns} cells: is vision_feature_select_strategy "
                "what this image encoder needs, 'full' of one without [CLS]?"
            )
        start = len(prompt.before) + num_before
        row = [*[image] * columns, *end]
        of_image = [*row * rows][: -len(end)] if end else [image] * num_features
        ids = tensor_on(device, [*prompt.before, *of_image])
        cells = torch.arange(rows * columns, device=device)
        row_of, column_of = cells // columns, cells % columns
        patches = start + row_of * len(row) + column_of if end else slice(start, start + rows * columns)
        if "mrope_section" not in (config.get_text_config().rope_parameters or {}):
            return cls(ids, ids == image, patches, None, len(ids))
        of_grid = start + torch.stack([torch.zeros_like(cells), row_of, column_of])
        position_ids = torch.cat([torch.arange(start, device=device).expand(3, -1), of_grid], dim=1)
        return cls(ids, ids == image, patches, position_ids, start + max(grid))

    def inputs(self, model: PreTrainedModel, features: torch.Tensor) -> dict[str, Any]:
        """What the model takes in place of images and tokens, and is told of the image's places.

        Qwen3-VL's features have parts for the first layers of its language model behind the first.
        """
        shape, is_image = (len(features), len(self.input_ids)), self.is_image.expand(len(features), -1)
        embeds = model.get_input_embeddings()(self.input_ids.masked_fill(self.is_image, 0)[None]).expand(*shape, -1)
        first, *levels = features.to(embeds).split(embeds.shape[-1], dim=-1)
        inputs = dict(inputs_embeds=embeds.masked_scatter(is_image[..., None], first))
        if levels:
            levels = [level.flatten(0, 1) for level in levels]
            inputs |= dict(visual_pos_masks=is_image, deepstack_visual_embeds=levels)
        if model.config.model_type == "gemma3":
            inputs |= dict(token_type_ids=is_image.long())
        if self.position_ids is not None:
            inputs |= dict(position_ids=self.position_ids[:, None].expand(-1, len(features), -1))
        return inputs

    def following(self, num_rows: int, num_tokens: int) -> torch.Tensor:
        """Positions of what follows: (num_rows, num_tokens), of Qwen-VL (3, num_rows, num_tokens)."""
        places = self.next_place + torch.arange(num_tokens, device=self.input_ids.device)
        return places.expand(num_rows, -1) if self.position_ids is None else places.expand(3, num_rows, -1)


def language_states(model: PreTrainedModel, inputs: dict[str, Any]) -> Any:
    """The model without its head; as its model of images and text takes no features for layers, without that."""
    return (model.model.language_model if "deepstack_visual_embeds" in inputs else model.model)(**inputs)


@contextmanager
def text_attention(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """The language model's attention is of this kind in here, all of it: masks are made for one kind."""
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def runs_whole(model: PreTrainedModel, family: Decoder) -> bool:
    """With activation checkpointing, there are no keys and values to go on from.

    Raises ValueError: what is computed once more in the backward pass would be so in another kind of attention.
    """
    is_checkpointed = model.training and any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    if is_checkpointed and model.config.get_text_config()._attn_implementation != "eager":
        raise ValueError(
            f"Activation checkpointing of {family.title} needs eager attention throughout: load the model with "
            'attn_implementation="eager".'
        )
    return family.is_whole or is_checkpointed


def encode_images(family: Decoder, model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Keys and values of the prompt as far as the image: (num_images, num_layers, 2, num_heads, num_tokens, head_size).

    Where the whole prompt runs for each phrase, the image's features (num_images, num_tokens, hidden_size).
    """
    features = family.features(model, pixel_values)
    if runs_whole(model, family):
        return features
    grid = family.grid(model.config, pixel_values)
    prefix = Prefix.of(family, model.config, grid, features.shape[1], pixel_values.device)
    cache = language_states(model, prefix.inputs(model, features) | dict(use_cache=True))[CACHE]
    pairs = [torch.stack([layer.keys, layer.values], dim=1) for layer in cache.layers]
    if min(pair.shape[3] for pair in pairs) < len(prefix.input_ids):
        raise ValueError(
            f"{len(prefix.input_ids)} tokens of image and prompt are more than the model's sliding window."
        )
    return torch.stack(pairs, dim=1)


def cache_of(model: PreTrainedModel, encoded: torch.Tensor) -> DynamicCache:
    """Keys and values to go on from; they stay in the graph of `encoded`."""
    cache = DynamicCache(config=model.config.get_text_config())
    for number, pair in enumerate(encoded.unbind(dim=1)):
        cache.update(pair[:, 0], pair[:, 1], number)
    return cache


# The function ---------------------------------------------------------------------------------------------------------


@dataclass
class Tail:
    """What follows the image for each phrase, padded on the right, where nothing looks.

    - `input_ids` (num_phrases, num_tokens). `mask`: what is no padding.
    - `rows`: the places whose attention is explained, of which `row_mask` (num_phrases, num_rows) counts.
    - `num_answered`: tokens that the image's own may look at; (num_phrases,).
    """

    input_ids: torch.Tensor
    mask: torch.Tensor
    rows: slice
    row_mask: torch.Tensor
    num_answered: torch.Tensor

    @classmethod
    def question(cls, given: Pass, prompt: Prompt) -> "Tail":
        """… whether the image shows the phrase: explained are its tokens, and the place of the answer."""
        words, lengths = given.input_ids, given.attention_mask.sum(dim=1)
        ids, before = tensor_on(words.device, prompt.after), len(prompt.question)
        place = torch.arange(words.shape[1] + len(ids), device=words.device)
        behind = place - lengths[:, None]
        padded = torch.cat([words, words.new_zeros(len(words), len(ids))], dim=1)
        asked = padded.where(behind < 0, ids[behind.clamp(0, len(ids) - 1)])
        start = tensor_on(words.device, prompt.question).expand(len(words), -1)
        is_row = (behind < 0) | (behind == len(ids) - 1)
        num_tokens = before + lengths + len(ids)
        all_places = torch.arange(before + len(place), device=words.device)
        return cls(
            torch.cat([start, asked], dim=1),
            (all_places < num_tokens[:, None]).long(),
            slice(before, None),
            is_row.long(),
            num_tokens,
        )

    @classmethod
    def caption(cls, given: Pass, prompt: Prompt) -> "Tail":
        """… the phrase as the answer: explained is, for each token, the place before it, which predicts it."""
        words, before = given.input_ids, len(prompt.caption)
        start = tensor_on(words.device, prompt.caption).expand(len(words), -1)
        ids = torch.cat([start, words[:, :-1]], dim=1)
        num_tokens = before - 1 + given.attention_mask.sum(dim=1)
        mask = (torch.arange(ids.shape[1], device=ids.device) < num_tokens[:, None]).long()
        answered = torch.full_like(num_tokens, before)
        return cls(ids, mask, slice(before - 1, None), given.attention_mask, answered)


def decoder(family: Decoder, given: Pass) -> PhraseAttention:
    """Any of them, by default by the layer 0.44 of the way up those that look at the image."""
    model, prompt = given.model, Prompt.of(given.model.config)
    grid = family.grid(model.config, given.pixel_values)
    is_yes = given.explanation == "yes"
    tail = Tail.question(given, prompt) if is_yes else Tail.caption(given, prompt)
    with torch.set_grad_enabled(given.create_graph):
        encoded = given.image_embeds
        encoded = family.encode_images(model, given.pixel_values) if encoded is None else encoded
        encoded = given.own_images(encoded)
    start, attention = family.explained_modules(model, given.layer)
    with text_attention(model, "eager"), explained_attention(start, attention, given.create_graph) as recorded:
        states, patches = family.states(model, tail, encoded, grid)
        states, mask = states[:, tail.rows], tail.row_mask
        queries, num_more = slice(recorded[0].shape[2] - mask.shape[1], None), mask.shape[1] - given.input_ids.shape[1]
        if not family.has_token_maps:  # it is learned queries that look at the image
            mask, queries, num_more = mask.new_ones(len(mask), recorded[0].shape[2]), slice(None), 0
        if is_yes:
            last = tail.row_mask.shape[1] - 1 - tail.row_mask.flip(1).argmax(dim=1)  # the answer
            answers = logits_of(model, states[torch.arange(len(states), device=states.device), last])
            score = answers[:, prompt.yes] - answers[:, prompt.no]
            probability, match_logit = score.detach().sigmoid(), score
        else:
            each = logits_of(model, states).log_softmax(dim=-1).gather(2, given.input_ids[..., None])[..., 0]
            score = (each * tail.row_mask).sum(dim=1) / tail.row_mask.sum(dim=1)
            probability, match_logit = score.detach().exp(), None
        explained = recorded[0], mask, patches, grid, probability, match_logit, queries
        return PhraseAttention(score, *explained, num_more=num_more)


def tail_inputs(model: PreTrainedModel, prefix: Prefix, tail: Tail, encoded: torch.Tensor) -> dict[str, Any]:
    """Of a pass that goes on from the image's keys and values."""
    past, position_ids = cache_of(model, encoded), prefix.following(*tail.input_ids.shape)
    words = model.get_input_embeddings()(tail.input_ids)
    return {"inputs_embeds": words, CACHE: past, "position_ids": position_ids, "use_cache": True}


def whole_inputs(model: PreTrainedModel, prefix: Prefix, tail: Tail, features: torch.Tensor) -> dict[str, Any]:
    """Of a pass through the whole prompt for each phrase."""
    num_phrases, num_tokens = tail.input_ids.shape
    inputs = prefix.inputs(model, features)
    words = model.get_input_embeddings()(tail.input_ids)
    inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], words], dim=1)
    if "position_ids" in inputs:
        inputs["position_ids"] = torch.cat([inputs["position_ids"], prefix.following(num_phrases, num_tokens)], dim=2)
    for name in inputs.keys() & {"token_type_ids", "visual_pos_masks"}:
        inputs[name] = F.pad(inputs[name], (0, num_tokens))
    if model.config.model_type == "paligemma":  # all of the prompt looks at all of it; what is answered only back
        place = torch.arange(inputs["inputs_embeds"].shape[1], device=words.device)
        num_prompted = len(prefix.input_ids) + tail.num_answered
        inputs["token_type_ids"] = (place >= num_prompted[:, None]).long()
        inputs["attention_mask"] = F.pad(tail.mask, (len(prefix.input_ids), 0), value=1)
    return inputs | dict(use_cache=False)


def logits_of(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """What the model gives of these states, in at least float32."""
    logits = model.get_output_embeddings()(states)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def full_attention_layers(model: PreTrainedModel) -> list[int]:
    """Those of the language model that look at all tokens before them: no linear ones, none with a sliding window."""
    return [
        number
        for number, layer in enumerate(model.get_decoder().layers)
        if hasattr(layer, "self_attn") and not getattr(layer.self_attn, "sliding_window", None)
    ]


# Small models ---------------------------------------------------------------------------------------------------------


def small_text(size: Size, **more: Any) -> dict[str, Any]:
    """Of a language model: six more tokens than phrases have are for the prompt."""
    tokens = dict(pad_token_id=size.pad, bos_token_id=1, eos_token_id=size.eos)
    sizes = dict(
        vocab_size=size.vocab_size + 6, max_position_embeddings=512, num_key_value_heads=max(1, size.heads // 2)
    )
    rope = dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    return size.encoder | tokens | sizes | rope | dict(head_dim=size.width // size.heads) | more


def small_vision(size: Size, merge: int = 1, **more: Any) -> dict[str, Any]:
    return size.encoder | dict(image_size=size.image_size, patch_size=size.patch_size // merge) | more


def small(config_class: str, parts: Callable[[Size], dict[str, Any]], size: Size, **options: Any) -> PreTrainedConfig:
    """`parts`: of the configuration, apart from the tokens; `options`: of the language model."""
    image, question, yes, no, *others = range(size.vocab_size, size.vocab_size + 6)
    made = parts(size)
    made["text_config"] = made["text_config"] | options
    tokens = dict(image_token_id=image, tie_word_embeddings=False)
    config = getattr(transformers, config_class)(**tokens, **made)
    ends = others[:1] if config.model_type == "mistral3" else []
    Prompt([1], [question], [question, size.eos], [question, yes], yes, no, ends).keep(
        config, image_size=size.image_size
    )
    return config
