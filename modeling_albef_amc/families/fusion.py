"""Models that look at an image with a phrase in mind, and say whether they fit: BLIP, BLIP-2, ViLT, BridgeTower.

LXMERT is not among them: it sees the regions of a detector, and no grid of patches.
"""

from typing import Literal

import torch
import transformers
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from ..gradcam import PhraseAttention, resolve_image_index
from .family import AdaptedModules, Family, Size, layers_of_text
from .hooks import (
    check_padded_right,
    chosen_layer,
    family_function,
    graph_from,
    record_attention,
    without_dropout,
)
from .relevance import blip_modules, vilt_modules


@family_function
def blip(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    create_graph: bool = False,
    layer: int | None = None,
    explanation: Literal["itm"] = "itm",
    image_embeds: torch.Tensor | None = None,
) -> PhraseAttention:
    """BLIP with its matching head: the match logit, by the cross-attention of text layer `layer`.

    The default layer is two thirds up the text encoder (8 of 12): BLIP attends to the image in every layer. Its
    attention never goes through transformers' attention interface, so it is recorded by a hook, before dropout.
    """
    check_explanation(explanation)
    layers = model.text_encoder.encoder.layer
    layer = chosen_layer(layer, len(layers), default=2 * len(layers) // 3)
    image_index = resolve_image_index(pixel_values, input_ids, image_index)
    with graph_from(layers[layer], create_graph), record_attention(layers[layer].crossattention.self) as recorded:
        image_embeds = encode_images(model, pixel_values) if image_embeds is None else image_embeds
        image_embeds = image_embeds if image_index is None else image_embeds[image_index]
        states = model.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=image_embeds
        ).last_hidden_state
        itm_logits = model.itm_head(states[:, 0])
        grid = patch_grid(model.config.vision_config.patch_size, pixel_values)
        return matched(itm_logits, recorded[0], token_mask(input_ids, attention_mask), slice(1, None), grid)


