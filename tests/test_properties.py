"""What must hold for any numbers: of the loss, heatmaps, regions and metrics; and two implementations that agree."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dataset_scripts.features import make_row
from modeling_albef_amc import AlbefModel, explain_function, gradcam
from tests.conftest import tiny_config
from tests.helpers.data import tiny_processor
from tests.helpers.training import collator_of
from trainer.amc_loss import attention_mask_consistency_loss
from trainer.regions import Region
from trainer.scoring import auroc

settings.register_profile("steady", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("steady")

HEAT = st.floats(0, 1000, width=32)
SIDES = st.integers(1, 6)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@st.composite
def maps_and_masks(draw, hard: bool = False):
    """Heatmaps and masks of one size, as float64 arrays (num_phrases, rows, columns)."""
    shape = draw(st.tuples(st.integers(1, 3), SIDES, SIDES))
    heat = draw(hnp.arrays(np.float64, shape, elements=HEAT))
    weight = st.sampled_from([0.0, 1.0]) if hard else st.floats(0, 1, width=32)
    return heat, draw(hnp.arrays(np.float64, shape, elements=weight))


def losses(heat: np.ndarray, masks: np.ndarray, **options) -> tuple[float, float]:
    found = attention_mask_consistency_loss(torch.tensor(heat), torch.tensor(masks), **options)
    return found["loss_amc_mean"].item(), found["loss_amc_max"].item()


# The loss -------------------------------------------------------------------------------------------------------------


@given(maps_and_masks(), DTYPES)
def test_the_losses_are_finite_and_bounded(example, dtype):
    heat, masks = torch.tensor(example[0]).to(dtype), torch.tensor(example[1])
    found = attention_mask_consistency_loss(heat.requires_grad_(), masks)
    assert 0 <= found["loss_amc_mean"] <= 1.1 + 1e-6 and 0 <= found["loss_amc_max"] <= 1.5 + 1e-6
    (gradient,) = torch.autograd.grad(sum(found.values()), heat)
    # A map within a thousand of nothing is divided by next to nothing: in float16 that overflows.
    assert gradient.isfinite().all() or dtype == torch.float16


def slow_losses(heat: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """The definition, pixel by pixel."""
    means, maxima = [], []
    for one, mask in zip(heat, masks):
        low, values = one.min(), []
        high = (one - low).max() + 1e-7
        for row in range(one.shape[0]):
            values += [(float(one[row, col] - low) / high, float(mask[row, col])) for col in range(one.shape[1])]
        inside, outside = sum(m for _, m in values), sum(1 - m for _, m in values)
        mean_inside = sum(h * m for h, m in values) / max(inside, 1e-6)
        mean_outside = sum(h * (1 - m) for h, m in values) / max(outside, 1e-6)
        means.append(max(0, mean_outside - mean_inside + 0.1))
        maxima.append(max(0, max(h * (1 - m) for h, m in values) - max(h * m for h, m in values) + 0.5))
    return float(np.mean(means)), float(np.mean(maxima))


@given(maps_and_masks())
def test_the_losses_are_those_of_a_slow_definition(example):
    assert losses(*example) == pytest.approx(slow_losses(*example), abs=1e-9)


@given(maps_and_masks(hard=True), st.data())
def test_heat_that_moves_inside_never_raises_a_loss(example, data):
    """Two pixels change places, so that the map's range stays: the hotter one was outside and is now inside."""
    heat, masks = example
    inside, outside = (np.argwhere(masks[0] == value) for value in (1, 0))
    assume(len(inside) and len(outside))
    here, there = (tuple(data.draw(st.sampled_from(list(map(tuple, cells))))) for cells in (inside, outside))
    moved = heat.copy()
    moved[0][here], moved[0][there] = max(heat[0][here], heat[0][there]), min(heat[0][here], heat[0][there])
    before, after = losses(heat, masks), losses(moved, masks)
    assert after[0] <= before[0] + 1e-12 and after[1] <= before[1] + 1e-12


@given(maps_and_masks(), st.randoms(use_true_random=False))
def test_the_loss_does_not_know_the_order_or_what_has_no_region(example, random):
    heat, masks = example
    order = list(range(len(heat)))
    random.shuffle(order)
    assert losses(heat[order], masks[order]) == pytest.approx(losses(heat, masks), abs=1e-12)
    joined = np.concatenate([heat, heat[:1] * 3 + 1]), np.concatenate([masks, masks[:1]])
    has_region = torch.tensor([True] * len(heat) + [False])
    assert losses(*joined, has_region=has_region) == pytest.approx(losses(heat, masks), abs=1e-12)


# Heatmaps -------------------------------------------------------------------------------------------------------------


