"""The processor: cleaning, word pieces, layouts of phrases and images, answers in pixels, saving and loading."""

import doctest
import inspect
import json
import re
from collections import deque

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AddedToken, AutoProcessor, AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.processing_utils import ProcessingKwargs

from modeling_albef_amc import (
    configuration_albef,
    image_processing_pil_albef,
    modeling_albef,
    modeling_albef_pretraining,
    processing_albef,
    tokenization_albef,
)
from modeling_albef_amc.gradcam import heatmap_points
from modeling_albef_amc.image_processing_pil_albef import AlbefImageProcessorPil
from modeling_albef_amc.processing_albef import AlbefProcessor, box_around_point
from modeling_albef_amc.tokenization_albef import albef_tokenizer, clean_text
from modeling_albef_amc.tools import vocabulary
from modeling_albef_amc.tools.vocabulary import tokenizer_from_texts

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "##s", "two", "story", "house", "tree"]


@pytest.fixture
def tokenizer():
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(VOCABULARY)})


@pytest.fixture
def processor(tokenizer):
    return AlbefProcessor(AlbefImageProcessorPil(size={"height": 16, "width": 32}), tokenizer)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8))


# --- phrases ---------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_cleaning_is_the_original(shared_dir):
    cases = json.loads((shared_dir / "golden/functions.json").read_text())["pre_caption"]
    assert cases
    for case in cases:
        assert clean_text(case["text"], case["max_words"]) == case["result"], case


def test_cleaning_by_hand():
    assert clean_text("A <person>'s Two-story/house; (red!)") == "a persons two story house red"
    assert clean_text("word " * 60).split(" ") == ["word"] * 50
    assert clean_text("one two three", max_words=2) == "one two"
    with pytest.raises(ValueError, match="max_words must be at least 1, got 0"):
        clean_text("one", max_words=0)


@pytest.mark.shared
def test_word_pieces_are_the_original(shared_dir):
    case = json.loads((shared_dir / "golden/functions.json").read_text())["tokenizer"]
    stock = BertTokenizer(vocab={piece: index for index, piece in enumerate(case["vocab"])})
    tokenizer = albef_tokenizer(stock)
    encoded = tokenizer(case["texts"], padding=True)
    assert encoded["input_ids"] == case["input_ids"]
    assert encoded["attention_mask"] == case["attention_mask"]
    truncated = tokenizer([case["truncated_text"]], truncation=True, max_length=25)
    assert truncated["input_ids"] == case["truncated_25"]

    processor = AlbefProcessor(AlbefImageProcessorPil(), stock)
    encoded = processor(text=[text for text in case["texts"] if text])
    assert encoded["input_ids"] == [row for row, text in zip(case["input_ids"], case["texts"], strict=True) if text]
    assert processor(text=case["truncated_text"], max_length=25)["input_ids"] == case["truncated_25"]


def test_a_stock_bert_tokenizer_loses_its_sep_and_stays_as_it_was(tokenizer):
    sep = tokenizer.sep_token_id
    tokenizer("a dog", truncation=True, max_length=3, padding="max_length")
    ours = albef_tokenizer(tokenizer)
    assert ours("a red dog a red dog")["input_ids"] == [2, 5, 6, 7, 5, 6, 7]
    assert set(ours("a")) == {"input_ids", "attention_mask"}
    assert ours("a dog", "red")["input_ids"] == [2, 5, 7, 6]
    assert (ours.mask_token_id, ours.cls_token_id, ours.pad_token_id) == (4, 2, 0)
    assert tokenizer("a dog")["input_ids"] == [2, 5, 7, sep]
    assert albef_tokenizer(ours)("a dogs")["input_ids"] == [2, 5, 7, 8]
    for only in ({"pad_token": "[PAD]"}, {"cls_token": "[CLS]"}):
        with pytest.raises(ValueError, match="needs a cls_token and a pad_token"):
            albef_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **only))


