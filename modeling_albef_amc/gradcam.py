"""Heatmaps from attention and its gradient: `gradcam` of the `PhraseAttention` that a model family hands over."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map


class PhraseAttention(NamedTuple):
    """What a family must know of one forward pass to explain it.

    - `score` (num_phrases,): how well each phrase fits its image; the higher, the better.
    - `attention` (num_phrases, num_heads, num_tokens, num_keys): probabilities in the graph of `score`: the recorded
      tensor itself, not a slice or a copy of it. Row i must influence `score[i]` alone.
    - `token_mask` (num_phrases, num_tokens): which query tokens count (1) and which are padding (0).
    - `patches`: the keys that are image patches, in row order. `grid`: (rows, columns) of them.
    - `probability` (num_phrases,): that the phrase fits its image, in [0, 1], without a graph. Heatmaps do not need it.
    - `match_logit` (num_phrases,): log-odds that it fits, in the graph of `score`, of models that learn to tell.
    - `queries`: the rows of the attention that `token_mask` is of, where there are others too.
    - `cls_places` (num_phrases,): which token each score was read from; None: the first.
    - `layers`: every attention of the pass, where a method needs them. `num_more`: rows behind those of tokens.
    - `has_token_maps`: the rows are tokens of the phrase, and no learned queries or patches.
    """

    score: Tensor
    attention: Tensor
    token_mask: Tensor
    patches: slice | Tensor
    grid: tuple[int, int]
    probability: Tensor | None = None
    match_logit: Tensor | None = None
    queries: slice = slice(None)
    cls_places: Tensor | None = None
    layers: tuple = ()
    num_more: int = 0
    has_token_maps: bool = True


@torch.compiler.disable
def gradcam(
    phrase_attention: PhraseAttention, create_graph: bool = False, per_token: bool = False, per_head: bool = False
) -> Tensor:
    """Explains a score by the attention it came from: A · ReLU(∂score/∂A), mean over the heads and the valid tokens.

    Args:
        create_graph: keep the map differentiable: a loss on it reaches the weights through second-order gradients.
        per_token, per_head: return the map of every token, of every head, instead of their mean.

    Returns: (num_phrases, rows, columns), with `per_head` and `per_token` (num_phrases, num_heads, num_tokens, rows,
        columns); at least float32, not negative, not normalised. Maps of padded tokens are zero.

    Source: Grad-CAM on cross-attention as in ALBEF (arXiv 2107.07651, §6), AMC (arXiv 2206.15462, eq. 4).
    """
    score, attention = phrase_attention.score, phrase_attention.attention
    (gradient,) = attention_gradients(score, [attention], create_graph)
    # The gradient is taken of the whole tensor and sliced afterwards: a slice is not part of the score's graph.
    maps = patch_maps(phrase_attention, at_least_float32(attention) * at_least_float32(gradient).relu(), per_head)
    maps = maps if create_graph else maps.detach()
    return maps if per_token else average_tokens(maps, phrase_attention.token_mask)


def attention_map(phrase_attention: PhraseAttention, per_token: bool = False, per_head: bool = False) -> Tensor:
    """The attention alone, in its graph: what the tokens look at. Arguments and shape as of `gradcam`."""
    check_recorded(phrase_attention.attention)
    maps = patch_maps(phrase_attention, at_least_float32(phrase_attention.attention), per_head)
    return maps if per_token else average_tokens(maps, phrase_attention.token_mask)


def patch_maps(phrase_attention: PhraseAttention, weights: Tensor, per_head: bool) -> Tensor:
    """Weights of the shape of the attention → (num_phrases, [num_heads,] num_tokens, rows, columns)"""
    maps, (rows, columns) = weights[..., phrase_attention.queries, phrase_attention.patches], phrase_attention.grid
    if maps.shape[-1] != rows * columns:
        raise ValueError(f"A grid of {rows} x {columns} does not fit {maps.shape[-1]} patches.")
    maps = maps if per_head else maps.mean(dim=1)
    token_mask = phrase_attention.token_mask[:, :, None, None].to(maps.device)  # of parts on several devices
    return maps.unflatten(-1, (rows, columns)) * (token_mask[:, None] if per_head else token_mask)


def check_recorded(attention: Tensor | None) -> None:
    if attention is None:
        raise ValueError("The model returned no attention probabilities: load it with attn_implementation='eager'.")


def attention_gradients(
    score: Tensor, attentions: list[Tensor], create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """∂score/∂A of each attention; None where the score does not depend on it, but does on another."""
    for attention in attentions:
        check_recorded(attention)
        if type(attention.grad_fn).__name__ == "CheckpointFunctionBackward":
            raise RuntimeError("Checkpointing with use_reentrant=True cuts the graph: pass use_reentrant=False.")
    if not (score.requires_grad and all(attention.requires_grad for attention in attentions)):
        raise ValueError(
            "The score has no graph back to the attention: run the forward pass under torch.enable_grad(), with an "
            "input or a parameter that requires a gradient, and activation checkpointing with use_reentrant=False."
        )
    ones = torch.ones_like(score)
    gradients = torch.autograd.grad(score, attentions, ones, create_graph=create_graph, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        why = "gradients do not go through layers of dynamic quantisation"
        raise ValueError(f"The score does not depend on the recorded attention: record one below it; {why}.")
    return gradients


def choose_tokens(phrase_attention: PhraseAttention, chosen: Tensor) -> PhraseAttention:
    """The same with fewer tokens that count: those where `chosen` (num_phrases, num_tokens) is 1."""
    if not phrase_attention.has_token_maps:
        raise ValueError("This explanation has no maps of words (ALBEF's 'itm' has): leave out captions.")
    token_mask, chosen = phrase_attention.token_mask, F.pad(chosen, (0, phrase_attention.num_more))
    if chosen.shape != token_mask.shape:
        raise ValueError(f"{tuple(chosen.shape)} tokens to choose from {tuple(token_mask.shape)}: give each a value.")
    return phrase_attention._replace(token_mask=token_mask * chosen.to(token_mask.device))


def average_tokens(token_heatmaps: Tensor, token_mask: Tensor) -> Tensor:
    """(num_phrases, …, num_tokens, rows, columns) → (num_phrases, …, rows, columns): the mean map of the tokens whose
    `token_mask` (num_phrases, num_tokens) is 1; zeros where a phrase has none."""
    weights = token_mask.to(token_heatmaps)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    weights = weights if token_heatmaps.ndim == 4 else weights[:, None]  # of heads
    return (token_heatmaps * weights[..., None, None]).sum(dim=-3)


def normalize_heatmaps(heatmaps: Tensor, epsilon: float = 1e-7) -> Tensor:
    """(…, rows, columns) → the same in [0, 1]: ReLU, minus the map's minimum, over (its maximum + `epsilon`).

    Differentiable, in at least float32. A constant map becomes zero."""
    heatmaps = at_least_float32(heatmaps).relu()
    heatmaps = heatmaps - heatmaps.amin(dim=(-2, -1), keepdim=True)
    return heatmaps / (heatmaps.amax(dim=(-2, -1), keepdim=True) + epsilon)


def upsample_heatmaps(heatmaps: Tensor, size: tuple[int, int]) -> Tensor:
    """(num_phrases, rows, columns) → (num_phrases, height, width) of an image, bicubic, `align_corners=False`."""
    heatmaps = at_least_float32(heatmaps[:, None])
    low, high = heatmaps.amin(dim=(2, 3), keepdim=True), heatmaps.amax(dim=(2, 3), keepdim=True)
    upsampled = F.interpolate(heatmaps, size=size, mode="bicubic", align_corners=False)
    return upsampled.where(low != high, low)[:, 0]  # a constant map stays one, whatever rounding makes of it


def check_target_sizes(target_sizes: Any, num_maps: int) -> list[tuple[int, int]]:
    sizes = torch.as_tensor(target_sizes)
    sizes = sizes.expand(num_maps, 2) if sizes.shape == (2,) else sizes
    if sizes.shape != (num_maps, 2):
        raise ValueError(f"target_sizes must be (num_phrases, 2) or a pair: {tuple(sizes.shape)} for {num_maps} maps")
    for index, size in enumerate(sizes.tolist()):
        if any(not float(side).is_integer() or side < 1 for side in size):
            raise ValueError(f"target size {index} is {size}: sides must be whole numbers of pixels, at least 1")
    return [(int(height), int(width)) for height, width in sizes.tolist()]


def heatmap_points(heatmaps: Tensor, target_sizes: Any) -> Tensor:
    """Where each map (num_phrases, rows, columns) is highest in its image: the pointing game's answer.

    `target_sizes` (num_phrases, 2) are height and width in pixels, or one pair for all. Returns (num_phrases, 2),
    (x, y) of the first maximum in row order of the map upsampled bicubically; of a constant map (0, 0)."""
    sizes = check_target_sizes(target_sizes, len(heatmaps))
    points = torch.zeros(len(heatmaps), 2, dtype=torch.long, device=heatmaps.device)
    for size in set(sizes):
        same = [row for row, other in enumerate(sizes) if other == size]
        index = upsample_heatmaps(heatmaps[same], size).flatten(1).argmax(dim=1)
        points[same] = torch.stack([index % size[1], index // size[1]], dim=1)
    return points


def resolve_image_index(images: Tensor, phrases: Tensor, image_index: Tensor | None) -> Tensor | None:
    """Which image (num_images, …) each phrase (num_phrases, …) belongs to; None where phrase i belongs to image i."""
    num_images, num_phrases = images.shape[0], phrases.shape[0]
    if image_index is not None:
        if image_index.shape != (num_phrases,) or image_index.is_floating_point():
            found = f"{tuple(image_index.shape)} of {image_index.dtype}"
            raise ValueError(f"image_index must be {num_phrases} whole numbers, one a phrase, not {found}.")
        return image_index.to(images.device)
    if num_images == num_phrases:
        return None
    if num_images == 1:
        return torch.zeros(num_phrases, dtype=torch.long, device=phrases.device)
    raise ValueError(f"{num_phrases} phrases for {num_images} images: say which belongs to which with image_index.")


def leaving_inference_mode(function: Callable) -> Callable:
    """Lets `function` build graphs for a caller in `torch.inference_mode`: arguments made there are copied."""

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    @wraps(function)
    def outside(*args, **kwargs):
        if torch.compiler.is_compiling():  # compiled code builds no such graph: see `uncompiled`
            return function(*args, **kwargs)
        grad_enabled = torch.is_grad_enabled()  # never in inference mode
        with torch.inference_mode(False), torch.set_grad_enabled(grad_enabled):
            args, kwargs = tree_map(copied, (args, kwargs))
            return function(*args, **kwargs)

    return outside


def uncompiled(function: Callable) -> Callable:
    """Runs `function` eagerly inside a compiled model, since compiled code cannot be differentiated twice."""
    return torch.compiler.disable(leaving_inference_mode(function))


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
