"""The AMC loss: numbers by hand, a slow second implementation, and everything odd that a mask can be."""

import itertools
import math

import pytest
import torch

from trainer.amc_loss import attention_mask_consistency_loss

MAP = [[0.0, 1.0], [2.0, 4.0]]  # normalised: 0, 1/4, 1/2, 1


def losses(heatmaps, masks, *args, **kwargs) -> tuple[float, float]:
    """(loss_amc_mean, loss_amc_max) in float64: nothing but the 1e-7 beside the maximum differs from a sum by hand."""
    heatmaps, masks = (torch.tensor(values, dtype=torch.float64) for values in (heatmaps, masks))
    found = attention_mask_consistency_loss(heatmaps, masks, *args, **kwargs)
    assert list(found) == ["loss_amc_mean", "loss_amc_max"]
    return tuple(loss.item() for loss in found.values())


def random_example(num_phrases=3, rows=3, columns=4, height=7, width=9, soft=False):
    heatmaps = torch.randn(num_phrases, rows, columns, dtype=torch.float64)
    masks = torch.rand(num_phrases, height, width, dtype=torch.float64)
    return heatmaps, masks if soft else (masks > 0.6).double()


# By hand --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[0, 0], [0, 1]], (0.0, 0.0)),  # 1/4 - 1 + 0.1 < 0; 1/2 - 1 + 0.5 = 0
        ([[1, 0], [0, 0]], (7 / 12 + 0.1, 1.5)),  # 7/12 - 0 + 0.1; 1 - 0 + 0.5
        ([[0, 0], [1, 0]], (5 / 12 - 1 / 2 + 0.1, 1.0)),  # (0 + 1/4 + 1) / 3; 1 - 1/2 + 0.5
        ([[1, 1], [0, 0]], (3 / 4 - 1 / 8 + 0.1, 1.25)),
        ([[1, 1], [1, 1]], (0.0, 0.0)),  # full: outside counts as 0; 0 - 7/16 + 0.1 < 0; 0 - 1 + 0.5 < 0
        ([[0, 0], [0, 0]], (7 / 16 + 0.1, 1.5)),  # empty: inside counts as 0
        ([[0.5, 1], [0, 0.25]], (5 / 9 - 2 / 7 + 0.1, 1.0)),
    ],
)
def test_one_map_at_the_size_of_its_mask(mask, expected):
    # The soft mask: inside (0 + 1/4 + 0 + 1/4) / 1.75, outside (0 + 0 + 1/2 + 3/4) / 2.25; 3/4 - 1/4 + 0.5.
    assert losses([MAP], [mask]) == pytest.approx(expected, abs=1e-6)


def test_maps_are_brought_to_the_mask_bilinearly():
    # 0, 1 on four pixels: 0, 1/4, 3/4, 1 (align_corners False).
    assert losses([[[0.0, 1.0]]], [[[0, 0, 0, 1]]]) == pytest.approx((0.0, 3 / 4 - 1 + 0.5), abs=1e-6)
    assert losses([[[0.0, 1.0]]], [[[1, 1, 0, 0]]]) == pytest.approx((7 / 8 - 1 / 8 + 0.1, 1 - 1 / 4 + 0.5), abs=1e-6)
    # A mask coarser than the map samples it.
    assert losses([[[0.0, 0.5, 0.5, 1.0]]], [[[0, 1]]]) == pytest.approx((0.0, 1 / 4 - 3 / 4 + 0.5), abs=1e-6)


def test_margins():
    mask = [[0, 0], [1, 0]]
    assert losses([MAP], [mask], margin_mean=0.5, margin_max=0.25) == pytest.approx((5 / 12, 0.75), abs=1e-6)
    assert losses([MAP], [mask], margin_mean=0.0, margin_max=-0.5) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_batch_reduction_pools_the_pixels():
    masks = [[[0, 0], [0, 1]], [[1, 0], [0, 0]]]
    # Inside (1 + 0) / 2, outside (3/4 + 7/4) / 6. The maxima are taken by example in both reductions.
    assert losses([MAP, MAP], masks, reduction="batch") == pytest.approx((10 / 24 - 1 / 2 + 0.1, 0.75), abs=1e-6)
    assert losses([MAP, MAP], masks, reduction="example") == pytest.approx(((7 / 12 + 0.1) / 2, 0.75), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0, -1.0])
@pytest.mark.parametrize("mask", [[[0, 0], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]])
def test_constant_maps_cost_the_margins(value, mask):
    heatmaps = torch.full((1, 2, 2), value, requires_grad=True)
    found = attention_mask_consistency_loss(heatmaps, torch.tensor([mask]))
    assert [loss.item() for loss in found.values()] == pytest.approx([0.1, 0.5])
    sum(found.values()).backward()
    assert torch.isfinite(heatmaps.grad).all()


# A slow second implementation -----------------------------------------------------------------------------------------


def source(index: int, size: int, target_size: int) -> tuple[int, int, float]:
    """Between which two of `size` samples pixel `index` of `target_size` lies, and how far towards the second."""
    position = min(max((index + 0.5) * size / target_size - 0.5, 0.0), size - 1.0)
    first = int(position)
    return first, min(first + 1, size - 1), position - first


