"""The released code's way of working, written out plainly on the weights of this project's models.

It is what speed is measured against: the same numbers, by the path that most research code takes. An image is encoded
anew for every phrase; attention is eager in every layer; the keys and values of an image are projected in every pass
that reads it; a heatmap costs a backward pass through the whole model; the MLM head runs over all positions.
`tests/test_benchmarks.py` holds that heatmaps, losses and gradients are those of the fast paths.
"""

import torch
from torch import nn
from torch.nn import functional as F

from modeling_albef_amc import AlbefForPreTraining, AlbefModel
from modeling_albef_amc.gradcam import upsample_heatmaps
from modeling_albef_amc.modeling_albef_pretraining import (
    TEMPERATURE_RANGE,
    draw_negatives,
    itc_loss,
    itm_loss,
    known_to_fit,
)
from trainer.amc_loss import attention_mask_consistency_loss

Tensor, Batch = torch.Tensor, dict[str, torch.Tensor]


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Context (batch_size, queries, hidden_size), and probabilities (batch_size, num_heads, queries, keys)."""
    num_heads = module.config.num_attention_heads
    query, key, value = (states.unflatten(-1, (num_heads, -1)).transpose(1, 2) for states in (query, key, value))
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + (1 - mask[:, None, None, :].to(scores.dtype)) * torch.finfo(scores.dtype).min
    probabilities = scores.softmax(dim=-1)
    dropped = F.dropout(probabilities, module.config.attention_probs_dropout_prob, module.training)
    return (dropped @ value).transpose(1, 2).flatten(2), probabilities


def encode_images(vision_model: nn.Module, pixel_values: Tensor) -> Tensor:
    """(num_images, 3, height, width) → (num_images, 1 + num_patches, hidden_size)"""
    states = vision_model.embeddings(pixel_values)
    for layer in vision_model.layers:
        query, key, value = layer.attention.qkv(layer.layernorm_before(states)).chunk(3, dim=-1)
        context, _ = attend(layer.attention, query, key, value, None)
        states = states + layer.dropout(layer.attention.projection(context))
        update = layer.output(layer.activation(layer.intermediate(layer.layernorm_after(states))))
        states = states + layer.dropout(update)
    return vision_model.layernorm(states)


def text_block(block: nn.Module, states: Tensor, others: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """One attention block of BERT, from `states` to `others`: the text itself, or an image."""
    context, probabilities = attend(block, block.query(states), block.key(others), block.value(others), mask)
    return block.layernorm(states + block.dropout(block.dense(context))), probabilities


def text_layers(
    layers: nn.ModuleList, states: Tensor, mask: Tensor, image_embeds: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Text layers or, with an image for every row, fusion layers: states (batch_size, num_tokens, hidden_size), and
    every layer's cross-attention (batch_size, num_heads, num_tokens, 1 + num_patches).
    """
    recorded = []
    for layer in layers:
        states, _ = text_block(layer.self_attention, states, states, mask)
        if image_embeds is not None:
            states, probabilities = text_block(layer.cross_attention, states, image_embeds, None)
            recorded.append(probabilities)
        update = layer.output(layer.activation(layer.intermediate(states)))
        states = layer.layernorm(states + layer.dropout(update))
    return states, recorded