def test_a_tokenizer_from_texts():
    tokenizer = tokenizer_from_texts(["A red dog!", "two-story house", "café", "red"])
    vocabulary = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert vocabulary[:12] == [*VOCABULARY[:5], "a", "cafe", "dog", "house", "red", "story", "two"]
    assert len(set(vocabulary)) == len(vocabulary) == tokenizer.vocab_size
    assert tokenizer.tokenize("red dog") == ["red", "dog"]
    assert tokenizer.tokenize("dig 7x") == ["d", "##i", "##g", "7", "##x"]
    assert tokenizer("red")["input_ids"] == [2, 9]
    assert tokenizer_from_texts(["red", "a dog"]).get_vocab() == tokenizer_from_texts(["dog a", "red"]).get_vocab()
    assert tokenizer_from_texts([]).tokenize("ab") == ["a", "##b"]


def test_phrases_are_cut_only_when_asked(processor):
    with pytest.raises(ValueError, match="max_length must leave room"):
        processor(text="a dog", max_length=1)
    with pytest.raises(ValueError, match="max_words must be at least 1"):
        AlbefProcessor(processor.image_processor, processor.tokenizer, max_words=0)
    with pytest.raises(ValueError, match="nothing to process"):
        processor()
    long = "a dog " * 40
    assert len(processor(text=long)["input_ids"][0]) == 51
    assert len(processor(text=long, max_words=30)["input_ids"][0]) == 31
    assert len(processor(text=long, max_length=25)["input_ids"][0]) == 25
    assert len(processor(text=long)["input_ids"][0]) == 51
    assert AlbefProcessor(processor.image_processor, processor.tokenizer, max_words=3)(text=long)["input_ids"] == [
        [2, 5, 7, 5]
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("?!", r"phrase 0 \('\?!'\) is empty after cleaning"),
        (["a dog", "..."], r"phrase 1 \('\.\.\.'\) is empty"),
        ([["a dog"], ["red", " \t "]], r"phrase 2 .* is empty"),
        (["a dog", "\u200b"], r"phrase 1 .* is empty"),
        ([], "text must be"),
        ([[], []], "no phrase"),
        (7, "text must be"),
        (["a dog", None], "phrase 1 is None, not a string"),
        (["a dog", ["red"]], r"phrase 1 is \['red'\], not a string"),
    ],
)
def test_phrases_that_are_refused(processor, text, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("is_split_into_words", True, "is_split_into_words .*join the words of each phrase with blanks"),
        ("return_overflowing_tokens", True, "return_overflowing_tokens .*one row of tokens"),
        ("text_pair", "red", "text_pair .*one text"),
        ("text_target", "red", "text_target .*no target"),
        ("text_pair_target", "red", "text_pair_target .*no target"),
        ("add_special_tokens", False, "add_special_tokens=False takes .CLS. away"),
    ],
)
def test_other_layouts_of_tokens_are_refused(processor, option, value, message):
    for options in ({option: value}, {"text_kwargs": {option: value}}):
        with pytest.raises(ValueError, match=message):
            processor(text=["a", "dog"], **options)
    assert processor(text=["a", "dog"], is_split_into_words=False)["input_ids"] == [[2, 5], [2, 7]]


