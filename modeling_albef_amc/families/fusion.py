"""Models that look at an image with a phrase in mind, and say if they fit: BLIP, BLIP-2, ViLT, BridgeTower, FLAVA.

LXMERT is not among them: it sees the regions of a detector, and no grid of patches.
"""

import torch
import transformers
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from ..gradcam import PhraseAttention
from .family import AdaptedModules, Family, Pass, Size, layers_of_text
from .hooks import explained_attention, graph_from, onloaded, record_attention
from .relevance import blip_modules, vilt_modules


def blip(given: Pass) -> PhraseAttention:
    """BLIP with its matching head: the match logit, by the cross-attention of a text layer.

    The default layer is two thirds up the text encoder (8 of 12): BLIP attends to the image in every layer. Its
    attention never goes through transformers' attention interface, so it is recorded by a hook, before dropout.
    """
    model, layer = given.model, given.model.text_encoder.encoder.layer[given.layer]
    with graph_from(layer, given.create_graph), record_attention(layer.crossattention.self) as recorded:
        states = model.text_encoder(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            encoder_hidden_states=given.own_images(encoded_images(given)),
        ).last_hidden_state
        return matched(given, model.itm_head(states[:, 0]), recorded[0])


def encode_images(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(num_images, 1 + num_patches, hidden_size)"""
    return model.vision_model(pixel_values, interpolate_pos_encoding=True).last_hidden_state


def encoded_images(given: Pass) -> torch.Tensor:
    return encode_images(given.model, given.pixel_values) if given.image_embeds is None else given.image_embeds


def cross_attention_layers(model: PreTrainedModel) -> list[int]:
    """Those of the Q-Former that look at the image."""
    return [index for index, block in enumerate(model.qformer.encoder.layer) if block.has_cross_attention]


def blip_2(given: Pass) -> PhraseAttention:
    """BLIP-2 with its matching head: the match logit, by the cross-attention of a Q-Former layer.

    Not words look at the image but learned queries, which have read the phrase; the map is the mean of theirs. The
    default layer is two thirds up those that look at the image, which every other layer does.
    """
    model, layer = given.model, given.model.qformer.encoder.layer[given.layer]
    with explained_attention(layer, layer.crossattention.attention, given.create_graph) as recorded:
        image_embeds = given.own_images(encoded_images(given))
        queries = model.query_tokens.expand(len(given.input_ids), -1, -1)
        query_mask = given.attention_mask.new_ones(queries.shape[:2])
        with onloaded(model.embeddings.word_embeddings):  # it asks for their device before it calls them
            embedded = model.embeddings(input_ids=given.input_ids, query_embeds=queries)
        states = model.qformer(
            query_embeds=embedded,
            query_length=queries.shape[1],
            attention_mask=torch.cat([query_mask, given.attention_mask], dim=1),
            encoder_hidden_states=image_embeds,
        ).last_hidden_state
        itm_logits = model.itm_head(states[:, : queries.shape[1]].to(model.itm_head.weight.dtype)).mean(dim=1)
        return matched(given, itm_logits, recorded[0], query_mask)


def vilt(given: Pass) -> PhraseAttention:
    """ViLT with its ranking head: the rank logit, by what the words attend to among the patches in a layer.

    The default layer is two thirds up. ViLT itself takes patches in a random order, and drops some of large images;
    here it gets all of them, row by row. Its attention comes after dropout, which is off in the explained layer.
    """
    model, layer, mask = given.model, given.model.vilt.encoder.layer[given.layer], given.attention_mask
    with explained_attention(layer, layer.attention.attention, given.create_graph) as recorded:
        with onloaded(model.vilt.embeddings):
            image_embeds = given.own_images(patches_in_order(model.vilt.embeddings, given.pixel_values))
        pooled = model.vilt(
            input_ids=given.input_ids,
            attention_mask=mask,
            image_embeds=image_embeds,
            pixel_mask=mask.new_ones(image_embeds.shape[:2]),
            output_attentions=True,
        ).pooler_output
        score, num_tokens = model.rank_output(pooled)[:, 0], mask.shape[1]
        patches, probability = slice(num_tokens + 1, None), score.detach().float().sigmoid()
        words = slice(0, num_tokens)
        return PhraseAttention(score, recorded[0], mask, patches, given.grid, probability, score, words)


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


def bridgetower(given: Pass) -> PhraseAttention:
    """BridgeTower with its matching head: the match logit, by the cross-attention of a text layer.

    Layers are counted from the first that sees both; the default is two thirds up (4 of 6). Its two towers run side by
    side in one pass, so that an image is encoded for each of its phrases.
    """
    layer = given.model.bridgetower.cross_modal_text_layers[given.layer]
    blocks = given.model.bridgetower.vision_model.visual.transformer.resblocks
    with (
        onloaded(*(block.attn.out_proj for block in blocks)),  # torch's attention uses its weights without calling it
        explained_attention(layer, layer.crossattention.self, given.create_graph) as recorded,
    ):
        itm_logits = given.model(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            pixel_values=given.own_images(given.pixel_values),
            interpolate_pos_encoding=True,
        ).logits
        return matched(given, itm_logits, recorded[0])


class FlavaForPreTraining(transformers.FlavaForPreTraining):
    """As of transformers; it also says where its word embeddings are, which peft asks every model that ties weights."""

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.flava.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.flava.text_model.set_input_embeddings(value)


def flava(given: Pass) -> PhraseAttention:
    """FLAVA with its matching head: the match logit, by what the words attend to among the patches in a joint layer.

    The default is the last layer but one (4 of 6), since of the last [CLS] alone is read. As in `FlavaModel`, they take
    what the encoders of image and text end with, before it is normalised. Attention comes after dropout, which is off
    in the explained layer.
    """
    model, flava, mask = given.model, given.model.flava, given.attention_mask
    layer = flava.multimodal_model.encoder.layer[given.layer]
    with explained_attention(layer, layer.attention.attention, given.create_graph) as recorded:
        images = encode_flava_images(model, given.pixel_values) if given.image_embeds is None else given.image_embeds
        images = given.own_images(flava.image_to_mm_projection(images))
        words = flava.text_model(given.input_ids, mask, output_hidden_states=True).hidden_states[-1]
        words = flava.text_to_mm_projection(words).to(images.device)
        first_word = flava.multimodal_model.use_cls_token + images.shape[1]
        states = flava.multimodal_model(
            torch.cat([images, words], dim=1),
            attention_mask=torch.cat([mask.new_ones(len(mask), first_word), mask], dim=1),
            output_attentions=True,
        ).last_hidden_state
        patches = slice(first_word - images.shape[1] + 1, first_word)  # behind one [CLS] of both, one of the image
        found = matched(given, model.itm_head(states), recorded[0])
        return found._replace(patches=patches, queries=slice(first_word, None))


def encode_flava_images(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(num_images, 1 + num_patches, hidden_size)"""
    options = dict(interpolate_pos_encoding=True, output_hidden_states=True)
    return model.flava.image_model(pixel_values.to(model.dtype), **options).hidden_states[-1]


def matched(
    given: Pass, itm_logits: torch.Tensor, attention: torch.Tensor, queries: torch.Tensor | None = None
) -> PhraseAttention:
    """Of a matching head: logits (num_phrases, 2), index 1 for "the phrase fits its image"."""
    match_logit = itm_logits[:, 1] - itm_logits[:, 0]
    probability, mask = match_logit.detach().float().sigmoid(), given.attention_mask if queries is None else queries
    return PhraseAttention(itm_logits[:, 1], attention, mask, slice(1, None), given.grid, probability, match_logit)


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


def small_flava(size: Size, **options) -> PreTrainedConfig:
    return transformers.FlavaConfig(
        image_config=size.encoder | size.images | dict(vocab_size=size.vocab_size),
        text_config=size.text,
        multimodal_config=size.encoder | options,
        hidden_size=size.width,
        projection_dim=size.width,
        init_codebook=False,  # it makes labels for a loss that is not used here
    )


BERT_ATTENTION = r"(cross)?attention\.((self|attention)\.(query|key|value)|output\.dense)"
JOINT_ATTENTION = r"vision_model\.encoder\.layers\.\d+\.self_attn\.(qkv|projection)"

BLIP = Family(
    title="BLIP",
    model_class="BlipForImageTextRetrieval",
    processor_class="BlipProcessor",
    function=blip,
    layers={"itm": layers_of_text},
    adapted=AdaptedModules(rf"{JOINT_ATTENTION}|text_encoder\.encoder\.layer\.\d+\.{BERT_ATTENTION}", ("itm_head",)),
    modules=blip_modules,
    encode_images=encode_images,
    small_config=small_blip,
)
BLIP_2 = Family(
    title="BLIP-2",
    model_class="Blip2ForImageTextRetrieval",
    processor_class="Blip2Processor",
    function=blip_2,
    layers={"itm": cross_attention_layers},
    adapted=AdaptedModules(rf"{JOINT_ATTENTION}|qformer\.encoder\.layer\.\d+\.{BERT_ATTENTION}", ("itm_head",)),
    has_token_maps=False,
    encode_images=encode_images,
    small_config=small_blip_2,
)
VILT = Family(
    title="ViLT",
    model_class="ViltForImageAndTextRetrieval",
    processor_class="ViltProcessor",
    function=vilt,
    layers={"itm": lambda model: range(model.config.num_hidden_layers)},
    adapted=AdaptedModules(rf"encoder\.layer\.\d+\.{BERT_ATTENTION}", ("rank_output",)),
    modules=vilt_modules,
    small_config=small_vilt,
)
BRIDGETOWER = Family(
    title="BridgeTower",
    model_class="BridgeTowerForImageAndTextRetrieval",
    processor_class="BridgeTowerProcessor",
    function=bridgetower,
    layers={"itm": lambda model: range(len(model.bridgetower.cross_modal_text_layers))},
    # The attention of its image encoder is torch's, which never calls the layers that it consists of: the MLPs instead.
    adapted=AdaptedModules(
        rf"(text_model\.encoder\.layer|cross_modal_(text|image)_layers)\.\d+\.{BERT_ATTENTION}"
        r"|vision_model\.visual\.transformer\.resblocks\.\d+\.mlp\.c_(fc|proj)",
        ("itm_score",),
    ),
    small_config=small_bridgetower,
)
FLAVA = Family(
    title="FLAVA",
    model_class="FlavaForPreTraining",
    processor_class="FlavaProcessor",
    function=flava,
    layers={"itm": lambda model: range(model.config.multimodal_config.num_hidden_layers - 1)},
    depth=1,
    adapted=AdaptedModules(rf"(image|text|multimodal)_model\.encoder\.layer\.\d+\.{BERT_ATTENTION}", ("itm_head",)),
    encode_images=encode_flava_images,
    small_config=small_flava,
    own_classes={"FlavaForPreTraining": FlavaForPreTraining},
)
