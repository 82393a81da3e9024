"""Generative models whose phrases look at the image in their own self-attention: LLaVA, Qwen-VL, SmolVLM, Gemma 3, ….

`DECODERS` has those of `cross_decoders` too.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .cross_decoders import FLORENCE_2, KOSMOS_2, MLLAMA
from .decoder import Decoder, small, small_text, small_vision
from .family import Size
from .hooks import onloaded, tensor_on
from .prompts import ImageText

# Images ---------------------------------------------------------------------------------------------------------------


def plain_features(model: PreTrainedModel, pixel_values: torch.Tensor, **more: Any) -> torch.Tensor:
    """(num_images, num_tokens, hidden_size)"""
    found = model.model.get_image_features(pixel_values, return_dict=True, **more).pooler_output
    return found if torch.is_tensor(found) else torch.stack(list(found))


def framed_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Of Idefics 3 and SmolVLM, which take several images at a time, and leave out those that are all zeros."""
    empty = (pixel_values == 0).flatten(1).all(dim=1)
    pixel_values = pixel_values.clone()
    pixel_values[empty, 0, 0, 0] = torch.finfo(pixel_values.dtype).tiny
    return plain_features(model, pixel_values[:, None])


def sized_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Of Mistral 3, which asks for sizes in pixels."""
    return plain_features(model, pixel_values, image_sizes=torch.tensor([pixel_values.shape[-2:]] * len(pixel_values)))


def single_tile_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Of LLaVA-NeXT and LLaVA-OneVision: the whole image as its one tile, and the token that ends it."""
    core, config = model.model, model.config
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    states = core.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    states = states[layer] if isinstance(layer, int) else torch.cat([states[each] for each in layer], dim=-1)
    features = core.multi_modal_projector(states[:, 1:] if strategy == "default" else states)
    with onloaded(core):
        end = core.image_newline.to(features).expand(len(features), 1, -1)
    return torch.cat([features, end], dim=1)


