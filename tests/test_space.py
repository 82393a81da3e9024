"""The demo: on a tiny model with random weights, saved as users save theirs."""

from pathlib import Path

import numpy as np
import pytest
import transformers.dynamic_module_utils
from PIL import Image

from modeling_albef_amc import AlbefForPreTraining, AlbefImageProcessorPil, AlbefProcessor, tokenizer_from_texts

from .conftest import tiny_config

gr = pytest.importorskip("gradio")
app = pytest.importorskip("space.app")

PHRASES = ["the red cup", "a dog on the left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "model"
    tokenizer = tokenizer_from_texts(PHRASES)
    text_config = tiny_config().text_config.to_dict() | {"vocab_size": len(tokenizer)}
    AlbefForPreTraining(tiny_config(text_config=text_config)).save_pretrained(folder)
    AlbefProcessor(AlbefImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    return app.load(str(folder))


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8))


def test_every_phrase_is_shown_and_located(loaded, photo):
    pictures, rows = app.ground(*loaded, photo, f"{PHRASES[0]}\n\n  {PHRASES[1]} \n")
    assert [row[0] for row in rows] == PHRASES
    for (picture, caption), (phrase, match, point, box) in zip(pictures, rows, strict=True):
        assert caption.startswith(phrase)
        assert 0 <= float(match) <= 100
        x, y = map(int, point.split(", "))
        assert 0 <= x < 70 and 0 <= y < 40
        x1, y1, x2, y2 = map(int, box.split(", "))
        assert 0 <= x1 <= x < x2 <= 70 and 0 <= y1 <= y < y2 <= 40
        assert picture.size == photo.size
        assert (np.asarray(picture) != np.asarray(photo)).any(axis=2).mean() > 0.5
    assert not np.array_equal(*(np.asarray(picture) for picture, _ in pictures))


def test_answers_are_those_of_the_model(loaded, photo):
    model, processor = loaded
    output = model(**processor(images=photo, text=PHRASES, return_tensors="pt"), output_heatmaps=True)
    _, rows = app.ground(model, processor, photo, "\n".join(PHRASES))
    answers = processor.post_process_grounding(output.heatmaps, (40, 70))
    assert [row[2] for row in rows] == ["{}, {}".format(*answer["point"]) for answer in answers]
    for row, logits in zip(rows, output.itm_logits.tolist(), strict=True):
        assert float(row[1]) == pytest.approx(100 / (1 + np.exp(logits[0] - logits[1])), abs=0.051)


def test_the_overlay_is_hot_where_the_map_is():
    heatmap = np.zeros((4, 6), dtype=np.float32)
    heatmap[1, 2] = 2
    gray = np.asarray(app.overlay(Image.new("RGB", (6, 4), (100, 100, 100)), heatmap)).astype(int)
    assert (gray[1, 2] != 100).any()
    gray[1, 2] = 100
    assert (gray == 100).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one phrase"),
        (" \n\t\n", "at least one phrase"),
        ("the red cup\n?!", "phrase 1"),
        ("dog " * 30, "longer than"),
        ("dog\n" * 17, "At most 16"),
    ],
)
def test_bad_phrases_are_explained(loaded, photo, text, message):
    with pytest.raises(gr.Error, match=message):
        app.ground(*loaded, photo, text)


def test_no_photo_is_explained(loaded):
    with pytest.raises(gr.Error, match="Choose a photo"):
        app.ground(*loaded, None, PHRASES[0])


def test_the_examples_are_there():
    for path, phrases in app.EXAMPLES:
        assert phrases.strip()
        with Image.open(path) as photo:
            photo.load()


def test_the_page_calls_it(loaded, photo):
    page = app.build(*loaded)
    (function,) = (function for function in page.fns.values() if function.api_name == "ground")
    pictures, rows = function.fn(photo, PHRASES[0])
    assert len(pictures) == len(rows) == 1
