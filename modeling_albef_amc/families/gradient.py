"""Heatmaps of the gradient alone, for models whose attention is the same whatever the phrase."""

import torch

from ..gradcam import PhraseAttention, at_least_float32, attention_gradients, average_tokens, patch_maps


def gradient_map(
    phrase_attention: PhraseAttention, create_graph: bool = False, per_token: bool = False, per_head: bool = False
) -> torch.Tensor:
    """ReLU(∂score/∂A) of one layer: `gradcam` without the attention as a factor. Arguments and shape as of `gradcam`.

    Source: a layer of LeGrad (Bousselham et al., arXiv 2404.03214, eq. 7).
    """
    (gradient,) = attention_gradients(phrase_attention.score, [phrase_attention.attention], create_graph)
    maps = patch_maps(phrase_attention, at_least_float32(gradient).relu(), per_head)
    maps = maps if create_graph else maps.detach()
    return maps if per_token else average_tokens(maps, phrase_attention.token_mask)