def naive_loss(heatmaps, masks, has_region, reduction, margin_mean=0.1, margin_max=0.5) -> tuple[float, float]:
    """The formulas of the docstring, pixel by pixel on plain numbers."""
    mean_terms, max_terms, pooled = [], [], [0.0] * 4
    for heatmap, mask, chosen in zip(heatmaps, masks, has_region):
        if not chosen:
            continue
        heatmap = [[max(value, 0.0) for value in row] for row in heatmap]
        low = min(map(min, heatmap))
        heatmap = [[value - low for value in row] for row in heatmap]
        high = max(map(max, heatmap))
        heatmap = [[value / (high + 1e-7) for value in row] for row in heatmap]
        sums, inside_max, outside_max = [0.0] * 4, -math.inf, -math.inf
        for y, x in itertools.product(range(len(mask)), range(len(mask[0]))):
            top, bottom, down = source(y, len(heatmap), len(mask))
            left, right, across = source(x, len(heatmap[0]), len(mask[0]))
            upper = heatmap[top][left] * (1 - across) + heatmap[top][right] * across
            lower = heatmap[bottom][left] * (1 - across) + heatmap[bottom][right] * across
            heat, inside = upper * (1 - down) + lower * down, mask[y][x]
            parts = inside * heat, inside, (1 - inside) * heat, 1 - inside
            sums = [total + part for total, part in zip(sums, parts)]
            inside_max, outside_max = max(inside_max, parts[0]), max(outside_max, parts[2])
        mean_terms.append(difference(sums) + margin_mean)
        max_terms.append(outside_max - inside_max + margin_max)
        pooled = [total + part for total, part in zip(pooled, sums)]
    if not max_terms:
        return 0.0, 0.0
    if reduction == "batch":
        mean_terms = [difference(pooled) + margin_mean]
    return tuple(sum(max(term, 0.0) for term in terms) / len(terms) for terms in (mean_terms, max_terms))


def difference(sums: list[float]) -> float:
    """Mean heat outside minus mean heat inside; 0 over no pixel."""
    inside, num_inside, outside, num_outside = sums
    return (outside / num_outside if num_outside else 0.0) - (inside / num_inside if num_inside else 0.0)


@pytest.mark.parametrize("reduction", ["example", "batch"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("has_region", [[True] * 4, [True, False, True, False], [False] * 4])
def test_against_the_formulas(reduction, soft, has_region):
    for _ in range(5):
        heatmaps, masks = random_example(4, soft=soft)
        masks[0] = 0
        masks[2] = 1
        found = attention_mask_consistency_loss(heatmaps, masks, torch.tensor(has_region), reduction=reduction)
        expected = naive_loss(heatmaps.tolist(), masks.tolist(), has_region, reduction)
        assert [loss.item() for loss in found.values()] == pytest.approx(expected, abs=1e-9)


# Properties -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["example", "batch"])
@pytest.mark.parametrize("has_region", [[True, False, True, False], [False] * 4])
def test_nothing_pulls_at_examples_without_region(reduction, has_region):
    heatmaps, masks = random_example(4)
    heatmaps.requires_grad_()
    chosen = torch.tensor(has_region)
    sum(attention_mask_consistency_loss(heatmaps, masks, chosen, reduction=reduction).values()).backward()
    assert (heatmaps.grad != 0).flatten(1).any(dim=1).tolist() == has_region


@pytest.mark.parametrize("reduction", ["example", "batch"])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_by_finite_differences(reduction, soft):
    heatmaps, masks = random_example(soft=soft)
    heatmaps.requires_grad_()

    def weighted(heatmaps):
        terms = attention_mask_consistency_loss(heatmaps, masks, margin_mean=1.0, margin_max=1.0, reduction=reduction)
        return terms["loss_amc_mean"], terms["loss_amc_max"]

    assert all(term > 0 for term in weighted(heatmaps))  # the hinges are open, so that there is something to compare
    assert torch.autograd.gradcheck(weighted, heatmaps, eps=1e-7, atol=1e-6)


def test_half_precision_maps_are_judged_in_float32():
    heatmaps, masks = random_example()
    half = heatmaps.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_mask_consistency_loss(half, masks)
    exact = attention_mask_consistency_loss(half.double(), masks)
    for name in found:
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(exact[name].item(), rel=1e-5)


def test_whole_number_and_boolean_masks():
    heatmaps, masks = random_example()
    expected = attention_mask_consistency_loss(heatmaps, masks)
    for dtype in (torch.bool, torch.uint8):
        assert attention_mask_consistency_loss(heatmaps, masks.to(dtype)) == expected


@pytest.mark.parametrize(
    ("heatmaps", "masks", "options", "message"),
    [
        ((2, 4, 4), (3, 8, 8), {}, r"do not fit: got \(2, 4, 4\) and \(3, 8, 8\)"),
        ((2, 1, 4, 4), (2, 8, 8), {}, "do not fit"),
        ((2, 4, 4), (2, 1, 8, 8), {}, "do not fit"),
        ((2, 4, 4), (2, 8, 8), {"reduction": "mean"}, "reduction 'mean': choose 'example'"),
        ((2, 4, 4), (2, 8, 8), {"has_region": torch.ones(3)}, r"has_region must be \(2,\), not \(3,\)"),
        ((2, 4, 4), (2, 8, 8), {"has_region": torch.ones(2, 1)}, "has_region must be"),
    ],
)
def test_errors(heatmaps, masks, options, message):
    with pytest.raises(ValueError, match=message):
        attention_mask_consistency_loss(torch.rand(heatmaps), torch.rand(masks), **options)
