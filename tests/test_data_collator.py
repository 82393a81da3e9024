"""GroundingCollator: its batch by hand, its masks against a slow rasteriser, every refusal with the record's name."""

import copy
import hashlib
import io
import json
import math
import pickle
from dataclasses import replace
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from modeling_albef_amc.image_processing_pil_albef import AlbefImageProcessorPil
from modeling_albef_amc.images import open_image
from modeling_albef_amc.processing_albef import AlbefProcessor
from tests.helpers.models import own_clip_processor
from trainer.augmentation import GroundingAugmentation
from trainer.data_collator import GroundingCollator
from trainer.phrase_rows import record_name
from trainer.regions import Region

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a man dog on the left right of red car in"
PAD, UNK, CLS, SEP, MASK = range(5)
HEIGHT, WIDTH = 24, 32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    vocab = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    vocab.write_text(WORDS.replace(" ", "\n"))
    return BertTokenizer(str(vocab))


@pytest.fixture(scope="module")
def processor(tokenizer):
    return AlbefProcessor(AlbefImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)


@pytest.fixture
def collator(processor):
    return GroundingCollator(processor, mask_size=8, mlm_probability=0.0)


def photo(seed=0, size=(WIDTH, HEIGHT)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=options.pop("format", "PNG"), **options)
    return {"bytes": buffer.getvalue(), "path": None}


def record(**changes):
    return {"image": photo(), "image_id": "a", "phrase": "the man", "boxes": [[4, 6, 12, 18]]} | changes


# The batch