# --- phrases and images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "text", "input_ids", "image_index"),
    [
        (1, "Two dogs.", [[2, 9, 7, 8]], None),
        (2, ["a dog", "a red dog"], [[2, 5, 7, 0], [2, 5, 6, 7]], None),
        (1, ["a dog", "red", "house"], [[2, 5, 7], [2, 6, 0], [2, 11, 0]], [0, 0, 0]),
        (3, [["a dog", "red"], [], ["house"]], [[2, 5, 7], [2, 6, 0], [2, 11, 0]], [0, 0, 2]),
        (2, [["dog"], ["red"]], [[2, 7], [2, 6]], [0, 1]),
        (None, [["dog", "red"], ["tree"]], [[2, 7], [2, 6], [2, 12]], [0, 0, 1]),
        (None, "dog", [[2, 7]], None),
    ],
)
def test_layouts_of_phrases_and_images(processor, image, images, text, input_ids, image_index):
    batch = processor(images=images and [image] * images, text=text, return_tensors="pt")
    assert batch["input_ids"].tolist() == input_ids
    assert batch["attention_mask"].tolist() == [[int(token != 0) for token in row] for row in input_ids]
    assert batch["pixel_values"].shape == (images, 3, 16, 32) if images else "pixel_values" not in batch
    if image_index is None:
        assert set(batch) == set(processor.model_input_names) - (set() if images else {"pixel_values"})
    else:
        assert batch["image_index"].tolist() == image_index and batch["image_index"].dtype == torch.long


def test_images_alone_and_images_nested_by_phrase(processor, image):
    assert set(processor(images=image)) == {"pixel_values"}
    nested = processor(images=[[image], [image]], text=["a dog", "red"], return_tensors="pt")
    assert (len(nested["pixel_values"]), len(nested["input_ids"])) == (2, 2)


def test_every_default_has_one_place(processor, image):
    # transformers' rule: what `__init__` takes is no attribute of the class, and neither is declared for calls again.
    taken = set(inspect.signature(AlbefProcessor.__init__).parameters) - {"self"}
    named = {name for name in inspect.signature(AlbefProcessor.__call__).parameters if name != "kwargs"} - {"self"}
    declared = set(AlbefProcessor.valid_processor_kwargs.__annotations__)
    assert not {name for name in taken if hasattr(AlbefProcessor, name)}
    assert not (taken | named) & declared
    assert not {name for name in named if hasattr(processor, name)}
    assert AlbefProcessor.valid_processor_kwargs is ProcessingKwargs
    # A call can still say otherwise, for itself alone.
    processor.max_words = 2
    lengths = [len(processor(text="a dog " * 3, **words)["input_ids"][0]) for words in ({}, {"max_words": 4}, {})]
    assert lengths == [3, 5, 3]
    assert len(processor(text="a dog " * 3, max_words=None)["input_ids"][0]) == 3


def test_other_options_reach_the_parts(processor, image):
    options = dict(size={"height": 8, "width": 8}, padding="max_length", max_length=5, return_tensors="np")
    batch = processor(images=image, text="dog", **options)
    assert batch["pixel_values"].shape == (1, 3, 8, 8)
    assert batch["input_ids"].tolist() == [[2, 7, 0, 0, 0]]


