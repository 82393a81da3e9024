"""Generative models in which an attention of its own looks at the image: Florence-2, Kosmos-2, Mllama (Llama 3.2)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .decoder import Decoder, Tail, small, small_text, small_vision
from .family import AdaptedModules, Size
from .hooks import onloaded, tensor_on
from .prompts import ImageText, Prompt

# What Florence-2's processor makes of its task <CAPTION>.
CAPTION_TASK = "What does the image describe?"


@dataclass(frozen=True)
class Florence2(Decoder):
    """An encoder of image and task, and a decoder whose cross-attention looks at what the encoder gives.

    It answers no questions: its one score is the likelihood of the phrase as the caption.
    """

    def patch_size(self, config: PreTrainedConfig) -> int:
        """Of its last stage: its convolutions have sizes, and overlap."""
        return self.cell(config)

    def make_prompt(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
    ) -> Prompt:
        """`question` is what the encoder reads behind the image."""
        task = tokenizer(CAPTION_TASK, add_special_tokens=False)["input_ids"]
        question = [tokenizer.bos_token_id, *task, tokenizer.eos_token_id]
        caption = [config.text_config.decoder_start_token_id, tokenizer.bos_token_id]
        return Prompt([], question, [], caption, None, None, [])

    def explained_modules(self, model: PreTrainedModel, layer: int) -> tuple[nn.Module, nn.Module]:
        module = model.model.language_model.decoder.layers[layer]
        return module, module.encoder_attn

    def states(
        self, model: PreTrainedModel, tail: Tail, encoded: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, slice]:
        decoder = model.model.language_model.decoder
        output = decoder(input_ids=tail.input_ids, encoder_hidden_states=encoded, use_cache=False)
        return output.last_hidden_state, behind_first(grid)


@dataclass(frozen=True)
class Kosmos2(Decoder):
    """Learned queries look at the image, and the language model at them."""

    def explained_modules(self, model: PreTrainedModel, layer: int) -> tuple[nn.Module, nn.Module]:
        attention = model.image_to_text_projection.x_attn
        return attention, attention

    def states(
        self, model: PreTrainedModel, tail: Tail, encoded: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, slice]:
        latents, _ = model.image_to_text_projection(encoded)
        before, (num_phrases, num_latents, _) = Prompt.of(model.config).before, latents.shape
        # Any token but that of padding keeps the places of latents, which count as positions.
        prefix = tensor_on(latents.device, [*before, *before[-1:] * num_latents])
        ids = torch.cat([prefix.expand(num_phrases, -1), tail.input_ids], dim=1)
        is_latent = torch.zeros_like(ids)
        is_latent[:, len(before) : len(prefix)] = 1
        output = model.text_model.model(
            input_ids=ids, image_embeds=latents, image_embeds_position_mask=is_latent, use_cache=False
        )
        return output.last_hidden_state[:, len(prefix) :], behind_first(grid)


@dataclass(frozen=True)
class Mllama(Decoder):
    """Layers of cross-attention to the image among those of the language model."""

    def explained_modules(self, model: PreTrainedModel, layer: int) -> tuple[nn.Module, nn.Module]:
        module = model.model.language_model.layers[layer]
        return module, module.cross_attn

    def small_model(self, size: Size | None = None, **options: Any) -> PreTrainedModel:
        """With open gates: a new model's are shut, and nothing of the image comes through."""
        model = super().small_model(size, **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(1.0)
        return model

    def states(
        self, model: PreTrainedModel, tail: Tail, encoded: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, slice]:
        before, num_phrases = Prompt.of(model.config).before, len(encoded)
        prefix = torch.tensor([*before, model.config.image_token_id], device=encoded.device)
        ids = torch.cat([prefix.expand(num_phrases, -1), tail.input_ids], dim=1)
        # What comes before the image does not look at it, nor anything at the empty tiles.
        looks = ids.new_zeros(*ids.shape, 1, model.config.vision_config.max_num_tiles)
        looks[:, len(before) :, :, 0] = 1
        output = model.model(input_ids=ids, cross_attention_states=encoded, cross_attention_mask=looks, use_cache=False)
        return output.last_hidden_state[:, len(prefix) :], behind_first(grid)


def behind_first(grid: tuple[int, int]) -> slice:
    """The keys of the grid, behind one of the whole image."""
    return slice(1, 1 + math.prod(grid))


def florence_2_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the encoder gives of images and task: (num_images, 1 + num_cells + num_words, hidden_size)"""
    images = model.model.get_image_features(pixel_values, return_dict=True).pooler_output
    task = torch.tensor(Prompt.of(model.config).question, device=images.device)
    words = model.get_input_embeddings()(task).expand(len(images), -1, -1)
    embeds = torch.cat([images, words.to(images.device)], dim=1)
    return model.model.language_model.encoder(inputs_embeds=embeds).last_hidden_state


def kosmos_2_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(num_images, 1 + num_patches, hidden_size)"""
    states = model.vision_model(pixel_values, interpolate_pos_encoding=True).last_hidden_state
    return F.normalize(model.vision_model.model.post_layernorm(states), dim=-1)


def mllama_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(num_images, max_num_tiles * (1 + num_patches), hidden_size): the whole image as the first tile.

    The others are empty, as its processor makes them, and the encoder does not leave them out.
    """
    vision, num_images = model.config.vision_config, len(pixel_values)
    tiles = F.pad(pixel_values[:, None, None], (0, 0) * 3 + (0, vision.max_num_tiles - 1))
    is_tile = torch.zeros(num_images, 1, vision.max_num_tiles, dtype=torch.long, device=tiles.device)
    is_tile[..., 0] = 1
    ratio = torch.full((num_images, 1), 1 + vision.supported_aspect_ratios.index([1, 1]), device=tiles.device)
    with onloaded(model.model.vision_model.patch_embedding):  # it asks for its device before it calls it
        states = model.model.vision_model(tiles, ratio, is_tile).last_hidden_state
    return model.model.multi_modal_projector(states).flatten(1, 3)


def the_only_layer(model: PreTrainedModel) -> list[int]:
    return [0]


def small_florence_2(size: Size) -> dict[str, Any]:
    stages = dict(patch_size=[7, 3], patch_stride=[size.patch_size // 2, 2], patch_padding=[3, 1])
    stages |= dict(patch_prenorm=[False, True], depths=[1, 1], num_heads=[1, 2], num_groups=[1, 2])
    vision = dict(embed_dim=[size.width // 2, size.width], projection_dim=size.width, window_size=4, drop_path_rate=0.0)
    layers = dict.fromkeys(("encoder_layers", "decoder_layers"), size.layers)
    layers |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), size.heads)
    layers |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 2 * size.width)
    tokens = dict(pad_token_id=size.pad, bos_token_id=1, eos_token_id=size.eos, decoder_start_token_id=size.eos)
    text = dict(model_type="bart", d_model=size.width, vocab_size=size.vocab_size + 6, max_position_embeddings=512)
    return dict(vision_config=vision | stages, text_config=text | layers | tokens | dict(dropout=0.0))


def small_kosmos_2(size: Size) -> dict[str, Any]:
    sizes = dict(embed_dim=size.width, layers=size.layers, attention_heads=size.heads, ffn_dim=2 * size.width)
    text = dict(vocab_size=size.vocab_size + 6, max_position_embeddings=512, pad_token_id=size.pad, dropout=0.0)
    text |= dict(attention_dropout=0.0, bos_token_id=1, eos_token_id=size.eos)
    return dict(vision_config=small_vision(size), text_config=text | sizes, latent_query_num=4)


def small_mllama(size: Size) -> dict[str, Any]:
    vision = small_vision(size) | dict(attention_heads=size.heads, num_global_layers=1, max_num_tiles=2)
    vision |= dict(vision_output_dim=2 * size.width, intermediate_layers_indices=[0])
    vision |= dict(supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]])
    text = small_text(size) | dict(cross_attention_layers=[*range(1, size.layers)], dropout=0.0)
    return dict(vision_config=vision, text_config=text)


FLORENCE_2 = Florence2(
    title="Florence-2",
    model_class="Florence2ForConditionalGeneration",
    processor_class="Florence2Processor",
    cell=lambda config: math.prod(config.vision_config.patch_stride),
    features=florence_2_features,
    only_squares=False,
    any_size=True,
    is_whole=True,
    layers={"likelihood": lambda model: range(len(model.model.language_model.decoder.layers))},
    adapted=AdaptedModules(
        r"model\.language_model\.(encoder|decoder)\.layers\.\d+\.(self_attn|encoder_attn)\.([qkv]|out)_proj"
        r"|model\.multi_modal_projector\.image_projection"
    ),
    small_config=partial(small, "Florence2Config", small_florence_2),
)
KOSMOS_2 = Kosmos2(
    title="Kosmos-2",
    model_class="Kosmos2ForConditionalGeneration",
    processor_class="Kosmos2Processor",
    cell=lambda config: config.vision_config.patch_size,
    features=kosmos_2_features,
    image_text=ImageText(plain="{bos}<image>{image}</image> Question: {} Answer:", token="<unk>"),
    only_squares=False,
    any_size=True,
    is_whole=True,
    has_token_maps=False,
    layers=dict.fromkeys(("yes", "likelihood"), the_only_layer),
    adapted=AdaptedModules(
        r"text_model\.model\.layers\.\d+\.self_attn\.([qkv]|out)_proj"
        r"|image_to_text_projection\.(dense|x_attn\.([qkv]|out)_proj)"
    ),
    small_config=partial(small, "Kosmos2Config", small_kosmos_2),
)
MLLAMA = Mllama(
    title="Mllama (Llama 3.2)",
    model_class="MllamaForConditionalGeneration",
    processor_class="MllamaProcessor",
    cell=lambda config: config.vision_config.patch_size,
    features=mllama_features,
    is_whole=True,
    layers=dict.fromkeys(("yes", "likelihood"), lambda model: model.config.text_config.cross_attention_layers),
    adapted=AdaptedModules(
        r"model\.language_model\.layers\.\d+\.(self|cross)_attn\.[qkvo]_proj|model\.multi_modal_projector"
    ),
    small_config=partial(small, "MllamaConfig", small_mllama),
)