def test_a_batch_by_hand(collator):
    first, second = photo(1), photo(2, size=(20, 10))
    records = [
        record(image=first, image_id="x", phrase="The man", boxes=[[0, 0, 16, 12], [16, 12, 36, 28]], masks=[]),
        record(image=second, image_id="y", phrase="a red car", boxes=[], masks=[]),
        record(image=first, image_id="x", phrase="dog", boxes=[[8, 6, 16, 12]]),
    ]
    batch = collator(records)
    assert set(batch) == {
        *("pixel_values", "input_ids", "attention_mask", "image_index", "image_ids", "masks", "has_region", "boxes"),
        *("image_sizes", "is_absent", "is_placeholder", "unusable", "record_names"),
    }
    # Trainer counts examples by the first tensor.
    assert len(next(iter(batch.values()))) == 3
    assert batch["input_ids"].tolist() == [[CLS, 9, 6, PAD], [CLS, 5, 13, 14], [CLS, 7, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["image_index"].tolist() == [0, 1, 0] and batch["image_index"].dtype == torch.long
    assert batch["has_region"].tolist() == [True, False, True] and batch["has_region"].dtype == torch.bool
    assert batch["image_sizes"].tolist() == [[24, 32], [10, 20], [24, 32]]
    padding = [-100.0] * 4
    assert batch["boxes"].tolist() == [
        [[0, 0, 16, 12], [16, 12, 32, 24]],
        [padding, padding],
        [[8, 6, 16, 12], padding],
    ]
    expected = torch.zeros(3, 8, 8)
    expected[0, :4, :4] = expected[0, 4:, 4:] = 1
    expected[2, 2:4, 2:4] = 1
    assert batch["masks"].dtype == torch.float32 and torch.equal(batch["masks"], expected)
    pixel_values = collator.processor(images=[first, second], return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"].dtype == torch.float32 and torch.equal(batch["pixel_values"], pixel_values)
    assert batch["image_ids"].tolist() == [
        int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") // 2 for name in (b"x", b"y")
    ]


def test_a_stock_processor_of_another_family_serves(tokenizer):
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)
    batch = GroundingCollator(processor, mask_size=8)([record(), record(phrase="a dog"), record(image_id="b")])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["input_ids"].tolist() == [[CLS, 9, 6, SEP], [CLS, 5, 7, SEP], [CLS, 9, 6, SEP]]
    assert batch["image_index"].tolist() == [0, 0, 1]


def test_rows_of_an_image_share_it_and_it_is_decoded_once(collator):
    image = encoded(photo())
    records = [record(image=image, image_id=name) for name in "abab"]
    with patch("trainer.data_collator.open_image", wraps=open_image) as opened:
        batch = collator(records)
    assert opened.call_count == 2
    assert batch["pixel_values"].shape[0] == 2 and batch["image_index"].tolist() == [0, 1, 0, 1]


def test_without_image_id_each_row_has_its_own_image_known_by_its_pixels(collator):
    records = [record(image=photo(1)), record(image=photo(1)), record(image=photo(2))]
    del records[0]["image_id"]
    records[1]["image_id"] = records[2]["image_id"] = None
    batch = collator(records)
    assert batch["pixel_values"].shape[0] == 3 and batch["image_index"].tolist() == [0, 1, 2]
    first, same, other = batch["image_ids"].tolist()
    assert first == same != other and min(first, other) >= 0


def test_all_forms_of_an_image_give_the_same_pixels(collator, tmp_path):
    image = photo()
    image.save(tmp_path / "photo.png")
    forms = [image, encoded(image), {"bytes": None, "path": str(tmp_path / "photo.png")}, np.asarray(image)]
    batch = collator([record(image=form, image_id=str(i)) for i, form in enumerate(forms)])
    assert len(batch["pixel_values"]) == 4
    for pixels in batch["pixel_values"]:
        assert torch.equal(pixels, batch["pixel_values"][0])


def test_a_batch_without_regions_has_one_row_of_padding(collator):
    records = [record(boxes=[], image_id="a"), record(boxes=None, masks=None, polygons=None, image_id="b")]
    del records[0]["boxes"]
    batch = collator(records)
    assert batch["has_region"].tolist() == [False, False] and batch["masks"].count_nonzero() == 0
    assert batch["boxes"].tolist() == [[[-100.0] * 4]] * 2


def test_training_cuts_long_phrases_and_evaluation_does_not(processor):
    collator = GroundingCollator(processor, mask_size=8, box_choice="random", augmentation=GroundingAugmentation())
    long = record(phrase="a man " * 20)
    assert collator([long])["input_ids"].shape == (1, 25)
    evaluation = collator.for_evaluation()
    batch = evaluation([long])
    assert batch["input_ids"].shape == (1, 41) and "mlm_labels" not in batch
    assert evaluation.box_choice == "all" and evaluation.augmentation is None and evaluation.mask_size == 8


def test_tokens_that_the_model_does_not_know(processor):
    most = processor.tokenizer("man")["input_ids"][1]
    known = replace(GroundingCollator(processor, mlm_probability=0, mask_size=8), num_known_tokens=most + 1)
    assert known([record(phrase="man")])["input_ids"].max() == most
    with pytest.raises(ValueError, match=rf"image 'a', phrase 'man': .* a token {most}, the model {most} tokens only"):
        replace(known, num_known_tokens=most)([record(phrase="man")])


def test_random_words_are_of_those_that_the_model_knows(processor):
    known = max(processor.tokenizer("man on the left")["input_ids"]) + 1
    processor = copy.deepcopy(processor)
    processor.tokenizer.add_tokens([f"word{number}" for number in range(1000)])
    collator = GroundingCollator(processor, mlm_probability=1, mask_size=8, num_known_tokens=known)
    batch = collator([record(phrase="man on the left", image_id=str(number)) for number in range(40)])
    ids, labels = batch["mlm_input_ids"], batch["mlm_labels"]
    is_random = (ids != labels) & (labels >= 0) & (ids != processor.tokenizer.mask_token_id)
    assert is_random.sum() > 5 and ids.max() < known
    with pytest.raises(ValueError, match="the tokenizer has a token 4, the model 4 tokens only"):
        replace(collator, num_known_tokens=4)._mask_tokens(batch["input_ids"])


@pytest.mark.parametrize(("max_length", "num_tokens"), [(25, 20), (7, 7), (None, None)])
def test_no_phrase_is_longer_than_the_model_reads(processor, max_length, num_tokens):
    """It is cut where phrases are cut, and else cannot be used; one of just as many tokens can."""
    collator = GroundingCollator(processor, mlm_probability=0, max_length=max_length, max_tokens=20, mask_size=8)
    records = [record(phrase="man " * 19), record(phrase="man " * 20)]
    if max_length is not None:
        assert collator(records)["input_ids"].shape == (2, num_tokens)
        return
    message = r"image 'a', phrase '(man ){20}': the phrase has 21 word pieces, the model takes 20; shorten it"
    with pytest.raises(ValueError, match=message):
        collator(records)
    batch = replace(collator, strict=False)(records)
    assert batch["is_placeholder"].tolist() == [False, True] and "the model takes 20" in batch["unusable"][0]
    # The spare one is cut where it is too long itself.
    batch = replace(collator, strict=False, spare=records[1])(records[1:])
    assert batch["input_ids"].shape == (1, 20) and batch["is_placeholder"].tolist() == [True]


def test_augmentation_changes_image_masks_boxes_and_phrases_together(processor):
    flip = GroundingAugmentation(flip=1.0, gray=0.0, jitter=0.0)
    collator = GroundingCollator(processor, mask_size=8, mlm_probability=0, augmentation=flip)
    records = [record(phrase="the left dog", boxes=[[0, 0, 8, 12]]), record(phrase="a man", boxes=[])]
    batch = collator(records)
    plain = collator.for_evaluation()(records)
    assert torch.equal(batch["pixel_values"], plain["pixel_values"].flip(-1))
    assert torch.equal(batch["masks"], plain["masks"].flip(-1))
    assert batch["boxes"].tolist() == [[[24, 0, 32, 12]], [[-100] * 4]]
    assert batch["input_ids"].tolist() == [[CLS, 9, 11, 7], [CLS, 5, 6, PAD]]
    assert records[0]["boxes"] == [[0, 0, 8, 12]] and records[0]["phrase"] == "the left dog"


# Masked language modelling


def test_masking_spares_cls_sep_and_pad_and_keeps_its_proportions(tokenizer):
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)
    collator = GroundingCollator(processor, mask_size=4)
    phrases = ["a man on the left of a zebra in the red car", "the dog"]
    chosen = masked = unchanged = unknown = total = 0
    for epoch in range(60):
        collator.epoch = epoch
        batch = collator([record(image_id="a", phrase=phrases[i % 2]) for i in range(32)])
        ids, labels, inputs = batch["input_ids"], batch["mlm_labels"], batch["mlm_input_ids"]
        picked = labels != -100
        assert torch.equal(labels[picked], ids[picked]) and torch.equal(inputs[~picked], ids[~picked])
        assert not picked[(ids == CLS) | (ids == SEP) | (ids == PAD)].any()
        total += (ids > SEP).sum().item() + (ids == UNK).sum().item()
        chosen += picked.sum().item()
        masked += (inputs[picked] == MASK).sum().item()
        unchanged += (inputs[picked] == ids[picked]).sum().item()
        unknown += (labels == UNK).sum().item()
    assert abs(chosen / total - 0.15) < 0.01
    # A random token is [MASK] or the very same one in 2 of 16 cases.
    assert abs(masked / chosen - (0.8 + 0.1 / 16)) < 0.03
    assert abs(unchanged / chosen - (0.1 + 0.1 / 16)) < 0.02
    assert unknown > 0


def test_a_tokenizer_without_a_mask_token_masks_nothing():
    with pytest.raises(ValueError, match=r"CLIPTokenizer has no mask token .*: pass mlm_probability=0"):
        GroundingCollator(own_clip_processor())
    assert "mlm_labels" not in GroundingCollator(own_clip_processor(), mlm_probability=0)([record()])


def test_a_collator_of_ones_own_is_evaluated_and_finds_placeholders_as_itself(processor):
    class Prefixed(GroundingCollator):
        def __init__(self, processor, prefix, **options):
            super().__init__(processor, mlm_probability=0, mask_size=8, **options)
            self.prefix = prefix

        def __call__(self, records):
            return super().__call__([each | {"phrase": self.prefix + each["phrase"]} for each in records])

    collator = Prefixed(processor, "the man ", strict=False, augmentation=GroundingAugmentation())
    given = record(phrase="man")
    expected = GroundingCollator(processor, mlm_probability=0, mask_size=8)([record(phrase="the man man")])
    evaluating = collator.for_evaluation()
    assert type(evaluating) is Prefixed and evaluating([given])["input_ids"].tolist() == expected["input_ids"].tolist()
    assert evaluating.augmentation is None and collator.augmentation is not None
    collator.spare = given
    assert collator([record(image="none")])["is_placeholder"].tolist() == [True] and not collator.strict
    with pytest.raises(ValueError, match=r"mlm_probability must lie in \[0, 1\], got 2"):
        collator.for_evaluation(2)


def test_draws_depend_on_seed_epoch_and_records_alone(processor):
    """Neither on what was drawn before, nor on the process, to which the collator may come by pickle; and they leave
    torch's own generator where it was."""
    collator = GroundingCollator(processor, mask_size=4, mlm_probability=0.5)
    records = [record(phrase="a man on the left of the dog")]

    def draw(**changes):
        torch.rand(7)
        before = torch.get_rng_state()
        drawn = replace(pickle.loads(pickle.dumps(collator)), **changes)(records)["mlm_input_ids"].tolist()
        assert torch.equal(torch.get_rng_state(), before)
        return drawn

    assert draw() == draw() != draw(epoch=1)
    assert draw(seed=1) not in (draw(), draw(epoch=1))
    expected, of_data = draw(), datasets.Dataset.from_list(records)
    for kind in ("numpy", "torch"):
        records = list(of_data.with_format(kind))
        assert draw() == expected
    records = of_data.to_list()
    assert draw(epoch=1) == draw(epoch=1)


# Regions


def test_the_same_rectangle_as_box_mask_and_polygon():
    generator = np.random.default_rng(1)
    for _ in range(40):
        height, width = generator.integers(12, 70, 2)
        x1, y1 = generator.integers(0, width - 5), generator.integers(0, height - 5)
        x2, y2 = generator.integers(x1 + 4, width + 1), generator.integers(y1 + 4, height + 1)
        mask = np.zeros((height, width), dtype=bool)
        mask[y1:y2, x1:x2] = True
        box = Region.from_record({"boxes": [[x1, y1, x2, y2]]}, height, width)
        masked = Region.from_record({"masks": [mask]}, height, width)
        polygon = Region.from_record({"polygons": [[[x1, y1, x2, y1, x2, y2, x1, y2]]]}, height, width)
        assert box.boxes.tolist() == masked.boxes.tolist() == polygon.boxes.tolist() == [[x1, y1, x2, y2]]
        np.testing.assert_allclose(masked.rasterize(16), box.rasterize(16), atol=1e-6)
        # Pillow draws the outline too, up to a quarter of a cell more on a side: at a corner the shares multiply.
        np.testing.assert_allclose(polygon.rasterize(16), box.rasterize(16), atol=0.6)
        np.testing.assert_allclose(polygon.rasterize(64), box.rasterize(64), atol=0.6)
        assert polygon.rasterize(64).mean() == pytest.approx(box.rasterize(64).mean(), abs=0.01)


@pytest.mark.parametrize("place", [(1, 0), (639, 479), (639, 0), (333, 222)])
def test_regions_of_a_pixel_do_not_vanish(place):
    x, y = place
    mask = np.zeros((480, 640), dtype=np.float32)
    mask[y, x] = 1
    for annotation in (
        {"boxes": [[x, y, x + 1, y + 1]]},
        {"boxes": [[x, y, x + 0.01, y + 0.01]]},
        {"boxes": [[0, 0, 640, 480], [x, y, x + 1, y + 1]]},
        {"masks": [mask]},
        {"polygons": [[[x, y, x + 1, y, x + 1, y + 1]]]},
        {"polygons": [[[x + 0.5, y + 0.5, x + 0.51, y + 0.5, x + 0.51, y + 0.51]]]},
    ):
        region = Region.from_record(annotation, 480, 640)
        drawn = region.rasterize(16, region.num_instances - 1)
        assert drawn.dtype == np.float32 and drawn.max() == pytest.approx(1)
        assert drawn[y * 16 // 480, x * 16 // 640] == pytest.approx(1)
        assert drawn.sum() <= 4


def test_the_union_of_instances_and_a_whole_image():
    region = Region.from_record({"boxes": [[0, 0, 10, 10], [5, 5, 20, 20]]}, 20, 20)
    expected = np.zeros((20, 20))
    expected[:10, :10] = expected[5:, 5:] = 1
    np.testing.assert_allclose(region.rasterize(20), expected, atol=1e-6)
    whole = Region.from_record({"boxes": [[-5, -5, 60, 40]]}, 37, 53)
    assert whole.boxes.tolist() == [[0, 0, 53, 37]] and (whole.rasterize(256) == 1).all()


def test_masks_come_before_polygons_then_scribbles_then_boxes():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    mask[:12] = 1
    given = {
        "boxes": [[0, 0, 32, 24]],
        "scribbles": [[8, 18]],
        "scribble_radius": 4,
        "polygons": [[[0, 0, 16, 0, 16, 24, 0, 24]]],
        "masks": [mask],
    }

    def quadrants(annotation):
        drawn = Region.from_record(annotation, HEIGHT, WIDTH).rasterize(2)
        return [tuple(cell) for cell in np.argwhere(drawn > 0.9).tolist()]

    assert quadrants(given) == [(0, 0), (0, 1)]
    assert quadrants(given | {"masks": []}) == [(0, 0), (1, 0)]
    assert quadrants(given | {"masks": None, "polygons": []}) == [(1, 0)]
    assert len(quadrants({"boxes": given["boxes"], "scribbles": []})) == 4
    # The boxes to be scored against stay those of the record.
    assert Region.from_record(given, HEIGHT, WIDTH).boxes.tolist() == [[0, 0, 32, 24]]
    assert Region.from_record(given | {"boxes": []}, HEIGHT, WIDTH).boxes.tolist() == [[0, 0, 32, 12]]


def outline(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


ONE, OTHER, BOTH = [0, 0, 8, 8], [20, 10, 30, 20], [0, 0, 30, 20]


@pytest.mark.parametrize(
    "agreeing",
    [
        {"boxes": [ONE, OTHER], "polygons": [outline(*OTHER), outline(*ONE)]},
        {"boxes": [BOTH], "polygons": [outline(*ONE), outline(*OTHER)]},
        {"boxes": [ONE, OTHER], "polygons": [[*outline(*ONE), *outline(*OTHER)]]},
        {"boxes": [ONE], "polygons": [outline(0, 0, 8, 4)]},
        {"boxes": [BOTH], "scribbles": [[1, 1, 2, 2]], "scribble_radius": 1},
        {"boxes": [ONE], "scribbles": [[1, 1, 2, 2, 9, 9]], "scribble_radius": 1},
    ],
)
def test_boxes_beside_another_kind_in_the_same_place(agreeing):
    region = Region.from_record(agreeing, HEIGHT, WIDTH)
    assert region.boxes.tolist() == agreeing["boxes"] and region.kind in agreeing and region.kind != "boxes"


FULL = np.pad(np.ones((8, 8)), ((0, 16), (0, 24)))


@pytest.mark.parametrize(
    ("given", "kind", "instances"),
    [
        ({"boxes": [ONE], "polygons": [[]]}, "boxes", 1),
        ({"boxes": [ONE], "polygons": [[[]]]}, "boxes", 1),
        ({"boxes": [ONE], "polygons": [None], "scribbles": [[]]}, "boxes", 1),
        ({"boxes": [ONE], "masks": [None], "polygons": [outline(*ONE)]}, "polygons", 1),
        ({"boxes": [ONE], "masks": [{"bytes": None, "path": None}]}, "boxes", 1),
        ({"boxes": [ONE, OTHER], "masks": [FULL, None]}, "boxes", 2),
        ({"boxes": [ONE], "polygons": [[[], *outline(*ONE)]]}, "polygons", 1),
    ],
)
def test_an_instance_of_nothing_has_its_box_and_then_all_have(given, kind, instances):
    region = Region.from_record(given, HEIGHT, WIDTH)
    assert (region.kind, region.num_instances) == (kind, instances) and region.boxes.tolist() == given["boxes"]


def test_regions_of_a_data_set_in_torchs_format():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    mask[:12, :16] = 1
    of_records = [
        {"boxes": [[4, 6, 12, 18]]},
        {"polygons": [[[1, 1, 9, 1, 9, 9], [2, 2, 9, 2, 9, 9, 2, 9]], [[3, 3, 9, 3, 9, 9]]]},
        {"scribbles": [[3, 4], [8, 8, 9, 9]], "scribble_radius": 4.0},
        {"masks": [mask]},
    ]
    for of_record in of_records:
        expected = Region.from_record(of_record, HEIGHT, WIDTH)
        (of_tensors,) = datasets.Dataset.from_list([of_record]).with_format("torch")
        region = Region.from_record(of_tensors, HEIGHT, WIDTH)
        np.testing.assert_array_equal(region.boxes, expected.boxes)
        np.testing.assert_array_equal(region.rasterize(8), expected.rasterize(8))


def test_soft_masks_keep_their_values():
    soft = np.zeros((8, 8), dtype=np.float32)
    soft[0:4, 0:4] = 0.25
    soft[0:2, 0:2] = 0.75
    region = Region.from_record({"masks": [soft]}, 8, 8)
    np.testing.assert_allclose(region.rasterize(4)[:2, :2], [[0.75, 0.25], [0.25, 0.25]], atol=1e-6)
    assert region.boxes.tolist() == [[0, 0, 2, 2]]
    half = Region.from_record({"masks": [Image.fromarray((soft * 255).astype(np.uint8))]}, 8, 8)
    np.testing.assert_allclose(half.rasterize(4), region.rasterize(4), atol=0.005)


def test_random_box_choice_takes_each_instance(processor):
    collator = GroundingCollator(processor, mask_size=8, box_choice="random", mlm_probability=0)
    boxes = [[0, 0, 16, 12], [16, 12, 32, 24]]
    corners = []
    for epoch in range(60):
        batch = replace(collator, epoch=epoch)([record(boxes=boxes)])
        assert batch["boxes"].tolist() == [boxes]
        mask = batch["masks"][0]
        assert mask.sum() == 16
        corners.append(mask[0, 0].item())
    assert 20 <= sum(corners) <= 40


@pytest.mark.shared
def test_real_polygons_fill_their_own_boxes(shared_dir):
    data = json.loads((shared_dir / "data" / "coco_photos" / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    checked = 0
    for annotation in data["annotations"][:80]:
        if not isinstance(annotation["segmentation"], list):
            continue
        height, width = sizes[annotation["image_id"]]
        region = Region.from_record({"polygons": [annotation["segmentation"]]}, height, width)
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose(region.boxes, [[x, y, x + w, y + h]], atol=2)
        drawn = region.rasterize(128)
        inside = Region.from_record({"boxes": region.boxes}, height, width).rasterize(128)
        assert drawn.max() == 1 and drawn[inside == 0].max(initial=0) <= 0.5
        checked += 1
    assert checked > 50


@pytest.mark.parametrize("as_given", [list, np.array, torch.tensor])
def test_polygons_of_points(as_given):
    """Of one part, and of parts; a flat list is as before."""
    points = [[4, 6], [12, 6], [12, 18], [4, 18]]
    flat = Region.from_record({"polygons": [[[4, 6, 12, 6, 12, 18, 4, 18]]]}, 24, 32)
    for polygon in (as_given(points), [as_given(points)]):
        region = Region.from_record({"polygons": [polygon]}, 24, 32)
        assert region.boxes.tolist() == [[4, 6, 12, 18]]
        np.testing.assert_array_equal(region.polygons, flat.polygons)
    two = Region.from_record({"polygons": [[points, [[x + 10, y] for x, y in points]]]}, 24, 32)
    assert two.num_instances == 1 and two.boxes.tolist() == [[4, 6, 22, 18]]
    for wrong in ([[4, 6], [12, 6]], [[4, 6], [12, 6], [12, 18, 4]], [4, 6, 12]):
        with pytest.raises(ValueError, match=r"polygon 0 must be .* at least 3|must be finite numbers, a flat list"):
            Region.from_record({"polygons": [wrong]}, 24, 32)


# Refusals


def broken_image():
    # Cut in the middle of the pixels.
    return {"bytes": encoded(photo(size=(200, 200)))["bytes"][:-5000], "path": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [[12, 6, 4, 18]]}, "box 0 has no area"),
        ({"boxes": [[4, 6, 12, 18], [4, 18, 12, 18]]}, "box 1 has no area"),
        ({"boxes": [[40, 6, 50, 18]]}, "box 0 lies outside the image of 32x24"),
        ({"boxes": [[-9, 6, 0, 18]]}, "box 0 lies outside"),
        ({"boxes": [[20, 6, 60, 18]]}, "box 0 lies outside the image of 32x24 pixels, most of it .*box_format"),
        ({"boxes": None, "polygons": [outline(40, 6, 50, 18)]}, r"polygon 0 lies outside .* is in its pixels, or drop"),
        ({"polygons": [[[16, 1, 30, 1, 30, 9]]]}, r"boxes \[\[4.0, 6.0, .* contradict its polygons, .*\[\[16.0, 1.0"),
        ({"masks": [FULL]}, "boxes .* contradict its masks, .*box_format"),
        ({"boxes": [ONE, OTHER], "polygons": [outline(*ONE), outline(9, 9, 12, 12)]}, "contradict its polygons"),
        ({"boxes": [ONE], "polygons": [outline(*ONE), outline(*OTHER)]}, "contradict its polygons"),
        # A box without its polygon; boxes in two corners, polygons in the other two.
        ({"boxes": [[0, 0, 18, 12], [20, 4, 28, 10]], "polygons": [outline(0, 0, 18, 12)]}, "contradict its polygons"),
        (
            {
                "boxes": [[0, 0, 8, 8], [24, 16, 32, 24], [25, 17, 32, 24]],
                "polygons": [outline(24, 0, 32, 8), outline(0, 16, 8, 24)],
            },
            "contradict its polygons",
        ),
        ({"scribbles": [[20, 20, 30, 22, 5, 7]], "scribble_radius": 2}, "scribble 0 lies outside its boxes"),
        (
            {"boxes": [ONE, OTHER], "scribbles": [[1, 1]], "scribble_radius": 2},
            r"boxes \[\[20.* have no scribble in them",
        ),
        ({"boxes": None, "masks": [np.ones((WIDTH, HEIGHT))]}, "resize the mask, or turn it.*EXIF"),
        ({"absent": "false", "boxes": None}, "absent must be true or false, got 'false'"),
        ({"absent": 2, "boxes": None}, "absent must be true or false, got 2"),
        ({"masks": [FULL, None]}, "mask 1 is empty: None; drop it, or give a box for each"),
        ({"boxes": [[4, 6, float("nan"), 18]]}, "four"),
        ({"boxes": [[4, 6, float("inf"), 18]]}, "four"),
        ({"boxes": [[4, 6, 12]]}, "four"),
        ({"boxes": [4, 6, 12, 18]}, "finite numbers, four as xyxy"),
        ({"boxes": [["a", 1, 2, 3]]}, "finite numbers, four as xyxy"),
        ({"boxes": 7}, "boxes is no list, but 7"),
        ({"polygons": [[[1, 1, 5, 1, 5]]]}, "polygon 0 must be pairs"),
        ({"polygons": [[[1, 1, 5, 1]]]}, "at least 3"),
        ({"polygons": [[[1, 1, 5, 1, 5, float("nan")]]]}, "finite numbers, a flat list"),
        ({"boxes": [], "polygons": [[]]}, "polygon 0 has no parts"),
        ({"polygons": [[], [[1, 1, 5, 1, 5, 5]]]}, "polygon 0 has no parts"),
        ({"polygons": [[1, 1, 5, 1, 5, 5]]}, "finite numbers, a flat list"),
        ({"polygons": [[["x", 1, 5, 1, 5, 5]]]}, "finite numbers, a flat list"),
        ({"polygons": [[[40, 1, 50, 1, 50, 5]]]}, "polygon 0 lies outside the image"),
        ({"polygons": [[[20, 1, 60, 1, 60, 9]]]}, "polygon 0 lies outside the image"),
        ({"polygons": [[[1, 1, 5, 1, 9, 1]]]}, "polygon 0 has no area"),
        ({"masks": [np.ones((24, 31))]}, r"mask 0 has shape \(24, 31\)"),
        ({"masks": [np.ones((24, 32, 1))]}, "mask 0 has shape"),
        ({"masks": [np.ones((24, 32)), np.zeros((24, 32))]}, "mask 1 is empty"),
        ({"masks": [Image.new("L", (32, 24), 1)]}, "mask 0 is empty"),
        ({"masks": [np.full((24, 32), 255, dtype=np.uint8)]}, "divide an 8-bit mask by 255"),
        ({"masks": [np.full((24, 32), np.nan)]}, "outside"),
        ({"masks": [np.full((24, 32), -1.0)]}, "outside"),
        ({"masks": [Image.new("RGB", (32, 24))]}, 'mode "RGB"'),
        ({"masks": ["mask.png"]}, "there is no image mask.png"),
        ({"image": broken_image()}, "is not a readable image"),
        ({"image": {"bytes": b"no image", "path": None}}, "of no kind that is known"),
        ({"image": {"bytes": None, "path": "/nowhere/photo.jpg"}}, "there is no image /nowhere/photo.jpg"),
        ({"image": {"bytes": None, "path": None}}, "needs"),
        ({"image": None}, "there is no image"),
        ({"image": "photo.png"}, "there is no image photo.png"),
        ({"image": np.zeros((1, 4, 4, 3), dtype=np.uint8)}, "is no image"),
        ({"phrase": "  "}, "phrase is empty"),
        ({"phrase": "\u200b"}, "phrase is empty"),  # to be seen by nobody
        ({"phrase": None}, "phrase is empty"),
        ({"phrase": ["a", "b"]}, r"a row of several phrases; trainer\.phrase_rows\.PhraseRows\(dataset\) has a record"),
        ({"phrase": "...!"}, "empty after cleaning"),
    ],
)
def test_an_unusable_record_is_named(collator, changes, message):
    records = [record(image_id="good"), record(image_id="photo-7", **changes)]
    with pytest.raises(ValueError, match=message) as raised:
        collator(records)
    assert "'photo-7'" in str(raised.value) and repr(records[1]["phrase"]) in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "number", "name"),
    [
        ({"image_id": 7, "image": "below/1.png"}, 3, "image 7, phrase 'the man'"),
        ({"image_id": None, "image": "below/1.png"}, 3, "image 'below/1.png', phrase 'the man'"),
        ({"image_id": float("nan"), "image": {"bytes": b"", "path": "1.png"}}, None, "image '1.png', phrase 'the man'"),
        ({"image_id": None, "image": {"bytes": b"", "path": None}}, 3, "record 3, phrase 'the man'"),
        ({"image_id": None}, None, "phrase 'the man'"),
        ({"image_id": None, "image": "L" * 9000}, None, f"image '{60 * 'L'}…', phrase 'the man'"),  # base64
    ],
)
def test_what_messages_call_a_record(changes, number, name):
    assert record_name(record(**changes), number) == name