def test_numbers_that_do_not_match(processor, image):
    for images, text, message in (
        ([image] * 2, ["dog"] * 3, "3 phrases for 2 images"),
        ([image] * 2, "dog", "1 phrases for 2 images"),
        (image, [["dog"], ["red"]], "2 lists of phrases for 1 images"),
        ([], "dog", "no images were given"),
        ([[image], []], ["a dog"], r"images\[1\] is an empty group: no image for its phrases"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(images=images, text=text)


# --- answers ---------------------------------------------------------------------------------------------------------


def bicubic(heatmap: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cubic convolution (a = -0.75) with replicated borders, in float64, from its definition."""

    def weights(size: int, length: int) -> np.ndarray:
        matrix = np.zeros((length, size))
        for target in range(length):
            center = (target + 0.5) * size / length - 0.5
            for tap in range(int(np.floor(center)) - 1, int(np.floor(center)) + 3):
                x = abs(center - tap)
                weight = 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
                matrix[target, min(max(tap, 0), size - 1)] += weight
        return matrix

    return weights(heatmap.shape[0], height) @ heatmap @ weights(heatmap.shape[1], width).T


def test_a_map_of_two_by_two_by_hand(processor):
    # The four taps of a pixel are 0.25, 0.75, 1.25 and 1.75 away: weights 225, 67, -27 and -9 over 256.
    (result,) = processor.post_process_grounding(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), (4, 4))
    row = [(-9 + 67 + 225) / 256, (225 - 27) / 256, (67 - 9) / 256, -27 / 256]
    torch.testing.assert_close(result["heatmap"], torch.tensor([row] * 4))
    assert result["point"] == (0, 0)
    assert result["box"] == (0, 0, 2, 4)
    (flipped,) = processor.post_process_grounding(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), (4, 4))
    assert (flipped["point"], flipped["box"]) == ((3, 0), (2, 0, 4, 4))


def test_maps_follow_the_definition_of_cubic_convolution(processor):
    heatmaps = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[9, 13], [40, 7], [9, 13], [2, 3], [1, 1]])
    results = processor.post_process_grounding(heatmaps, sizes)
    for heatmap, (height, width), result in zip(heatmaps, sizes.tolist(), results, strict=True):
        expected = bicubic(heatmap.double().numpy(), height, width)
        assert result["heatmap"].dtype == torch.float32
        np.testing.assert_allclose(result["heatmap"].numpy(), expected, atol=1e-6)
        y, x = np.unravel_index(expected.argmax(), expected.shape)
        assert result["point"] == (x, y)
    points = [list(result["point"]) for result in results]
    assert heatmap_points(heatmaps, sizes).tolist() == heatmap_points(heatmaps, sizes.tolist()).tolist() == points
    assert heatmap_points(heatmaps[1:2], (40, 7)).tolist() == points[1:2]
    with pytest.raises(ValueError, match=r"\(1, 2\) for 5 maps"):
        heatmap_points(heatmaps, sizes[:1])


@pytest.mark.shared
def test_maps_and_points_are_the_original(processor, shared_dir):
    arrays = load_file(shared_dir / "golden/heatmaps.safetensors")
    cases = json.loads((shared_dir / "golden/functions.json").read_text())["grounding_eval"]
    for grid in (16, 24):
        group = [case for case in cases if case["mask_size"] == grid]
        heatmaps = torch.stack([arrays[f"heat{grid}_{case['i']}"] for case in group])
        results = processor.post_process_grounding(heatmaps, [(case["height"], case["width"]) for case in group])
        assert len(results) == 10
        for case, result in zip(group, results, strict=True):
            name, upsampled = f"up{grid}_{case['i']}", result["heatmap"]
            assert upsampled.shape == (case["height"], case["width"])
            if name not in arrays:
                name, upsampled = f"{name}_every16th", upsampled[::16, ::16]
            torch.testing.assert_close(upsampled, arrays[name], atol=1e-6, rtol=1e-5)
            assert list(result["point"]) == case["point"]["point"], case["i"]


DRAWN = """
    ..######....
    ..#....#..1.
    ..#.9..#.11.
    ..#.#..#....
    ..#.####.7..
    ......#.#...
    ....77..####
"""


def draw(picture: str) -> torch.Tensor:
    values = {".": 0.0, "#": 6.0, "1": 1.0, "7": 7.0, "9": 9.0}
    return torch.tensor([[values[character] for character in line] for line in picture.split()])


@pytest.mark.parametrize(
    ("threshold", "box"),
    [
        (0.5, (2, 0, 8, 6)),  # 4.5 and more: all that hangs together with the 9 by edges; the 7s do so by corners only
        (0.7, (4, 2, 5, 3)),  # 6.3 and more: the 9 alone, though the 7s are high enough
        (1.0, (4, 2, 5, 3)),
        (0.0, (0, 0, 12, 7)),
    ],
)
def test_a_box_from_a_drawn_map(processor, threshold, box):
    # At the map's own size bicubic upsampling is the identity; scale and offset do not matter.
    heatmaps = torch.stack([draw(DRAWN), draw(DRAWN) * 1e-6 - 3e-6, draw(DRAWN) * 1000 + 5])
    for result in processor.post_process_grounding(heatmaps, (7, 12), threshold=threshold):
        assert result["point"] == (4, 2) and result["box"] == box


def test_equal_maxima_and_constant_maps(processor):
    heatmap = torch.zeros(1, 3, 4)
    heatmap[0, 0, 3] = heatmap[0, 1, 0] = heatmap[0, 2, 2] = 1
    assert processor.post_process_grounding(heatmap, (3, 4))[0]["point"] == (3, 0), "the first in row order"
    constant = torch.stack([torch.zeros(24, 24), torch.full((24, 24), 0.1)])
    for result in processor.post_process_grounding(constant, (64, 48)):
        assert (result["point"], result["box"]) == ((0, 0), (0, 0, 48, 64)), "not where rounding leads to"
    assert heatmap_points(constant, (64, 48)).tolist() == [[0, 0]] * 2


def region_box(inside: np.ndarray, point: tuple[int, int]) -> tuple[int, int, int, int]:
    """Breadth first, pixel by pixel."""
    queue, seen = deque([point]), {point}
    while queue:
        x, y = queue.popleft()
        for neighbour in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            column, row = neighbour
            within = 0 <= row < inside.shape[0] and 0 <= column < inside.shape[1]
            if within and inside[row, column] and neighbour not in seen:
                seen.add(neighbour)
                queue.append(neighbour)
    xs, ys = zip(*seen, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


@pytest.mark.parametrize("density", [0.3, 0.55, 0.6, 0.65, 0.9])
def test_regions_against_a_flood_fill(density):
    generator = np.random.default_rng(int(density * 100))
    for _ in range(20):
        inside = generator.random((17, 23)) < density
        y, x = generator.integers(17), generator.integers(23)
        inside[y, x] = True
        heatmap = torch.from_numpy(inside).float()
        heatmap[y, x] = 1.5
        assert box_around_point(heatmap, (x, y), 0.6) == region_box(inside, (x, y))


def test_lists_of_maps_of_different_grids(processor):
    maps = [torch.rand(16, 16), torch.rand(24, 24, requires_grad=True), torch.rand(16, 16).half()]
    results = processor.post_process_grounding(maps, np.array([[30, 40], [50, 60], [30, 40]]))
    assert [tuple(result["heatmap"].shape) for result in results] == [(30, 40), (50, 60), (30, 40)]
    assert not any(result["heatmap"].requires_grad for result in results)
    assert all(isinstance(value, int) for result in results for value in (*result["point"], *result["box"]))
    assert processor.post_process_grounding(torch.zeros(0, 16, 16), torch.zeros(0, 2)) == []


@pytest.mark.parametrize(
    ("heatmaps", "sizes", "message"),
    [
        (torch.rand(3, 4, 4), [(5, 5)] * 2, r"\(2, 2\) for 3 maps"),
        (None, (5, 5), "outputs.heatmaps with output_heatmaps=True, not .*NoneType"),
        (torch.rand(4, 4), (5, 5), r"got the shape \(4, 4\)"),
        (torch.rand(2, 1, 4, 4), (5, 5), r"got the shape \(2, 1, 4, 4\)"),
        ([torch.rand(4, 4), torch.rand(4)], (5, 5), r"heatmap 1 must be \(rows, columns\)"),
        ([torch.rand(4, 4), torch.rand(0, 4)], (5, 5), r"heatmap 1 must be \(rows, columns\)"),
        (torch.tensor([[[0.0, 1.0]], [[0.0, float("nan")]]]), (5, 5), "heatmap 1 has NaN"),
        (torch.tensor([[[0.0, float("inf")]], [[0.0, 1.0]]]), (5, 5), "heatmap 0 has NaN or infinite"),
        (torch.rand(2, 4, 4), [(5, 5), (0, 5)], r"target size 1 is \[0, 5\]"),
        (torch.rand(2, 4, 4), [(5, -5), (5, 5)], r"target size 0 is \[5, -5\]"),
        (torch.rand(1, 4, 4), [(5.5, 5.0)], r"target size 0 is \[5.5, 5.0\]"),
        (torch.rand(1, 4, 4), torch.tensor([[float("nan"), 5.0]]), "target size 0"),
        (torch.rand(3, 4, 4), [(5, 5, 3)] * 3, r"must be \(num_phrases, 2\)"),
        (torch.rand(1, 4, 4), 5, r"must be \(num_phrases, 2\)"),
    ],
)
def test_answers_that_are_refused(processor, heatmaps, sizes, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_grounding(heatmaps, sizes)
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\]"):
            processor.post_process_grounding(heatmaps, sizes, threshold=threshold)


# --- saving and loading ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(processor, tmp_path):
    """A saved processor that has just cut phrases, which must not stick."""
    processor.max_words = 7
    processor(text=["a dog a red dog"], max_length=3, padding="max_length")
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def assert_same(loaded: AlbefProcessor, image: Image.Image):
    batch = loaded(images=image, text=["two dogs", "a " * 9], return_tensors="pt")
    assert batch["input_ids"].tolist() == [[2, 9, 7, 8, 0, 0, 0, 0], [2, *[5] * 7]]
    assert batch["pixel_values"].shape == (1, 3, 16, 32)


def test_loaded_by_its_class_and_by_the_auto_classes(folder, image):
    assert_same(AlbefProcessor.from_pretrained(folder), image)
    loaded = AutoProcessor.from_pretrained(folder)
    assert type(loaded) is AlbefProcessor
    assert_same(loaded, image)
    assert AutoTokenizer.from_pretrained(folder)("two dogs a dog")["input_ids"] == [2, 9, 7, 8, 5, 7]
    assert AutoImageProcessor.from_pretrained(folder, backend="pil").size["width"] == 32


def test_saved_again_it_is_the_same(folder, tmp_path):
    AutoProcessor.from_pretrained(folder, backend="pil").save_pretrained(tmp_path / "again")
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((folder / name).read_text())
    assert json.loads((folder / "tokenizer.json").read_text())["truncation"] is None


def test_a_folder_with_a_stock_bert_tokenizer(folder, tokenizer, image):
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("dog")["input_ids"] == [2, 7, 3]
    assert_same(AutoProcessor.from_pretrained(folder), image)


def test_what_a_tokenizer_was_loaded_with_is_the_default_of_calls(folder, image):
    loaded = AlbefProcessor.from_pretrained(folder, max_length=9, padding="max_length")
    assert loaded(text="a dog")["input_ids"] == [[2, 5, 7, *[0] * 6]]
    assert loaded(images=image, text="a dog", return_tensors="pt")["input_ids"].shape == (1, 9)
    assert loaded(text="a dog", padding=False)["input_ids"] == [[2, 5, 7]]
    assert loaded(text="a dog", max_length=5)["input_ids"] == [[2, 5, 7, 0, 0]]
    alone = AutoTokenizer.from_pretrained(folder, max_length=9, padding="max_length")
    rebuilt = AlbefProcessor(loaded.image_processor, alone)
    assert rebuilt(text="a dog")["input_ids"] == [[2, 5, 7, *[0] * 6]]
    rebuilt.save_pretrained(folder)
    assert AutoProcessor.from_pretrained(folder)(text="a dog")["input_ids"] == [[2, 5, 7, *[0] * 6]]


@pytest.mark.parametrize("stock", [True, False])
def test_a_tokenizer_is_itself_after_it_was_rebuilt_saved_and_loaded(tokenizer, tmp_path, stock):
    (tokenizer if stock else albef_tokenizer(tokenizer)).save_pretrained(tmp_path)
    extra = {
        "extra_special_tokens": ["<one>", AddedToken("<two>", lstrip=True)],
        "image_token": "<image>",
        "model_max_length": 77,
        "padding_side": "left",
        "chat_template": "{{ messages }}",
        "clean_up_tokenization_spaces": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, **extra)
    tokenizer.truncation_side, tokenizer.split_special_tokens = "left", True
    AlbefProcessor(AlbefImageProcessorPil(), tokenizer).save_pretrained(tmp_path / "once")
    AlbefProcessor.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    for name in ("once", "twice"):
        loaded = AutoTokenizer.from_pretrained(tmp_path / name)
        assert loaded.extra_special_tokens == ["<one>", "<two>"]
        assert loaded.image_token == "<image>"
        assert loaded.added_tokens_decoder == tokenizer.added_tokens_decoder
        assert (loaded.model_max_length, loaded.padding_side, loaded.truncation_side) == (77, "left", "left")
        assert (loaded.split_special_tokens, loaded.clean_up_tokenization_spaces) == (True, True)
        assert loaded.chat_template == "{{ messages }}"


def test_what_an_image_processor_was_loaded_with_stays_its_own(folder, image, tmp_path):
    loaded = AlbefProcessor.from_pretrained(folder, size={"height": 8, "width": 8}, max_words=3)
    assert loaded(images=image, text="a dog a dog", return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 8)
    loaded.image_processor.size = {"height": 4, "width": 4}
    assert loaded(images=image, return_tensors="pt")["pixel_values"].shape == (1, 3, 4, 4)
    loaded.save_pretrained(tmp_path / "again")
    assert not {"size", "max_words", "token"} & set(json.loads((tmp_path / "again/tokenizer_config.json").read_text()))
    assert AutoProcessor.from_pretrained(tmp_path / "again").max_words == 3


def test_a_tokenizer_saved_while_it_cut_phrases_cuts_no_more(processor, tokenizer, tmp_path):
    for name, cutting in {"stock": tokenizer, "ours": processor.tokenizer}.items():
        cutting("a dog a dog", truncation=True, max_length=3, padding="max_length")
        cutting.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "tokenizer.json").read_text())["truncation"]["max_length"] == 3
        loaded = AlbefProcessor(processor.image_processor, AutoTokenizer.from_pretrained(tmp_path / name))
        assert loaded(text="a dog a dog")["input_ids"] == [[2, 5, 7, 5, 7]]
        asked = AutoTokenizer.from_pretrained(tmp_path / name, max_length=4, padding="max_length")
        asked = AlbefProcessor(processor.image_processor, asked)
        assert asked(text=["a dog a dog", "a"])["input_ids"] == [[2, 5, 7, 5], [2, 5, 0, 0]]


def test_saving_leaves_a_processor_as_it_was(folder, tmp_path):
    loaded = AlbefProcessor.from_pretrained(folder)
    before = loaded.to_dict()
    loaded.save_pretrained(tmp_path / "again", False)  # `push_to_hub`, in transformers' place
    assert loaded.to_dict() == before == AlbefProcessor.from_pretrained(tmp_path / "again").to_dict()
    saved = json.loads((tmp_path / "again/processor_config.json").read_text())
    assert saved["auto_map"] == {"AutoProcessor": "processing_albef.AlbefProcessor"}


# --- what is written about them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", configuration_albef.__all__)
def test_every_field_of_a_configuration_is_explained(name):
    config_class = getattr(configuration_albef, name)
    explained = config_class.__doc__ + configuration_albef.AlbefVisionConfig.__doc__  # of what both encoders have
    fields = set(vars(config_class)["__annotations__"]) - {"model_type", "sub_configs"}
    assert fields <= set(re.findall(r"\w+", explained))


MODULES = (
    configuration_albef,
    image_processing_pil_albef,
    modeling_albef,
    modeling_albef_pretraining,
    processing_albef,
    tokenization_albef,
    vocabulary,
)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_examples_run_and_print_what_they_say(module):
    results = doctest.testmod(module)
    assert results.failed == 0 < results.attempted
