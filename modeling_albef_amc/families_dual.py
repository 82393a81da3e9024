"""Dual encoders, explained by the image encoder's self-attention: CLIP, AltCLIP, ChineseCLIP, SigLIP.

Such a model does not look at the image for a phrase: its attention is the same for all phrases, and what tells them
apart is the gradient of the similarity.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AltCLIPModel, ChineseCLIPModel, CLIPModel, PreTrainedModel, SiglipModel

from .batch_losses import known_matches
from .gradcam import (
    PhraseAttention,
    chosen_layer,
    graph_from,
    leaving_inference_mode,
    record_attention,
    resolve_image_index,
    without_dropout,
)


@leaving_inference_mode
def clip(
    model: CLIPModel | AltCLIPModel | ChineseCLIPModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    create_graph: bool = False,
    layer: int | None = None,
    explanation: Literal["itc"] = "itc",
) -> PhraseAttention:
    """CLIP and its like: the scaled cosine, by the [CLS] row of the self-attention of image-encoder layer `layer`.

    The default is the last layer: its [CLS] row is all that the image's features are made of. `probability` is
    (1 + cosine) / 2, a rank and no calibrated probability: these models only compare.

    Raises:
        ValueError: there is no such layer or explanation.
    """
    if explanation != "itc":
        raise ValueError(f"explanation {explanation!r}: a dual encoder has its similarity, 'itc', only.")
    layers = model.vision_model.encoder.layers
    layer = chosen_layer(layer, len(layers), default=len(layers) - 1)
    image_index = resolve_image_index(pixel_values, input_ids, image_index)
    attention = layers[layer].self_attn
    with torch.set_grad_enabled(create_graph):
        text = text_features(model, input_ids, attention_mask)
    with (
        graph_from(layers[layer], create_graph, image_index),
        without_dropout(attention),
        record_attention(attention) as recorded,
    ):
        cosine = (image_features(model, pixel_values) * text).sum(dim=-1)
        score = cosine * model.logit_scale.exp()
    rows = None if recorded[0] is None else torch.zeros(recorded[0].shape[::2], device=score.device)
    if rows is not None:
        rows[:, 0] = 1
    probability = (1 + cosine.detach().float()) / 2
    return PhraseAttention(score, recorded[0], rows, slice(1, None), patch_grid(model, pixel_values), probability)


@leaving_inference_mode
def siglip(
    model: SiglipModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    create_graph: bool = False,
    layer: int | None = None,
    explanation: Literal["itc"] = "itc",
) -> PhraseAttention:
    """SigLIP: the log-odds of a pair, by the attention of its pooling head, whose one query stands for the image.

    The head is layer `num_hidden_layers`, the default; below it, there is no [CLS] and all rows of a layer's
    self-attention count.

    Raises:
        ValueError: there is no such layer or explanation, or a phrase is longer than the model takes.
    """
    if explanation != "itc":
        raise ValueError(f"explanation {explanation!r}: a dual encoder has its similarity, 'itc', only.")
    vision = model.vision_model
    num_layers = len(vision.encoder.layers)
    layer = chosen_layer(layer, num_layers + vision.use_head, default=num_layers - 1 + vision.use_head)
    image_index = resolve_image_index(pixel_values, input_ids, image_index)
    is_head = layer == num_layers
    start = vision.head if is_head else vision.encoder.layers[layer]
    attention = vision.head.attention if is_head else start.self_attn
    with torch.set_grad_enabled(create_graph):
        text = text_features(model, input_ids, attention_mask)
    with (
        graph_from(start, create_graph, image_index),
        without_dropout(attention),
        # Its own attention has no second derivative, and returns probabilities that its output is not computed from.
        pooling_written_out(vision),
        record_attention(attention) as recorded,
    ):
        cosine = (image_features(model, pixel_values) * text).sum(dim=-1)
        score = cosine * model.logit_scale.exp() + model.logit_bias
    rows = None if recorded[0] is None else torch.ones(recorded[0].shape[::2], device=score.device)
    probability = score.detach().float().sigmoid()
    return PhraseAttention(score, recorded[0], rows, slice(None), patch_grid(model, pixel_values), probability, score)


def siglip_layers(model: SiglipModel) -> range:
    """Those of the image encoder, and the pooling head behind them."""
    return range(model.config.vision_config.num_hidden_layers + model.vision_model.use_head)


@contextmanager
def pooling_written_out(vision: nn.Module) -> Iterator[None]:
    """The pooling head's `nn.MultiheadAttention` by matrix products and softmax, with probabilities of every head."""
    if not vision.use_head:
        yield
        return
    attention = vision.head.attention

    def forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(states, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for states, weight, bias in zip((query, key, value), weights, biases)
        )
        probabilities = (query @ key.mT * attention.head_dim**-0.5).softmax(dim=-1)
        return attention.out_proj((probabilities @ value).transpose(1, 2).flatten(2)), probabilities

    attention.forward = forward
    try:
        yield
    finally:
        del attention.forward