def test_a_placeholder_replaces_a_phrase_without_words(collator):
    batch = replace(collator, strict=False)([record(), record(image_id="b", phrase="...!"), record(image_id="c")])
    assert batch["is_placeholder"].tolist() == [False, True, False]
    assert batch["input_ids"][1].tolist() == batch["input_ids"][0].tolist()
    assert "image 'b', phrase '...!'" in batch["unusable"][0] and "empty after cleaning" in batch["unusable"][0]


def test_an_empty_batch_is_refused(collator):
    with pytest.raises(ValueError, match="empty batch"):
        collator([])


@pytest.mark.parametrize(
    "wrong", [{"mask_size": 0}, {"box_choice": "first"}, {"mlm_probability": 1.5}, {"box_format": "yx"}]
)
def test_wrong_options_are_named(processor, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GroundingCollator(processor, **wrong)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, False), (math.nan, False), (np.float64("nan"), False), (0, False), (np.False_, False), (1.0, True),
     (True, True), (torch.tensor(True), True), (np.array([1])[0], True)],
)  # fmt: skip
def test_absent_of_any_library_and_missing_ids_of_pandas(processor, value, expected):
    records = [record(absent=value, boxes=None, image_id=math.nan), record(image=photo(seed=1), image_id=math.nan)]
    batch = GroundingCollator(processor, mask_size=8)(records)
    assert batch["is_absent"].tolist() == [expected, False] and batch["image_index"].tolist() == [0, 1]


@pytest.mark.parametrize("radius", [4, np.int64(4), np.float32(4), torch.tensor(4)])
def test_a_radius_of_any_library(radius):
    region = Region.from_record({"scribbles": [[8, 8]], "scribble_radius": radius}, HEIGHT, WIDTH)
    assert region.boxes.tolist() == [[4, 4, 12, 12]]


def test_an_unknown_format_of_boxes():
    with pytest.raises(ValueError, match=r"box_format must be one of xyxy, .* got 'COCO'"):
        Region.from_record({"boxes": [ONE]}, HEIGHT, WIDTH, "COCO")