@family_function
def blip_2(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    create_graph: bool = False,
    layer: int | None = None,
    explanation: Literal["itm"] = "itm",
    image_embeds: torch.Tensor | None = None,
) -> PhraseAttention:
    """BLIP-2 with its matching head: the match logit, by the cross-attention of Q-Former layer `layer`.

    Not words look at the image but learned queries, which have read the phrase; the map is the mean of theirs. The
    default layer is two thirds up those that look at the image, which every other layer does.
    """
    check_explanation(explanation)
    layers, crossing = model.qformer.encoder.layer, cross_attention_layers(model)
    layer = crossing[2 * len(crossing) // 3] if layer is None else layer
    if layer not in crossing:
        raise ValueError(f"layer {layer} does not look at the image: choose one of {', '.join(map(str, crossing))}.")
    image_index = resolve_image_index(pixel_values, input_ids, image_index)
    attention = layers[layer].crossattention.attention
    mask = token_mask(input_ids, attention_mask)
    with (
        graph_from(layers[layer], create_graph),
        without_dropout(attention),
        record_attention(attention) as recorded,
    ):
        image_embeds = encode_images(model, pixel_values) if image_embeds is None else image_embeds
        image_embeds = image_embeds if image_index is None else image_embeds[image_index]
        queries = model.query_tokens.expand(len(input_ids), -1, -1)
        query_mask = mask.new_ones(queries.shape[:2])
        states = model.qformer(
            query_embeds=model.embeddings(input_ids=input_ids, query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=torch.cat([query_mask, mask], dim=1),
            encoder_hidden_states=image_embeds,
        ).last_hidden_state
        itm_logits = model.itm_head(states[:, : queries.shape[1]].to(model.itm_head.weight.dtype)).mean(dim=1)
        grid = patch_grid(model.config.vision_config.patch_size, pixel_values)
        return matched(itm_logits, recorded[0], query_mask, slice(1, None), grid)


def encode_images(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(num_images, 1 + num_patches, hidden_size)"""
    return model.vision_model(pixel_values, interpolate_pos_encoding=True).last_hidden_state


def cross_attention_layers(model: PreTrainedModel) -> list[int]:
    """Those of the Q-Former that look at the image."""
    return [index for index, block in enumerate(model.qformer.encoder.layer) if block.has_cross_attention]


@family_function
def vilt(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    create_graph: bool = False,
    layer: int | None = None,
    explanation: Literal["itm"] = "itm",
) -> PhraseAttention:
    """ViLT with its ranking head: the rank logit, by what the words attend to among the patches in layer `layer`.

    The default layer is two thirds up. ViLT itself takes patches in a random order, and drops some of large images;
    here it gets all of them, row by row. Its attention comes after dropout, which is off in the explained layer.
    """
    check_explanation(explanation)
    layers = model.vilt.encoder.layer
    layer = chosen_layer(layer, len(layers), default=2 * len(layers) // 3)
    image_index = resolve_image_index(pixel_values, input_ids, image_index)
    attention = layers[layer].attention.attention
    mask = token_mask(input_ids, attention_mask)
    with (
        graph_from(layers[layer], create_graph),
        without_dropout(attention),
        record_attention(attention) as recorded,
    ):
        image_embeds = patches_in_order(model.vilt.embeddings, pixel_values)
        image_embeds = image_embeds if image_index is None else image_embeds[image_index]
        pooled = model.vilt(
            input_ids=input_ids,
            attention_mask=mask,
            image_embeds=image_embeds,
            pixel_mask=mask.new_ones(image_embeds.shape[:2]),
            output_attentions=True,
        ).pooler_output
        score = model.rank_output(pooled)[:, 0]
        num_tokens = input_ids.shape[1]
        return PhraseAttention(
            score,
            recorded[0],
            mask,
            slice(num_tokens + 1, None),
            patch_grid(model.config.patch_size, pixel_values),
            score.detach().float().sigmoid(),
            score,
            slice(0, num_tokens),
        )


def patches_in_order(embeddings: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """(num_images, 1 + num_patches, hidden_size): ViLT's patches, row by row behind [CLS], with their positions."""
    patches = embeddings.patch_embeddings(pixel_values)
    side = embeddings.config.image_size // embeddings.config.patch_size
    cls_position, positions = embeddings.position_embeddings.split([1, side**2], dim=1)
    if tuple(patches.shape[2:]) != (side, side):
        positions = positions.transpose(1, 2).unflatten(-1, (side, side))
        positions = F.interpolate(positions, size=patches.shape[2:], mode="bilinear", align_corners=True)
        positions = positions.flatten(2).transpose(1, 2)
    patches = torch.cat([embeddings.cls_token.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    return embeddings.dropout(patches + torch.cat([cls_position, positions], dim=1))


@family_function
def bridgetower(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    create_graph: bool = False,
    layer: int | None = None,
    explanation: Literal["itm"] = "itm",
) -> PhraseAttention:
    """BridgeTower with its matching head: the match logit, by the cross-attention of text layer `layer`.

    Layers are counted from the first that sees both; the default is two thirds up (4 of 6). Its two towers run side by
    side in one pass, so that an image is encoded for each of its phrases.
    """
    check_explanation(explanation)
    layers = model.bridgetower.cross_modal_text_layers
    layer = chosen_layer(layer, len(layers), default=2 * len(layers) // 3)
    image_index = resolve_image_index(pixel_values, input_ids, image_index)
    attention = layers[layer].crossattention.self
    mask = token_mask(input_ids, attention_mask)
    with (
        graph_from(layers[layer], create_graph),
        without_dropout(attention),
        record_attention(attention) as recorded,
    ):
        itm_logits = model(
            input_ids=input_ids,
            attention_mask=mask,
            pixel_values=pixel_values if image_index is None else pixel_values[image_index],
            interpolate_pos_encoding=True,
        ).logits
        grid = patch_grid(model.config.vision_config.patch_size, pixel_values)
        return matched(itm_logits, recorded[0], mask, slice(1, None), grid)


def bridgetower_layers(model: PreTrainedModel) -> range:
    return range(len(model.bridgetower.cross_modal_text_layers))


def matched(
    itm_logits: torch.Tensor,
    attention: torch.Tensor,
    mask: torch.Tensor,
    patches: slice,
    grid: tuple[int, int],
) -> PhraseAttention:
    """Of a matching head: logits (num_phrases, 2), index 1 for "the phrase fits its image"."""
    match_logit = itm_logits[:, 1] - itm_logits[:, 0]
    probability = match_logit.detach().float().sigmoid()
    return PhraseAttention(itm_logits[:, 1], attention, mask, patches, grid, probability, match_logit)


def check_explanation(explanation: str) -> None:
    if explanation != "itm":
        raise ValueError(f"explanation {explanation!r}: this family is explained by its match score, 'itm', only.")


def token_mask(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    check_padded_right(attention_mask)
    return torch.ones_like(input_ids) if attention_mask is None else attention_mask


def patch_grid(patch_size: int, pixel_values: torch.Tensor) -> tuple[int, int]:
    return pixel_values.shape[2] // patch_size, pixel_values.shape[3] // patch_size


def small_blip(size: Size, **options) -> PreTrainedConfig:
    text = size.text | dict(sep_token_id=size.eos, encoder_hidden_size=size.width)
    return transformers.BlipConfig(
        vision_config=size.encoder | size.images, text_config=text | options, image_text_hidden_size=size.width
    )


def small_blip_2(size: Size, **options) -> PreTrainedConfig:
    qformer = {name: value for name, value in size.text.items() if not name.startswith(("bos", "eos"))}
    qformer |= dict(encoder_hidden_size=size.width, cross_attention_frequency=2, use_qformer_text_input=True)
    # A language model comes with the configuration; there is none in the model.
    unused = dict(model_type="opt", hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8, vocab_size=10)
    return transformers.Blip2Config(
        vision_config=size.encoder | size.images,
        qformer_config=qformer | options,
        text_config=unused | dict(word_embed_proj_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        num_query_tokens=4,
        image_text_hidden_size=size.width,
        image_token_index=None,
    )


def small_vilt(size: Size, **options) -> PreTrainedConfig:
    return transformers.ViltConfig(**size.images | size.text | options, max_image_length=-1)


def small_bridgetower(size: Size, **options) -> PreTrainedConfig:
    text = size.text | options
    text["max_position_embeddings"] += size.pad + 1  # its positions begin behind the padding's
    # Heads of its image encoder are 64 wide.
    vision = dict(hidden_size=max(64, size.width), num_hidden_layers=size.layers, **size.images)
    return transformers.BridgeTowerConfig(
        text_config=text,
        vision_config=vision,
        hidden_size=size.width,
        num_hidden_layers=size.layers - 1,
        num_attention_heads=size.heads,
    )


BERT_ATTENTION = r"(cross)?attention\.((self|attention)\.(query|key|value)|output\.dense)"
JOINT_ATTENTION = r"vision_model\.encoder\.layers\.\d+\.self_attn\.(qkv|projection)"

BLIP = Family(
    title="BLIP",
    explain=blip,
    model_class="BlipForImageTextRetrieval",
    processor_class="BlipProcessor",
    adapted=AdaptedModules(rf"{JOINT_ATTENTION}|text_encoder\.encoder\.layer\.\d+\.{BERT_ATTENTION}", ("itm_head",)),
    layers=layers_of_text,
    modules=blip_modules,
    encode_images=encode_images,
    small_config=small_blip,
)
BLIP_2 = Family(
    title="BLIP-2",
    explain=blip_2,
    model_class="Blip2ForImageTextRetrieval",
    processor_class="Blip2Processor",
    adapted=AdaptedModules(rf"{JOINT_ATTENTION}|qformer\.encoder\.layer\.\d+\.{BERT_ATTENTION}", ("itm_head",)),
    has_token_maps=False,
    layers=cross_attention_layers,
    encode_images=encode_images,
    small_config=small_blip_2,
)
VILT = Family(
    title="ViLT",
    explain=vilt,
    model_class="ViltForImageAndTextRetrieval",
    processor_class="ViltProcessor",
    adapted=AdaptedModules(rf"encoder\.layer\.\d+\.{BERT_ATTENTION}", ("rank_output",)),
    modules=vilt_modules,
    small_config=small_vilt,
)
BRIDGETOWER = Family(
    title="BridgeTower",
    explain=bridgetower,
    model_class="BridgeTowerForImageAndTextRetrieval",
    processor_class="BridgeTowerProcessor",
    # The attention of its image encoder is torch's, which never calls the layers that it consists of: the MLPs instead.
    adapted=AdaptedModules(
        rf"(text_model\.encoder\.layer|cross_modal_(text|image)_layers)\.\d+\.{BERT_ATTENTION}"
        r"|vision_model\.visual\.transformer\.resblocks\.\d+\.mlp\.c_(fc|proj)",
        ("itm_score",),
    ),
    layers=bridgetower_layers,
    small_config=small_bridgetower,
)