def read_text(text_model: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
    return text_layers(text_model.layers[: text_model.config.fusion_layer], text_model.embeddings(input_ids), mask)[0]


def fuse(text_model: nn.Module, text_embeds: Tensor, mask: Tensor, image_embeds: Tensor) -> tuple[Tensor, list[Tensor]]:
    return text_layers(text_model.layers[text_model.config.fusion_layer :], text_embeds, mask, image_embeds)


def heatmaps_of_attention(attention: Tensor, gradient: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """A · ReLU(G), mean over heads and valid tokens, patches only: (batch_size, rows, columns)"""
    maps = (attention * gradient.relu()).mean(dim=1) * mask[:, :, None]
    return (maps.sum(dim=1) / mask.sum(dim=1)[:, None])[:, 1:].unflatten(1, grid)


def pair_heatmap(model: AlbefModel, pixel_values: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
    """The heatmap (1, rows, columns) of one phrase in one image, by a backward pass through the whole model."""
    model.zero_grad()
    image_embeds = encode_images(model.vision_model, pixel_values)
    states, recorded = fuse(model.text_model, read_text(model.text_model, input_ids, mask), mask, image_embeds)
    attention = recorded[model.config.grounding_layer - model.config.text_config.fusion_layer]
    attention.retain_grad()
    model.itm_head(states[:, 0])[:, 1].sum().backward()
    return heatmaps_of_attention(attention.detach(), attention.grad, mask, model.patch_grid(pixel_values))


def evaluate_pairs(model: AlbefModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Heatmaps (num_phrases, rows, columns) and points (num_phrases, 2) of an evaluation batch, one pair at a time."""
    heatmaps, points = [], []
    for phrase, image in enumerate(batch["image_index"].tolist()):
        length = int(batch["attention_mask"][phrase].sum())
        text = (batch[name][phrase : phrase + 1, :length] for name in ("input_ids", "attention_mask"))
        heatmaps.append(pair_heatmap(model, batch["pixel_values"][image : image + 1], *text))
        height, width = batch["target_sizes"][phrase].tolist()
        highest = int(upsample_heatmaps(heatmaps[-1], (height, width)).argmax())
        points.append([highest % width, highest // width])
    return torch.cat(heatmaps), torch.tensor(points)


def masked_language_loss(
    model: AlbefForPreTraining, batch: Batch, image_embeds: Tensor, momentum_image_embeds: Tensor, alpha: float
) -> Tensor:
    """MLM distilled from the momentum model over the vocabulary; all twelve layers, the head at every position."""
    labels, mask = batch["mlm_labels"], batch["attention_mask"]

    def logits_of(text_model: nn.Module, head: nn.Module, images: Tensor) -> Tensor:
        text_embeds = read_text(text_model, batch["mlm_input_ids"], mask)
        return head(fuse(text_model, text_embeds, mask, images)[0]).float()

    with torch.no_grad():
        momentum = model.momentum_encoder
        soft_labels = logits_of(momentum.text_model, momentum.mlm_head, momentum_image_embeds).softmax(dim=-1)
    logits = logits_of(model.albef.text_model, model.mlm_head, image_embeds)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    distilled = -(logits.log_softmax(dim=-1) * soft_labels).sum(dim=-1)
    return (1 - alpha) * loss + alpha * distilled[labels != -100].mean()


def training_losses(model: AlbefForPreTraining, batch: Batch, alpha: float) -> Batch:
    """The losses of one training step, by their names; the momentum encoders and queues move.

    Args:
        batch: one phrase an image, all different, each with a region and a masked word.
    """
    albef, config, mask = model.albef, model.config, batch["attention_mask"]
    names = "pixel_values", "input_ids", "attention_mask", "image_ids"
    (targets,) = model.momentum_step([{name: batch[name] for name in names}])
    image_embeds = encode_images(albef.vision_model, batch["pixel_values"])
    text_embeds = read_text(albef.text_model, batch["input_ids"], mask)
    features = [
        F.normalize(projection(embeds[:, 0]), dim=-1)
        for projection, embeds in ((albef.vision_projection, image_embeds), (albef.text_projection, text_embeds))
    ]
    matches, temperature = known_to_fit(targets), albef.temperature.clamp(*TEMPERATURE_RANGE)
    loss_itc, image_to_text, text_to_image = itc_loss(*features, targets, matches, temperature, alpha)

    states, recorded = fuse(albef.text_model, text_embeds, mask, image_embeds)
    itm_logits = albef.itm_head(states[:, 0])
    attention = recorded[config.grounding_layer - config.text_config.fusion_layer]
    (gradient,) = torch.autograd.grad(itm_logits[:, 1].sum(), attention, create_graph=True)
    heatmaps = heatmaps_of_attention(attention, gradient, mask, albef.patch_grid(batch["pixel_values"]))

    count = len(text_embeds)
    wrong_images = draw_negatives(text_to_image, ~matches[1][:, :count])
    wrong_texts = draw_negatives(image_to_text, ~matches[0][:, :count])
    texts, masks = (torch.cat([rows, rows[wrong_texts]]) for rows in (text_embeds, mask))
    states, _ = fuse(albef.text_model, texts, masks, torch.cat([image_embeds[wrong_images], image_embeds]))
    has_negative = torch.ones(2 * count, dtype=torch.bool, device=states.device)
    return {
        "loss_itc": loss_itc,
        "loss_itm": itm_loss(itm_logits, albef.itm_head(states[:, 0]), has_negative),
        "loss_mlm": masked_language_loss(model, batch, image_embeds, targets.image_embeds, alpha),
        **attention_mask_consistency_loss(heatmaps, batch["masks"]),
    }