def qwen_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Of Qwen-VL; Qwen3-VL's features for the first layers of the language model lie behind the others."""
    vision = model.config.vision_config
    rows, columns = (side // vision.patch_size for side in pixel_values.shape[-2:])
    sizes = tensor_on(pixel_values.device, [[1, rows, columns]] * len(pixel_values))
    patches = qwen_patches(pixel_values, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    found = model.model.get_image_features(patches, image_grid_thw=sizes, return_dict=True)
    levels = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
    rows = [level if torch.is_tensor(level) else torch.cat(list(level)) for level in levels]  # split by image, or not
    return torch.cat(rows, dim=-1).unflatten(0, (len(pixel_values), -1))


def qwen_patches(pixel_values: torch.Tensor, patch: int, merge: int, frames: int) -> torch.Tensor:
    """What Qwen's processor makes of images: a row a patch, those that are merged side by side, an image as a film."""
    cells = pixel_values.unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
    cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)  # images, rows, columns, rows and columns of a cell, colours, pixels
    return cells.flatten(0, 4).unsqueeze(2).expand(-1, -1, frames, -1, -1).flatten(1)


# Small models ---------------------------------------------------------------------------------------------------------


def mrope(size: Size, **more: Any) -> dict[str, Any]:
    """Of positions with three parts, of which one is of time."""
    half = size.width // size.heads // 2
    side = half // 4
    return dict(rope_type="default", mrope_section=[half - 2 * side, side, side], rope_theta=1e6, **more)


def square_of(number: int) -> int:
    return round(number**0.5)


def small_tiled(size: Size, **more: Any) -> dict[str, Any]:
    vision = small_vision(size, model_type="clip_vision_model", projection_dim=size.width)
    pinpoints = [[size.image_size, 2 * size.image_size], [2 * size.image_size, size.image_size]]
    text = small_text(size, model_type="llama")
    return dict(vision_config=vision, text_config=text, image_grid_pinpoints=pinpoints, **more)


def small_framed(size: Size) -> dict[str, Any]:
    return dict(
        vision_config=small_vision(size, merge=2), text_config=small_text(size, model_type="llama"), scale_factor=2
    )


def small_siglip(size: Size, text_type: str, merge: int = 1, **text: Any) -> dict[str, Any]:
    vision = small_vision(size, merge, model_type="siglip_vision_model", vision_use_head=False)
    return dict(vision_config=vision, text_config=small_text(size, model_type=text_type, **text))


def small_qwen(size: Size, vision: dict[str, Any], rope: dict[str, Any], **text: Any) -> dict[str, Any]:
    tokens = {f"{name}_token_id": 1 for name in ("video", "vision_start", "vision_end")}
    patches = dict(depth=size.layers, num_heads=size.heads, patch_size=size.patch_size // 2, spatial_merge_size=2)
    return dict(
        vision_config=dict(hidden_size=size.width, **patches) | vision,
        text_config=small_text(size, rope_parameters=mrope(size, **rope), **text),
        **tokens,
    )


def small_qwen_2(size: Size) -> dict[str, Any]:
    return small_qwen(size, dict(embed_dim=size.width, mlp_ratio=2), {})


def small_qwen_2_5(size: Size) -> dict[str, Any]:
    vision = dict(out_hidden_size=size.width, intermediate_size=2 * size.width, fullatt_block_indexes=[0])
    return small_qwen(size, vision | dict(window_size=2 * size.patch_size), {})


def small_qwen_3(size: Size) -> dict[str, Any]:
    vision = dict(out_hidden_size=size.width, intermediate_size=2 * size.width, num_position_embeddings=64)
    return small_qwen(size, vision | dict(deepstack_visual_indexes=[0, 1]), dict(mrope_interleaved=True))


def small_qwen_3_5(size: Size) -> dict[str, Any]:
    head = size.width // size.heads
    linear = dict(linear_num_value_heads=size.heads, linear_num_key_heads=size.heads // 2)
    linear |= dict(linear_key_head_dim=head, linear_value_head_dim=head)
    types = [f"{'full' if number % 2 else 'linear'}_attention" for number in range(size.layers)]
    vision = dict(out_hidden_size=size.width, intermediate_size=2 * size.width, num_position_embeddings=64)
    rope = dict(mrope_interleaved=True, partial_rotary_factor=1.0)
    return small_qwen(size, vision, rope, layer_types=types, **linear)


def small_gemma_3(size: Size) -> dict[str, Any]:
    types = [f"{'full' if number % 2 else 'sliding'}_attention" for number in range(size.layers)]
    text = dict(query_pre_attn_scalar=size.width // size.heads, sliding_window=256, layer_types=types)
    text |= dict(rope_parameters=None)
    tokens = (size.image_size // size.patch_size) ** 2
    return small_siglip(size, "gemma3_text", merge=2, **text) | dict(mm_tokens_per_image=tokens)


def small_mistral_3(size: Size) -> dict[str, Any]:
    vision = small_vision(size, merge=2, model_type="pixtral", head_dim=size.width // size.heads)
    return dict(vision_config=vision, text_config=small_text(size, model_type="mistral"), spatial_merge_size=2)


def small_internvl(size: Size) -> dict[str, Any]:
    tokens = (size.image_size // size.patch_size) ** 2
    vision, text = small_vision(size, merge=2), small_text(size, model_type="qwen2")
    return dict(vision_config=vision, text_config=text, image_seq_length=tokens)


# Records --------------------------------------------------------------------------------------------------------------


def llava_cell(config: PreTrainedConfig) -> int:
    """ValueError: another image encoder, beside whose tokens the prompt has others."""
    if config.vision_config.model_type == "pixtral":
        raise ValueError("LLaVA with Pixtral's image encoder is not known here; Mistral 3, which is made like it, is.")
    return config.vision_config.patch_size


LLAVA = Decoder(
    title="LLaVA",
    model_class="LlavaForConditionalGeneration",
    processor_class="LlavaProcessor",
    cell=llava_cell,
    features=plain_features,
    small_config=partial(small, "LlavaConfig", lambda size: small_tiled(size, image_seq_length=16)),
)
LLAVA_NEXT = replace(
    LLAVA,
    title="LLaVA-NeXT",
    model_class="LlavaNextForConditionalGeneration",
    processor_class="LlavaNextProcessor",
    features=single_tile_features,
    num_after=1,
    small_config=partial(small, "LlavaNextConfig", small_tiled),
)
LLAVA_ONEVISION = replace(
    LLAVA_NEXT,
    title="LLaVA-OneVision",
    model_class="LlavaOnevisionForConditionalGeneration",
    processor_class="LlavaOnevisionProcessor",
    small_config=partial(
        small,
        "LlavaOnevisionConfig",
        lambda size: small_tiled(size) | small_siglip(size, "qwen2") | dict(video_token_index=1),
    ),
)
PALIGEMMA = replace(
    LLAVA,
    title="PaliGemma",
    model_class="PaliGemmaForConditionalGeneration",
    processor_class="PaliGemmaProcessor",
    image_text=ImageText(plain="{image}{bos}answer en {}\n", answers=("yes", "no")),
    is_whole=True,
    small_config=partial(
        small, "PaliGemmaConfig", lambda size: small_siglip(size, "gemma") | dict(projection_dim=size.width)
    ),
)
IDEFICS_3 = Decoder(
    title="Idefics 3",
    model_class="Idefics3ForConditionalGeneration",
    processor_class="Idefics3Processor",
    cell=lambda config: config.vision_config.patch_size * config.scale_factor,
    features=framed_features,
    any_size=True,
    image_text=ImageText(text="<fake_token_around_image><global-img>{}<fake_token_around_image>"),
    small_config=partial(small, "Idefics3Config", small_framed),
)
SMOLVLM = replace(
    IDEFICS_3,
    title="SmolVLM",
    model_class="SmolVLMForConditionalGeneration",
    processor_class="SmolVLMProcessor",
    small_config=partial(small, "SmolVLMConfig", small_framed),
)
INTERNVL = Decoder(
    title="InternVL",
    model_class="InternVLForConditionalGeneration",
    processor_class="InternVLProcessor",
    cell=lambda config: round(config.vision_config.patch_size[0] / config.downsample_ratio),
    features=plain_features,
    any_size=True,
    image_text=ImageText(text="<img>{}</img>"),
    small_config=partial(small, "InternVLConfig", small_internvl),
)
GEMMA_3 = Decoder(
    title="Gemma 3",
    model_class="Gemma3ForConditionalGeneration",
    processor_class="Gemma3Processor",
    cell=lambda config: config.vision_config.image_size // square_of(config.mm_tokens_per_image),
    features=plain_features,
    image_text=ImageText("<start_of_image>", "\n\n<start_of_image>{}<end_of_image>\n\n"),
    small_config=partial(small, "Gemma3Config", small_gemma_3),
)
MISTRAL_3 = Decoder(
    title="Mistral 3",
    model_class="Mistral3ForConditionalGeneration",
    processor_class="PixtralProcessor",
    cell=lambda config: config.vision_config.patch_size * config.spatial_merge_size,
    features=sized_features,
    image_text=ImageText(text="{}[IMG_END]", row_end="[IMG_BREAK]"),
    only_squares=False,
    any_size=True,
    small_config=partial(small, "Mistral3Config", small_mistral_3),
)
QWEN_2_VL = Decoder(
    title="Qwen2-VL",
    model_class="Qwen2VLForConditionalGeneration",
    processor_class="Qwen2VLProcessor",
    cell=lambda config: config.vision_config.patch_size * config.vision_config.spatial_merge_size,
    features=qwen_features,
    only_squares=False,
    any_size=True,
    small_config=partial(small, "Qwen2VLConfig", small_qwen_2),
)
QWEN_2_5_VL = replace(
    QWEN_2_VL,
    title="Qwen2.5-VL",
    model_class="Qwen2_5_VLForConditionalGeneration",
    processor_class="Qwen2_5_VLProcessor",
    small_config=partial(small, "Qwen2_5_VLConfig", small_qwen_2_5),
)
QWEN_3_VL = replace(
    QWEN_2_VL,
    title="Qwen3-VL",
    model_class="Qwen3VLForConditionalGeneration",
    processor_class="Qwen3VLProcessor",
    small_config=partial(small, "Qwen3VLConfig", small_qwen_3),
)
QWEN_3_5 = replace(
    QWEN_3_VL,
    title="Qwen3.5",
    model_class="Qwen3_5ForConditionalGeneration",
    is_whole=True,  # its linear layers have a state in place of keys and values
    small_config=partial(small, "Qwen3_5Config", small_qwen_3_5),
)
DECODERS = {
    "llava": LLAVA,
    "llava_next": LLAVA_NEXT,
    "llava_onevision": LLAVA_ONEVISION,
    "smolvlm": SMOLVLM,
    "idefics3": IDEFICS_3,
    "internvl": INTERNVL,
    "gemma3": GEMMA_3,
    "mistral3": MISTRAL_3,
    "qwen2_vl": QWEN_2_VL,
    "qwen2_5_vl": QWEN_2_5_VL,
    "qwen3_vl": QWEN_3_VL,
    "qwen3_5": QWEN_3_5,
    "paligemma": PALIGEMMA,
    "florence2": FLORENCE_2,
    "kosmos-2": KOSMOS_2,
    "mllama": MLLAMA,
}