# Regions --------------------------------------------------------------------------------------------------------------


@st.composite
def regions(draw):
    """A region of any kind but polygons, which are drawn on a grid of their own, in an image of 1 to 40 px a side."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["boxes", "masks", "scribbles"]))
    if kind == "boxes":
        x, y = (
            sorted(draw(st.tuples(st.floats(0, side, width=32), st.floats(0, side, width=32))))
            for side in (width, height)
        )
        assume(x[1] - x[0] > 0.01 and y[1] - y[0] > 0.01)
        record = {"boxes": [[x[0], y[0], x[1], y[1]]]}
    elif kind == "masks":
        mask = draw(hnp.arrays(np.float32, (height, width), elements=st.sampled_from([0.0, 0.25, 1.0])))
        assume(mask.max() == 1)
        record = {"masks": [mask]}
    else:
        count = draw(st.integers(1, 3))
        points = [draw(st.floats(0, side, width=32)) for _ in range(count) for side in (width, height)]
        record = {"scribbles": [points], "scribble_radius": draw(st.floats(0.1, 20))}
    coordinates = np.array([record.get("boxes", record.get("scribbles", [[2]]))])
    assume(max(height, width) == 1 or coordinates.max() > 1)  # of less than a pixel, they are taken for shares
    return Region.from_record(record, height, width)


@given(regions(), st.integers(1, 20))
def test_drawn_regions(region, size):
    drawn = region.rasterize(size)
    assert drawn.shape == (size, size) and drawn.min() >= 0 and drawn.max() == pytest.approx(1)
    mirrored = region.mirrored()
    assert np.allclose(mirrored.rasterize(size), drawn[:, ::-1], atol=1e-5)
    assert np.allclose(mirrored.mirrored().rasterize(size), drawn, atol=1e-5)
    x1, y1, x2, y2 = region.extent
    assert 0 <= x1 < x2 <= region.width and 0 <= y1 < y2 <= region.height
    window = int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))
    cropped = region.cropped(*window)
    assert (cropped.width, cropped.height) == (window[2] - window[0], window[3] - window[1])
    assert np.allclose(np.array(cropped.extent) + [*window[:2]] * 2, region.extent) or len(region.scribbles)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.data())
def test_a_box_covers_its_share_of_every_cell(height, width, size, data):
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    drawn = Region.from_record({"boxes": [[x1, y1, x2, y2]]}, height, width).rasterize(size)
    fine = np.zeros((height * size, width * size))
    fine[y1 * size : y2 * size, x1 * size : x2 * size] = 1
    shares = fine.reshape(size, height, size, width).mean(axis=(1, 3))
    assert np.allclose(drawn, shares / shares.max(), atol=1e-5)


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_masks_of_one_pixel(height, width, data):
    """However large the image, the region does not vanish, and a map that shows it fulfils loss_amc_max."""
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    mask = np.zeros((height, width), dtype=np.float32)
    mask[row, column] = 1
    region = Region.from_record({"masks": [mask]}, height, width)
    assert region.extent == (column, row, column + 1, row + 1)
    drawn = region.rasterize(8)
    assert drawn.max() == pytest.approx(1)
    if drawn.min() == 0:  # an image of few pixels may be all region
        assert losses(drawn[None].astype(float), drawn[None].astype(float))[1] == 0


@given(st.integers(1, 90), st.booleans())
@settings(max_examples=25)
def test_images_of_one_row_or_column(length, upright):
    size = (1, length) if upright else (length, 1)  # width, height
    processor, model = tiny_processor(), AlbefModel(tiny_config()).eval()
    batch = collator_of(processor)([make_row(Image.new("RGB", size, "red"), "0", "red square", [[0, 0, *size]])])
    assert batch["masks"].min() == 1 and batch["image_sizes"].tolist() == [[size[1], size[0]]]
    heat = gradcam(explain_function(model)(model, *(batch[name] for name in ("pixel_values", "input_ids"))))
    answer = processor.post_process_grounding(heat, [(size[1], size[0])])[0]
    assert 0 <= answer["point"][0] < size[0] and 0 <= answer["point"][1] < size[1]
    assert answer["heatmap"].shape == (size[1], size[0])


# Metrics --------------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.integers(0, 8).map(lambda value: value / 8), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_auroc_is_that_of_all_pairs(true, absent):
    pairs = [(t > a) + 0.5 * (t == a) for t in true for a in absent]
    assert auroc(true, absent) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(true, absent) + auroc(absent, true) == pytest.approx(1)
    stretched = [[value**3 + 2 for value in values] for values in (true, absent)]
    assert auroc(*stretched) == auroc(true, absent)
