"""A browser for tests of pages: Debian's chromium, driven by playwright.

Tests that import this are skipped where there is no chromium, unless REQUIRE_BROWSER=1. SPACE_SCREENSHOTS names a
folder for screenshots.
"""

import base64
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
from packaging.version import Version
from PIL import Image

CHROMIUM = shutil.which("chromium")
if os.environ.get("REQUIRE_BROWSER") != "1":
    for package in "gradio", "playwright", "axe_playwright_python":
        pytest.importorskip(package)
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium", allow_module_level=True)
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright  # noqa: E402

ASKS_OTHERS = Version(metadata.version("gradio")) < Version("6.28")  # a content network, for a script of its own
OF_GRADIO = ["ERR_NAME_NOT_RESOLVED"] if ASKS_OTHERS else []
if metadata.version("gradio").startswith("5."):  # its progress of an upload without a number, its stream as one leaves
    OF_GRADIO += ["404 (Not Found)", "Response", "AbortError"]
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TIMEOUT = 120_000  # milliseconds that anything may take, since other things run on this machine
expect.set_options(timeout=TIMEOUT)
# Whether nothing fades, moves, loads or changes its place in a few frames. An animation that begins while the style is
# worked out is seen, since getAnimations() has it worked out first.
IS_STILL = """async () => {
  const look = () => JSON.stringify([...document.querySelectorAll("body *")].map((element) => {
    const { x, y, width, height } = element.getBoundingClientRect();
    return [x, y, width, height];
  }));
  const isBusy = () => document.readyState !== "complete" || document.fonts.status !== "loaded"
    || document.getAnimations().some(({ playState, pending }) => playState === "running" || pending)
    || [...document.images].some((image) => !image.complete && image.loading !== "lazy");
  const before = look();
  for (let frame = 0; frame < 3; frame++) {
    if (isBusy()) return false;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  }
  return !isBusy() && look() === before;
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM, "REQUIRE_BROWSER=1, and there is no chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield started
        started.close()


class Visitor:
    """A page of the Space and what happened on it: requests, and lines of the console that should not be there.

    Args:
        first_lines: what the page answers as it opens.
    """

    def __init__(self, page: Page, url: str, first_lines: str):
        self.page, self.url, self.first_lines, self.requests, self.complaints = page, url, first_lines, [], []
        self.in_flight: set[Request] = set()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("request", lambda request: self.in_flight.add(request))
        for end in "requestfinished", "requestfailed":
            page.on(end, lambda request: self.in_flight.discard(request))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)

    def open(self, **query: str) -> None:
        """The page, or what a link shows, with an answer on it. Nothing has to be waited for when it returns."""
        self.go_to(f"{self.url}?{urlencode(query)}" if query else self.url)
        self.expect_phrases(query.get("lines", self.first_lines).split("\n"))
        if query:
            expect(self.page.get_by_label("What to look for")).to_have_value(query["lines"])

    def go_to(self, url: str) -> None:
        """Another page, when this one waits for no answer: the page would complain of one that is cut off."""
        self.still()
        self.in_flight.clear()
        self.page.goto(url)

    def still(self) -> None:
        """Returns when nothing moves, fades or is on its way: before anything is measured or a picture is taken."""
        ends = time.monotonic() + TIMEOUT / 1000
        while self.on_the_way() or not self.page.evaluate(IS_STILL) or self.on_the_way():
            assert time.monotonic() < ends, f"the page is never still; on the way: {self.on_the_way()}"
            self.page.wait_for_timeout(50)  # in which events of the page arrive

    def on_the_way(self) -> list[str]:
        return [asked.url for asked in self.in_flight if "/heartbeat/" not in asked.url]  # those never end

    def box(self, place: Locator) -> dict[str, float]:
        self.still()
        return place.bounding_box()

    def find(self, selector: str) -> Locator:
        return self.page.locator(f"#viewer {selector}")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def expect_phrases(self, phrases: list[str]) -> None:
        expect(self.find(".phrases .text")).to_have_text(phrases)
        expect(self.find(".stage")).to_be_visible()

    def ask(self, phrases: list[str]) -> None:
        self.page.get_by_label("What to look for").fill("\n".join(phrases))
        self.button("Point").click()

    def upload(self, photo: Path, phrases: list[str]) -> None:
        with self.page.expect_response("**/upload?*"):
            self.page.set_input_files("input[type=file]", photo)
        self.ask(phrases)

    def set(self, slider: str, value: float) -> None:
        self.find(slider).fill(str(value))

    def pixels(self) -> np.ndarray:
        """What the canvas shows, (height, width, 3), after everything is drawn."""
        self.still()
        data = self.find("canvas").evaluate("(canvas) => canvas.toDataURL().split(',')[1]")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)

    def download(self, name: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.button(name).click()
        assert waiting.value.suggested_filename.endswith(f".{name.lower()}")
        return Path(waiting.value.path()).read_bytes()

    def shoot(self, name: str) -> None:
        if folder := os.environ.get("SPACE_SCREENSHOTS"):
            self.still()
            self.page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")

    def assert_accessible(self) -> None:
        self.still()
        violations = Axe().run(self.page).response["violations"]
        serious = [each for each in violations if each["impact"] in ("serious", "critical")]
        assert [(each["id"], [node["html"][:300] for node in each["nodes"]]) for each in serious] == []

    @contextmanager
    def no_request(self) -> Iterator[None]:
        before = len(self.requests)
        yield
        assert [asked for asked in self.requests[before:] if not asked.startswith(("data:", "blob:"))] == []


@contextmanager
def visits(browser: Browser, url: str, first_lines: str) -> Iterator[Callable[..., Visitor]]:
    """Opens pages in browser windows of their own. At the end, what no page may do is looked for."""
    visitors = []

    def new(viewport: dict = DESKTOP, scheme: str = "light", **options) -> Visitor:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, **options)
        context.set_default_timeout(TIMEOUT)
        visitors.append(Visitor(context.new_page(), url, first_lines))
        return visitors[-1]

    yield new
    for visitor in visitors:
        visitor.page.context.close()
        complaints = [line for line in visitor.complaints if not any(known in line for known in OF_GRADIO)]
        assert complaints == [], complaints
        hosts = {urlsplit(asked).hostname for asked in visitor.requests if not asked.startswith(("data:", "blob:"))}
        assert hosts == {"127.0.0.1"} or ASKS_OTHERS
