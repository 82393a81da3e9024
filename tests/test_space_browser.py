"""The Space in a browser, as its visitors meet it."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import modeling_albef_amc  # noqa: F401  (registers the pipeline)
from dataset_scripts.scenes import ScenesConfig, draw_scene
from tests.helpers.browser import DESKTOP, PHONE, Locator, Visitor, chromium, expect, visits
from tests.helpers.space import SPACE, space_module
from tests.helpers.versions import needs

pytestmark = pytest.mark.slow
app, models = map(space_module, ("app", "models"))

# Scene 1 of the split `test`: what its phrases mean is known from drawing it.
SCENE = SPACE / "examples" / "scene_1.png"
PHRASES = ["the triangle that is red", "small star"]
LINES = "\n".join(PHRASES)
EXAMPLE = {"photo": "example:scene_1.png", "lines": LINES}


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """Address of the Space, running with the models that come with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = app.build(models.ModelStore(models.read_catalogue()))
        options = app.launch_options() | {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
        yield page.launch(**options)[1]
        page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def visit(browser, url):
    with visits(browser, url, app.EXAMPLES[0]["lines"]) as visit:
        yield visit


@pytest.fixture(scope="module")
def ground():
    """The Python API with the checkpoint that the page shows first."""
    return pipeline("visual-grounding", model=str(SPACE / "checkpoints" / "with_amc"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """The scene as a visitor's own photo, wider than high."""
    path = tmp_path_factory.mktemp("photos") / "own.png"
    Image.open(SCENE).resize((210, 140)).save(path)
    return path


@pytest.fixture(scope="module")
def example(browser, url) -> Iterator[Visitor]:
    """A page with the example, for tests that leave its photo and phrases as they are."""
    with visits(browser, url, app.EXAMPLES[0]["lines"]) as visit:
        visitor = visit()
        visitor.open(**EXAMPLE)
        yield visitor


@pytest.fixture(scope="module")
def own_photo(browser, url, photo) -> Iterator[Visitor]:
    """A page with a photo that was uploaded, likewise."""
    with visits(browser, url, app.EXAMPLES[0]["lines"]) as visit:
        visitor = visit()
        visitor.open(**EXAMPLE)
        visitor.upload(photo, PHRASES)
        expect(visitor.button("Own photo: no link")).to_be_disabled()
        yield visitor


def true_boxes() -> list[list[int]]:
    """What the phrases mean."""
    scene = draw_scene(ScenesConfig(), "test", 1)
    np.testing.assert_array_equal(scene.image, np.asarray(Image.open(SCENE).convert("RGB")))
    targets = dict(scene.phrases)
    return [scene.objects[targets[phrase]].box for phrase in PHRASES]


def array(npy: bytes) -> np.ndarray:
    return np.load(io.BytesIO(npy), allow_pickle=False)


def close(array: np.ndarray, expected: np.ndarray) -> None:
    assert array.dtype == np.float32 and array.shape == expected.shape
    np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5 * expected.max())


# The main job ---------------------------------------------------------------------------------------------------------


def test_upload_two_phrases_and_see_where_they_are(visit, ground):
    visitor = visit()
    visitor.open()
    visitor.upload(SCENE, PHRASES)
    visitor.expect_phrases(PHRASES)
    scores = [answer["score"] for answer in ground(Image.open(SCENE), PHRASES)]
    expect(visitor.find(".phrases .score")).to_have_text([f"{100 * score:.0f}%" for score in scores])
    visitor.set(".swipe input", 100)
    visitor.set("input[name=threshold]", 0)
    for number, (x1, y1, x2, y2) in enumerate(true_boxes()):
        visitor.find(".phrases label").nth(number).click()
        visitor.set("input[name=opacity]", 0)
        without = visitor.pixels()
        visitor.set("input[name=opacity]", 1)
        light = np.abs(visitor.pixels() - without).sum(2)
        height, width = light.shape
        assert light.max() > 100
        y, x = np.unravel_index(light.argmax(), light.shape)
        assert x1 <= x * 128 / width < x2 and y1 <= y * 128 / height < y2


def test_sliders_answer_at_once_and_without_the_server(example):
    visitor = example
    with visitor.no_request():
        for slider in "opacity", "threshold":
            seen = [visitor.pixels()]
            for value in 0.2, 0.9:
                visitor.set(f"input[name={slider}]", value)
                expect(visitor.find(f"label:has([name={slider}]) output")).to_have_text(f"{100 * value:.0f}%")
                seen.append(visitor.pixels())
            assert not (seen[0] == seen[1]).all() and not (seen[1] == seen[2]).all()


def test_words_have_maps_and_weigh_as_much_as_they_have_pieces(example, ground):
    visitor = example
    visitor.find(".phrases label").first.click()
    whole = visitor.pixels()
    with visitor.no_request():
        visitor.button("red").click()
        expect(visitor.button("red")).to_have_attribute("aria-pressed", "true")
        expect(visitor.button("whole phrase")).to_have_attribute("aria-pressed", "false")
        assert not (visitor.pixels() == whole).all()
        of_red = array(visitor.download("NPY"))
        visitor.button("triangle").click()
        of_both = array(visitor.download("NPY"))
        visitor.button("whole phrase").click()
        assert (visitor.pixels() == whole).all()
    spans = [{"caption": PHRASES[0], "caption_span": (word, word + 1)} for word in (4, 1)]
    red, triangle = (answer["heatmap"] for answer in ground(Image.open(SCENE), spans))
    close(of_red, red)
    # Each is one word piece.
    close(of_both, (red + triangle) / 2)
    phrase = "red zebra & star"  # there are no zebras in scenes: it is spelt
    visitor.ask([phrase])
    visitor.expect_phrases([phrase])
    visitor.button("red").click()
    visitor.button("zebra").click()
    (both,) = ground(Image.open(SCENE), [{"caption": phrase, "caption_span": (0, 2)}])
    close(array(visitor.download("NPY")), both["heatmap"])
    visitor.ask(PHRASES)
    visitor.expect_phrases(PHRASES)


def test_two_models_left_and_right_of_a_divider(visit):
    visitor = visit()
    visitor.open(**EXAMPLE, compare="checkpoints/base")
    expect(visitor.find(".models p")).to_contain_text(["Scenes, with AMC", "Scenes, base"])
    with visitor.no_request():
        shown = {}
        for split in 0, 50, 100:
            visitor.set(".swipe input", split)
            shown[split] = visitor.pixels()
        # Away from the names, and from the points of the other model that are marked on either side.
        height, middle = shown[50].shape[0] * 9 // 10, shown[50].shape[1] // 2
        left, right = np.s_[:height, : middle - 4], np.s_[:height, middle + 4 :]
        for split, side in (100, left), (0, right):
            assert (shown[50][side] == shown[split][side]).all(-1).mean() > 0.98
        assert (shown[0][left] == shown[100][left]).all(-1).mean() < 0.9
        # Dragging the divider in the photo does the same as the slider.
        box = visitor.box(visitor.find("canvas"))
        visitor.set(".swipe input", 50)
        visitor.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        visitor.page.mouse.down()
        visitor.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
        visitor.page.mouse.up()
        assert 23 <= int(visitor.find(".swipe input").input_value()) <= 27


def test_a_click_on_the_photo_says_what_lights_up_there(own_photo, ground, photo):
    visitor = own_photo
    heatmaps = [answer["heatmap"] for answer in ground(Image.open(photo), PHRASES)]
    for x, y in [(104 * 210 // 128, 56 * 140 // 128), (160, 30), (0, 139)]:
        with visitor.no_request():
            box = visitor.box(visitor.find("canvas"))
            place = {"x": (x + 0.5) / 210 * box["width"], "y": (y + 0.5) / 140 * box["height"]}
            visitor.find("canvas").click(position=place)
            expect(visitor.find(".here .place")).to_have_text(f"At {x}, {y}")
        expected = [max(heatmap[y, x] / heatmap.max(), 0) for heatmap in heatmaps]
        told = [int(text.rstrip("%")) for text in visitor.find(".here .number").all_inner_texts()]
        np.testing.assert_allclose(told, 100 * np.array(expected), atol=0.51)


def test_model_layer_and_comparison_can_be_chosen(visit):
    visitor = visit()
    visitor.open()
    visitor.page.get_by_role("button", name="Advanced").click()
    expect(visitor.page.get_by_label("Layer")).to_have_value("the model's own")

    def choose(label: str, choice: str) -> None:
        visitor.page.get_by_label(label, exact=True).click()
        visitor.page.get_by_role("option", name=choice, exact=True).click()

    def point_and_expect(**request: str | int | None) -> None:
        lines = "\n".join(PHRASES[: 1 + len(seen) % 2])  # others each time: they tell when the answer has come
        visitor.ask(lines.split("\n"))
        visitor.expect_phrases(lines.split("\n"))
        answer = json.loads(visitor.download("JSON"))
        assert answer["request"] == {"lines": lines, "model": "checkpoints/with_amc"} | request
        seen.append(array(visitor.download("NPY")))

    seen = []
    point_and_expect(compare="checkpoints/base", layer=None)
    choose("Layer", "2")
    choose("Compare with", "none")
    point_and_expect(compare=None, layer=2)
    expect(visitor.find(".swipe")).to_be_hidden()
    choose("Layer", "the model's own")
    choose("Model", "Scenes, base")
    point_and_expect(model="checkpoints/base", compare=None, layer=None)
    assert len({values.tobytes() for values in seen}) == 3
    expect(visitor.find(".models p")).to_have_text([re.compile("Scenes, base · trained on .* captions only")])
    visitor.page.get_by_label("Model", exact=True).fill("nobody/nothing")
    visitor.page.keyboard.press("Enter")
    visitor.button("Point").click()
    expect(visitor.find("p.error")).to_contain_text("nobody/nothing")


# To take away ---------------------------------------------------------------------------------------------------------


def test_downloads_are_what_the_python_api_says(own_photo, ground, photo):
    visitor = own_photo
    visitor.find(".phrases label").first.click()
    answers = ground(Image.open(photo), PHRASES)
    with visitor.no_request():
        picture = Image.open(io.BytesIO(visitor.download("PNG")))
        assert picture.format == "PNG" and picture.size == (630, 420)
        plain = np.asarray(Image.open(photo).convert("RGB").resize(picture.size)).astype(int)
        assert np.abs(np.asarray(picture.convert("RGB")) - plain).max() > 100
        found = json.loads(visitor.download("JSON"))
        for number, answer in enumerate(answers):
            visitor.find(".phrases label").nth(number).click()
            close(array(visitor.download("NPY")), answer["heatmap"])
    assert found["photo"] == {"width": 210, "height": 140, "link": None}
    for phrase, answer in zip(found["phrases"], answers, strict=True):
        (told,) = phrase["answers"]
        assert phrase["text"] == answer["phrase"] and told["score"] == pytest.approx(answer["score"], abs=1e-6)
        assert (tuple(told["point"]), tuple(told["box"])) == (answer["point"], answer["box"])
    shown = found["shown"]
    assert (shown["phrase"], shown["words"], shown["threshold"]) == (PHRASES[0], [], 0.5)
    assert shown["answers"] == [{key: found["phrases"][0]["answers"][0][key] for key in ("model", "point", "box")}]


def test_the_box_follows_the_threshold(example, ground):
    visitor = example
    for threshold in 0.25, 0.8:
        visitor.set("input[name=threshold]", threshold)
        for number, answer in enumerate(ground(Image.open(SCENE), PHRASES, threshold=threshold)):
            visitor.find(".phrases label").nth(number).click()
            (shown,) = json.loads(visitor.download("JSON"))["shown"]["answers"]
            assert shown["box"] == list(answer["box"])


def test_a_link_brings_the_view_back(visit):
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    visitor.open(**EXAMPLE, compare="checkpoints/base", layer="2")
    visitor.find(".phrases label").nth(1).click()
    visitor.button("star").click()
    visitor.set("input[name=opacity]", 0.85)
    visitor.set("input[name=threshold]", 0.3)
    with visitor.no_request():
        visitor.button("Copy link").click()
        expect(visitor.find(".status")).to_have_text("The link is copied.")
    link = visitor.page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(visitor.url) and "lines=the+triangle+that+is+red%0Asmall+star" in link
    other = visit()
    other.go_to(link)
    other.expect_phrases(PHRASES)
    assert other.find(".phrases input").nth(1).is_checked()
    expect(other.button("star")).to_have_attribute("aria-pressed", "true")
    assert (other.pixels() == visitor.pixels()).all()
    other.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    other.button("Copy link").click()
    expect(other.find(".status a")).to_have_attribute("href", re.compile(r"photo=example%3Ascene_1\.png"))


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_bad_input_gives_a_sentence_and_the_page_goes_on(visit, tmp_path):
    visitor = visit()
    visitor.open()
    lines, address = (visitor.page.get_by_label(label) for label in ("What to look for", "Address"))
    said = visitor.find("p.error")
    for field, wrong, sentence in [
        (lines, "  \n ", "Write at least one phrase"),
        (lines, "cup " * 10000, "shorten it"),
        (lines, "!!!", "no word"),
        (address, "http://localhost/x.png", "private network"),
    ]:
        lines.fill(LINES)
        field.fill(wrong)
        visitor.button("Point").click()
        expect(said).to_contain_text(sentence)
        expect(visitor.find(".panel")).to_be_hidden()
    visitor.shoot("error")
    # A new photo takes the place of the address.
    text = tmp_path / "text.jpg"
    text.write_text("not a photo")
    visitor.upload(text, PHRASES)
    expect(said).to_contain_text("not a photo that can be read")
    expect(address).to_have_value("")
    for query, sentence in ({"model": "nobody/nothing"}, "nobody/nothing"), ({"photo": "example:x"}, "Choose a photo"):
        visitor.go_to(f"{visitor.url}?{urlencode(EXAMPLE | query)}")
        expect(said).to_contain_text(sentence)
    visitor.upload(SCENE, PHRASES)
    visitor.expect_phrases(PHRASES)
    expect(said).to_have_text("")


# Everybody ------------------------------------------------------------------------------------------------------------


def test_the_keyboard_alone_does_the_job(visit):
    visitor = visit()
    visitor.open()
    keyboard = visitor.page.keyboard

    def tab_to(target: Locator) -> None:
        for _ in range(40):
            keyboard.press("Tab")
            if target.evaluate("(element) => element === document.activeElement"):
                return
        raise AssertionError(f"{target} is not reached by the Tab key")

    tab_to(visitor.page.get_by_label("What to look for"))
    keyboard.press("Control+A")
    keyboard.type("the large star\nthe red star")
    tab_to(visitor.button("Point"))
    keyboard.press("Enter")
    visitor.expect_phrases(["the large star", "the red star"])
    with visitor.no_request():
        tab_to(visitor.find(".stage"))
        place = visitor.find(".here .place")
        x, y = map(int, re.findall(r"\d+", place.inner_text()))
        keyboard.press("ArrowLeft")
        keyboard.press("Shift+ArrowUp")
        expect(place).to_have_text(f"At {x - 2}, {y - 1}")  # 128 pixels, in 64 steps
        keyboard.press("Escape")
        expect(place).to_have_text(f"Highest point: {x}, {y}")
        tab_to(visitor.find(".swipe input"))
        keyboard.press("End")
        tab_to(visitor.find(".phrases input").first)
        before = visitor.pixels()
        keyboard.press("ArrowDown")
        assert visitor.find(".phrases input").nth(1).is_checked()
        assert not (visitor.pixels() == before).all()
        tab_to(visitor.button("star"))
        keyboard.press("Space")
        expect(visitor.button("star")).to_have_attribute("aria-pressed", "true")
        assert visitor.button("star").evaluate("(button) => button === document.activeElement")
        tab_to(visitor.find("input[name=opacity]"))
        keyboard.press("ArrowRight")
        expect(visitor.find("label:has([name=opacity]) output")).to_have_text("61%")
    example = app.EXAMPLES[1]
    tab_to(visitor.page.get_by_role("button", name=f"Example: {example['title']}"))
    keyboard.press("Enter")
    visitor.expect_phrases(example["lines"].split("\n"))


@needs("gradio>=6.28", "the look of the page")
@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESKTOP), ("dark", PHONE)], ids=["light", "dark"])
def test_it_looks_right_and_is_accessible(visit, viewport, scheme):
    visitor = visit(viewport, scheme, has_touch=viewport is PHONE)
    visitor.open()
    page, frame = visitor.page, visitor.find(".frame")
    visitor.still()
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    if viewport is DESKTOP:
        assert page.evaluate("document.documentElement.scrollHeight") <= viewport["height"]
    visitor.shoot(f"{'phone' if viewport is PHONE else 'desktop'}-{scheme}")
    place = visitor.box(frame)
    page.get_by_role("button", name=f"Example: {app.EXAMPLES[2]['title']}").click()
    visitor.expect_phrases(app.EXAMPLES[2]["lines"].split("\n"))
    if viewport is DESKTOP:
        assert visitor.box(frame) == place, "the photo jumped when the answer came"
    else:
        expect(frame).to_be_in_viewport(ratio=0.9)
        visitor.find("canvas").tap(position={"x": 30, "y": 40})
        expect(visitor.find(".here .place")).to_contain_text("At ")
    page.get_by_role("button", name="Advanced").click()
    page.get_by_role("button", name="Use it from Python").click()
    expect(page.get_by_label("Layer")).to_be_visible()
    visitor.shoot(f"{'phone' if viewport is PHONE else 'desktop'}-{scheme}-open")
    visitor.assert_accessible()
    page.get_by_label("What to look for").fill("")
    visitor.button("Point").click()
    expect(visitor.find("p.error")).to_contain_text("Write at least one phrase")
    visitor.assert_accessible()
