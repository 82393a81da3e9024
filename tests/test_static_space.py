"""space/static in a browser: the exported programs point there as the model does in Python."""

import base64
import io
import mimetypes
import re
import shutil
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import modeling_albef_amc  # noqa: F401  (registers the pipeline)
from modeling_albef_amc.tools.export_albef import export
from modeling_albef_amc.visualization import overlay
from tests.helpers.browser import DESKTOP, PHONE, Visitor, chromium, expect
from tests.helpers.space import SPACE
from tests.helpers.versions import needs

pytestmark = [pytest.mark.slow, needs("torch>=2.13", "export")]
for package in "onnxruntime", "onnxscript":
    pytest.importorskip(package)
# The packages of npm that the page takes from a content network, as `make test` lays them down.
PACKED = SPACE.parent / ".venv-web"
ADDRESS = re.compile(r"https://cdn\.jsdelivr\.net/npm/@?(?P<name>[\w/-]+)@(?P<version>[\d.]+)/(?P<file>.*)")
if not list(PACKED.glob("*.tgz")):
    pytest.skip("nothing of npm in .venv-web: `make test` fetches it, where there is npm", allow_module_level=True)

HOME = "http://localhost/"
CHECKPOINT, SCENE = SPACE / "checkpoints" / "with_amc", SPACE / "examples" / "scene_1.png"
PHRASES = ["the triangle that is red", "small star", "A <person>'s LARGE-star/Crêpe, 星!"]
ASK = """async ([url, phrase]) => {
  const { load, read, encode, ground, resized } = await import("./grounder.js");
  window.model ??= await load("/model/");
  const picture = await read(await (await fetch(url)).blob());
  const { heatmap, score } = await ground(model, await encode(model, picture), phrase);
  const { data } = resized(heatmap, picture.width, picture.height, -0.75, false);
  return { ids: model.tokenizer.encode(phrase).ids, score, width: picture.width, heatmap: [...data] };
}"""


@cache
def packed(name: str, version: str, file: str) -> bytes:
    with tarfile.open(PACKED / f"{name.replace('/', '-')}-{version}.tgz") as package:
        return package.extractfile(f"package/{file}").read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The page as its README puts it together, with photos to ask about."""
    folder = tmp_path_factory.mktemp("static") / "page"
    shutil.copytree(SPACE / "static", folder)
    shutil.copytree(SPACE / "examples", folder / "examples")
    export(str(CHECKPOINT), folder / "model", format="onnx")
    scene = Image.open(SCENE).convert("RGB")
    scene.resize((300, 170)).save(folder / "larger.png")
    transparent = scene.resize((90, 131))
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    transparent.save(folder / "transparent.png")
    (folder / "no.png").write_text("no photo")
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def visit(browser, folder) -> Iterator:
    visitors = []

    def answer(route) -> None:
        """With files of the page and of the packages; everything else fails."""
        url = route.request.url
        if found := ADDRESS.fullmatch(url):
            headers = {"Access-Control-Allow-Origin": "*", "Content-Type": mimetypes.guess_type(url)[0]}
            route.fulfill(body=packed(**found.groupdict()), headers=headers)
        elif url.startswith(HOME) and (path := folder / (url.removeprefix(HOME) or "index.html")).is_file():
            route.fulfill(path=path)
        else:
            route.fulfill(status=404)

    def new(viewport: dict = DESKTOP, scheme: str = "light", missing: str | None = None) -> Visitor:
        page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
        page.route("**/*", answer)
        if missing:
            page.route(f"**/{missing}", lambda route: route.fulfill(status=404))
        visitors.append(Visitor(page, HOME, ""))
        page.goto(HOME)
        expect(page.get_by_role("button", name="Point", exact=True)).to_be_enabled()
        return visitors[-1]

    yield new
    for visitor in visitors:
        visitor.page.context.close()
        assert visitor.complaints == []
        others = [url for url in visitor.requests if not url.startswith((HOME, "data:")) and not ADDRESS.fullmatch(url)]
        assert others == []


@pytest.fixture(scope="module")
def ground():
    return pipeline("visual-grounding", model=str(CHECKPOINT))


def says(visitor: Visitor, text: str | re.Pattern) -> None:
    expect(visitor.page.locator("output")).to_have_text(text)


def pixels(visitor: Visitor) -> np.ndarray:
    data = visitor.page.locator("canvas").evaluate("(canvas) => canvas.toDataURL().split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_the_page_points_as_python_does(visit, ground, folder):
    page = visit().page
    for photo in "examples/scene_1.png", "larger.png", "transparent.png":
        image = Image.open(folder / photo)
        for phrase, expected in zip(PHRASES, ground(image, PHRASES), strict=True):
            found = page.evaluate(ASK, [f"/{photo}", phrase])
            assert found["ids"] == ground.processor(text=phrase)["input_ids"][0], phrase
            heatmap = np.reshape(found["heatmap"], (-1, found["width"]))
            assert heatmap.shape == expected["heatmap"].shape == image.size[::-1]
            assert np.abs(heatmap - expected["heatmap"]).max() < 1e-3 * expected["heatmap"].max()
            assert tuple(np.unravel_index(heatmap.argmax(), heatmap.shape)[::-1]) == expected["point"]
            assert found["score"] == pytest.approx(expected["score"], abs=1e-3)


def test_a_photo_and_a_phrase_by_keyboard(visit, ground, folder):
    visitor = visit()
    page, image = visitor.page, Image.open(folder / "larger.png")
    page.set_input_files("input[type=file]", folder / "larger.png")
    page.get_by_label("What to look for").fill(PHRASES[0])
    page.keyboard.press("Enter")
    (expected,) = ground(image, PHRASES[:1])
    x, y = expected["point"]
    fits = f"fits the photo by {100 * expected['score']:.0f} %"
    says(visitor, re.compile(f"^“{PHRASES[0]}” is looked for at {x}, {y}, and {fits}"))
    drawn, by_python = pixels(visitor), np.asarray(overlay(image, expected["heatmap"])).astype(int)
    away = np.hypot(*(np.indices(drawn.shape[:2]) - np.array([y, x])[:, None, None])) > 8  # from the mark
    assert np.abs(drawn - by_python)[away].max() <= 6 and drawn[y, x].tolist() == [0, 255, 255]
    visitor.shoot("static_own_photo")


def test_what_goes_wrong_is_said(visit, folder):
    visitor = visit()
    page = visitor.page
    page.get_by_label("What to look for").fill("?!")
    page.keyboard.press("Enter")
    says(visitor, "That did not work: There is no word to look for.")
    page.get_by_label("What to look for").fill("star")
    page.set_input_files("input[type=file]", folder / "no.png")
    says(visitor, re.compile("^That did not work: The source image could not be decoded"))
    page.set_input_files("input[type=file]", SCENE)
    says(visitor, re.compile("^“star” is looked for at "))  # and it goes on
    broken = visit(missing="image_encoder.onnx")
    says(broken, re.compile(r"^That did not work: http://localhost/model/image_encoder\.onnx: 404"))
    broken.complaints.clear()  # the browser tells of the file as well


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_everybody_can_use_it(visit, viewport, scheme):
    visitor = visit(viewport, scheme)
    says(visitor, re.compile("^“the red triangle” is looked for at "))
    visitor.assert_accessible()
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    visitor.shoot(f"static_{scheme}")