def image_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(num_images, projection_dim), unit length."""
    features = model.get_image_features(pixel_values=pixel_values, interpolate_pos_encoding=True).pooler_output
    return F.normalize(features, dim=-1)


def text_features(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(num_phrases, projection_dim), unit length.

    Raises:
        ValueError: a phrase is longer than SigLIP takes, or lacks the end token that CLIP reads.
    """
    if isinstance(model, SiglipModel):
        input_ids, attention_mask = padded_as_trained(model, input_ids, attention_mask), None
    elif isinstance(model, CLIPModel):
        check_end(input_ids, model.config.text_config.eos_token_id)
    features = model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
    return F.normalize(features, dim=-1)


def check_end(input_ids: torch.Tensor, end: int) -> None:
    """CLIP reads the place of the end token; where there is none, it takes the first place without a word."""
    # 2 stands in old configurations, whatever the end token is: transformers then reads the highest token.
    if end != 2 and not (input_ids == end).any(dim=1).all():
        raise ValueError(f"A phrase has no end token (id {end}), which CLIP reads: tokenize it with CLIP's tokenizer.")


def padded_as_trained(model: SiglipModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """SigLIP reads the last place, and has learned to without a mask, from phrases padded to its full length."""
    config, length = model.config.text_config, input_ids.shape[1]
    most = config.max_position_embeddings
    if length > most:
        raise ValueError(f"A phrase has {length} word pieces, the model takes {most}: truncate it.")
    if attention_mask is not None:
        input_ids = input_ids.masked_fill(attention_mask == 0, config.pad_token_id)
    return F.pad(input_ids, (0, most - length), value=config.pad_token_id)


def patch_grid(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[int, int]:
    patch_size = model.config.vision_config.patch_size
    return pixel_values.shape[2] // patch_size, pixel_values.shape[3] // patch_size


def contrastive_loss(
    model: CLIPModel | AltCLIPModel | ChineseCLIPModel,
    explain: Callable[..., PhraseAttention],
    true_pairs: PhraseAttention,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    own_image: torch.Tensor,
    image_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """CLIP's: finding each phrase's image among those of the batch, and each image's phrase (arXiv 2103.00020, §2.3).

    Pairs that are known to fit are no negatives of each other. Arguments: of `batch_losses.matching_loss`.
    """
    images, texts = image_features(model, pixel_values), text_features(model, input_ids, attention_mask)
    logits = (texts @ images[own_image].T).float() * model.logit_scale.exp()
    ignored = ignored_pairs(own_image, image_ids, input_ids, attention_mask)
    target = torch.arange(len(logits), device=logits.device)
    by_phrase = F.cross_entropy(logits.masked_fill(ignored, -torch.inf), target)
    by_image = F.cross_entropy(logits.T.masked_fill(ignored.T, -torch.inf), target)
    return (by_phrase + by_image) / 2


def sigmoid_loss(
    model: SiglipModel,
    explain: Callable[..., PhraseAttention],
    true_pairs: PhraseAttention,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    own_image: torch.Tensor,
    image_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """SigLIP's: every pair of the batch is right or wrong by itself (arXiv 2303.15343, algorithm 1); else as above."""
    images, texts = image_features(model, pixel_values), text_features(model, input_ids, attention_mask)
    logits = (texts @ images[own_image].T).float() * model.logit_scale.exp() + model.logit_bias
    is_own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    ignored = ignored_pairs(own_image, image_ids, input_ids, attention_mask)
    return F.softplus(torch.where(is_own, -logits, logits)).masked_fill(ignored, 0).sum(dim=1).mean()


def ignored_pairs(*batch: torch.Tensor | None) -> torch.Tensor:
    """(num_phrases, num_phrases) of bool: not the phrase's own pair, but known to fit; arguments of `known_matches`."""
    known = known_matches(*batch)
    return known & ~torch.eye(len(known), dtype=torch.bool, device=known.device)
