"""The Space: its view against the Python API, its caches, what visitors may send, and the folder alone as a server.

The page itself is driven in test_space_browser.py.
"""

import base64
import importlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_albef_amc import VisualGroundingPipeline, upsample_heatmaps
from tests.conftest import tiny_blip
from tests.test_pipeline import EXIF_ORIENTATION, blip_processor
from tests.tiny_data import picture, tiny_albef, tiny_processor

gr = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402  (comes with gradio)
from gradio_client.exceptions import AppError  # noqa: E402

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "space"
# As when `python space/app.py` runs: its modules lie beside each other.
sys.path.append(str(SPACE))
app, grounding, models, photos = map(importlib.import_module, ("app", "grounding", "models", "photos"))

PHRASES = ["the red square on the left", "very small blue square"]
LINES = "\n".join(PHRASES)
FAMILIES = {
    "albef": lambda: (tiny_albef().albef, tiny_processor()),
    "blip": lambda: (tiny_blip(), blip_processor()),
}


def saved(folder: Path, family: str) -> models.Entry:
    model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return models.Entry(str(folder), f"Tiny {family}", "nothing")


@pytest.fixture(scope="module")
def entries(tmp_path_factory) -> dict[str, models.Entry]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    return {name: saved(folder / name, family) for name, family in [("a", "albef"), ("b", "albef"), ("c", "blip")]}


@pytest.fixture
def grounder(entries):
    return grounding.Grounder(list(entries.values()))


def unpacked(heatmap: dict) -> torch.Tensor:
    values = np.frombuffer(base64.b64decode(heatmap["values"]), "<f4").reshape(heatmap["rows"], heatmap["columns"])
    return torch.from_numpy(values.copy())


# The view -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "c"])
def test_the_view_says_what_the_python_api_says(grounder, entries, name):
    photo, entry = picture(50, 36), entries[name]
    view = grounder.ground(photo, f"  {PHRASES[0]} \n\n{PHRASES[1].replace(' ', '  ')}", entry.id)
    loaded = grounder.load(entry.id)
    ground = VisualGroundingPipeline(loaded.model, loaded.processor)
    assert [phrase["text"] for phrase in view["phrases"]] == PHRASES
    assert (view["photo"]["width"], view["photo"]["height"]) == photo.size
    for phrase, expected in zip(view["phrases"], ground(photo, PHRASES), strict=True):
        (answer,) = phrase["answers"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-6)
        assert answer["present"] == (answer["score"] >= 0.5)
        assert (tuple(answer["point"]), tuple(answer["box"])) == (expected["point"], expected["box"])
        upsampled = upsample_heatmaps(unpacked(answer["map"])[None], (36, 50))[0].numpy()
        np.testing.assert_allclose(upsampled, expected["heatmap"], rtol=1e-4, atol=1e-9)
        assert phrase["words"] == phrase["text"].split(" ")
        spans = [{"caption": phrase["text"], "caption_span": (n, n + 1)} for n in range(len(phrase["words"]))]
        for word, of_word in zip(answer["words"], ground(photo, spans), strict=True):
            upsampled = upsample_heatmaps(unpacked(word["map"])[None], (36, 50))[0].numpy()
            np.testing.assert_allclose(upsampled, of_word["heatmap"], rtol=1e-4, atol=1e-9)


def test_a_word_of_several_pieces_and_one_that_cleaning_removes(grounder, entries):
    view = grounder.ground(picture(), "red zebra &!? left-right !!", entries["a"].id)
    (phrase,) = view["phrases"]
    tokens = [word["tokens"] for word in phrase["answers"][0]["words"]]
    assert phrase["words"] == ["red", "zebra", "&!?", "left-right", "!!"]
    # "zebra" is not in the vocabulary: five letters; "&" is kept by the cleaning and unknown.
    assert tokens == [1, 5, 1, 2, 0]
    assert [word["map"] is None for word in phrase["answers"][0]["words"]] == [False] * 4 + [True]


def test_two_models_side_by_side(grounder, entries):
    both = grounder.ground(picture(), LINES, entries["a"].id, entries["c"].id)
    assert [model["title"] for model in both["models"]] == ["Tiny albef", "Tiny blip"]
    assert both["request"]["compare"] == entries["c"].id
    for number, name in enumerate("ac"):
        alone = grounder.ground(picture(), LINES, entries[name].id)
        assert [p["answers"][number] for p in both["phrases"]] == [p["answers"][0] for p in alone["phrases"]]
    with_itself = grounder.ground(picture(), LINES, entries["a"].id, entries["a"].id)
    assert len(with_itself["models"]) == 1 and with_itself["request"]["compare"] is None


def test_another_layer(grounder, entries):
    default, third, fourth = (grounder.ground(picture(), LINES, entries["a"].id, None, k) for k in (None, 3, 4))
    assert default["phrases"] == third["phrases"]  # tiny_config explains layer 3
    assert third["phrases"][0]["answers"][0]["map"] != fourth["phrases"][0]["answers"][0]["map"]
    for name, layer in [("a", 0), ("a", 99), ("a", -1), ("c", 99)]:
        with pytest.raises(grounding.LinesError, match="choose one of"):
            grounder.ground(picture(), LINES, entries[name].id, None, layer)


def test_absent_is_said_by_the_probability_of_the_catalogue(entries):
    for bound, present in [(0.0, True), (1.0, False)]:
        entry = models.Entry(entries["a"].id, "Tiny", "nothing", absent_below=bound)
        answers = grounding.Grounder([entry]).ground(picture(), LINES)["phrases"]
        assert [phrase["answers"][0]["present"] for phrase in answers] == [present] * 2


def test_large_photos_are_shown_smaller_and_answered_in_their_own_pixels(grounder):
    view = grounder.ground(picture(2000, 500).resize((2000, 500)), PHRASES[0])
    with Image.open(
        io.BytesIO(base64.b64decode(view["photo"]["src"].removeprefix("data:image/jpeg;base64,")))
    ) as shown:
        assert shown.size == (1280, 320)
    x1, y1, x2, y2 = view["phrases"][0]["answers"][0]["box"]
    assert 0 <= x1 < x2 <= 2000 and 0 <= y1 < y2 <= 500


# What is kept ---------------------------------------------------------------------------------------------------------


def test_a_photo_is_encoded_once(grounder, entries):
    for name in "ac":
        encoder, seen = grounder.load(entries[name].id).model.vision_model.encoder, []
        encoder.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(1))
        first = grounder.ground(picture(), PHRASES[0], entries[name].id)
        grounder.ground(picture(), LINES, entries[name].id)
        again = grounder.ground(picture(), PHRASES[0], entries[name].id)
        assert len(seen) == 1 and again == first
        grounder.ground(picture(41), PHRASES[0], entries[name].id)
        assert len(seen) == 2


def test_what_is_kept_is_bounded(entries):
    small = grounding.Grounder(list(entries.values()), max_models=2, max_encodings=3)
    for width in range(40, 46):
        for entry in entries.values():
            small.ground(picture(width), PHRASES[0], entry.id)
    assert len(small.models.values) == 2 and len(small.encodings.values) == 3


def test_recent_forgets_what_was_not_asked_for_the_longest():
    recent = grounding.Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)


def test_many_at_once_get_what_each_asked_for(grounder, entries):
    asked = [(picture(40 + n % 3), PHRASES[n % 2], entries["ac"[n % 2]].id) for n in range(12)]
    alone = [grounding.Grounder(list(entries.values())).ground(*each) for each in asked[:6]]
    with ThreadPoolExecutor(6) as pool:
        views = list(pool.map(lambda each: grounder.ground(*each), asked))
    for number, view in enumerate(views):
        found, expected = (v["phrases"][0]["answers"][0] for v in (view, alone[number % 6]))
        assert (found["point"], found["box"]) == (expected["point"], expected["box"])


# Lines and photos that cannot be answered -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "at least one phrase"),
        (" \n\t\n", "at least one phrase"),
        ("the red square\n?!", "no word that can be looked for"),
        ("square " * 10_000, "letters; at most"),
        ("square " * 60, "words; the model reads 50"),
        ("square " * 30, "word pieces; the model reads 20"),
        ("square\n" * 17, "at most 16"),
    ],
)
def test_lines_that_cannot_be_answered(grounder, lines, sentence):
    with pytest.raises(grounding.LinesError, match=sentence):
        grounder.ground(picture(), lines)
    assert grounder.ground(picture(), PHRASES[0])["phrases"]


def encoded(photo: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def test_photos_that_cannot_be_taken():
    sixteen = encoded(picture(), "JPEG")
    bad = {
        "not a photo": b"just text",
        "megapixels": encoded(Image.new("L", (8000, 5000)), "PNG"),
        "far too many megapixels": encoded(Image.new("1", (20000, 20000)), "PNG"),
        "1 × 1 pixels": encoded(Image.new("RGB", (1, 1))),
        "damaged": sixteen[: len(sixteen) // 2],
        "MB; at most": b"\0" * (photos.MAX_BYTES + 1),
        r"choose a JPEG": encoded(picture(), "EPS"),
    }
    for sentence, file in bad.items():
        with pytest.raises(photos.PhotoError, match=sentence):
            photos.read_photo(file)


def test_unusual_photos_are_taken(tmp_path):
    rgb, exif = picture(40, 36), Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # shown after a quarter turn
    animation = [Image.new("RGB", (40, 36), colour) for colour in ("red", "blue")]
    transparent = rgb.convert("RGBA")
    transparent.putalpha(0)
    taken = {
        name: photos.read_photo(file)
        for name, file in {
            "turned": encoded(rgb, "JPEG", exif=exif),
            "animation": encoded(animation[0], "GIF", save_all=True, append_images=animation[1:]),
            "transparent": encoded(transparent),
            "16 bit": encoded(Image.fromarray(np.full((36, 40), 32768, np.uint16))),
            "cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        }.items()
    }
    assert {photo.mode for photo in taken.values()} == {"RGB"}
    assert {name: photo.size for name, photo in taken.items()} == dict.fromkeys(taken, (40, 36)) | {"turned": (36, 40)}
    middle = {name: np.asarray(photo).mean(axis=(0, 1)).round().tolist() for name, photo in taken.items()}
    assert middle["transparent"] == [255, 255, 255] and middle["animation"] == pytest.approx([254, 0, 0], abs=2)
    assert middle["16 bit"] == pytest.approx([128] * 3, abs=1)
    (tmp_path / "photo.png").write_bytes(encoded(rgb))
    assert photos.read_photo(tmp_path / "photo.png").tobytes() == rgb.tobytes()


# Photos from addresses ------------------------------------------------------------------------------------------------


class Web(BaseHTTPRequestHandler):
    """What the servers of these tests answer, whatever they are called."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["Host"], self.path))
        status, headers, body = self.server.pages[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for part in [body] if status != 299 else []:
            self.wfile.write(part)


@pytest.fixture
def web(monkeypatch):
    """A web of names → addresses, all of which lead to one server on this machine. Returns: the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.asked, server.reached, connect = [], [], socket.create_connection
    server.names = {"photos.example": ["8.8.8.8"], "inside.example": ["10.0.0.5"], "both.example": ["8.8.8.8", "::1"]}
    server.pages = {"/photo.png": (200, {}, encoded(picture()))}
    numeric = socket.getaddrinfo

    def look_up(host, port, *args, **options):
        if re.fullmatch(r"[\d.]+|.*:.*", host):
            return numeric(host, port, *args, **options)
        if host not in server.names:
            raise socket.gaierror("no such name")
        return [(None, None, None, "", (address, port)) for address in server.names[host]]

    def reach(address, timeout):
        server.reached.append(address)
        return connect(server.server_address, timeout)

    monkeypatch.setattr(photos.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(photos.socket, "create_connection", reach)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_photo_from_an_address(web):
    web.pages |= {
        "/a": (302, {"Location": "/b"}, b""),
        "/b": (301, {"Location": "http://photos.example/photo.png"}, b""),
    }
    for address in ("http://photos.example/photo.png", " http://photos.example/a?x=ü y"):
        assert photos.read_photo(photos.fetch(address)).tobytes() == picture().tobytes()
    assert web.asked[0] == ("photos.example", "/photo.png")
    assert set(web.reached) == {("8.8.8.8", 80)}  # the address that was checked, not the name again


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/x.jpg",
        "http://[::1]/x.jpg",
        "http://[::ffff:10.0.0.1]/x.jpg",
        "http://[2002:7f00:1::]/x.jpg",
        "http://[64:ff9b::7f00:1]/x.jpg",
        "http://169.254.169.254/latest/meta-data",
        "http://192.168.1.1/x.jpg",
        "http://100.64.0.1/x.jpg",
        "http://0.0.0.0/x.jpg",
        "http://2130706433/x.jpg",
        "http://inside.example/x.jpg",
        "http://both.example/x.jpg",
        "https://inside.example/x.jpg",
    ],
)
def test_private_addresses_are_refused(web, address):
    web.names["2130706433"] = ["127.0.0.1"]
    with pytest.raises(photos.PhotoError, match="private network"):
        photos.fetch(address)
    assert web.reached == []


def test_a_redirection_to_a_private_address_is_refused(web):
    for place in ("http://127.0.0.1/secret", "http://inside.example/secret", "//inside.example/secret"):
        web.pages["/away"] = (302, {"Location": place}, b"")
        with pytest.raises(photos.PhotoError, match="private network"):
            photos.fetch("http://photos.example/away")
    assert {path for _, path in web.asked} == {"/away"}


def test_a_name_that_turns_private_after_it_was_looked_up(web):
    """The second look-up never happens: the connection goes to the address that was found public."""
    found, web.names = web.names, {}
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])
    web.names = type("Turning", (dict,), {"__contains__": lambda *_: True, "__getitem__": lambda *_: next(answers)})()
    photos.fetch("http://photos.example/photo.png")
    assert web.reached == [("8.8.8.8", 80)] and found


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("photo.jpg", "not a photo's address"),
        ("file:///etc/passwd", "not a photo's address"),
        ("ftp://photos.example/x", "not a photo's address"),
        ("http://", "not a photo's address"),
        ("http://[::1/x", "not an address"),
        ("http://photos.example:99999/x", "not an address"),
        ("http://photos.example:8080/x", "with a port"),
        ("http://me@photos.example/x", "with a port or a user"),
        ("http://" + "a" * 70 + ".example/x", "not an address"),
        ("http://nowhere.example/x", "no host nowhere.example"),
        ("http://photos.example/gone", "answered 404"),
        ("http://photos.example/round", "leads on more than"),
        ("http://photos.example/huge", "more than 20 MB"),
        ("https://photos.example/photo.png", "cannot be reached"),  # the server speaks no TLS
    ],
)
def test_addresses_that_cannot_be_fetched(web, address, sentence):
    web.pages |= {"/gone": (404, {}, b""), "/round": (302, {"Location": "/round"}, b"")}
    web.pages["/huge"] = (200, {}, b"\0" * (photos.MAX_BYTES + 1))
    with pytest.raises(photos.PhotoError, match=sentence):
        photos.fetch(address)


def test_a_server_that_never_ends_is_left(web, monkeypatch):
    monkeypatch.setattr(photos, "SECONDS", 0.3)
    web.pages["/slow"] = (299, {"Content-Length": "5"}, b"")  # says five bytes and sends none
    web.pages["/drip"] = (200, {"Content-Length": "500"}, b"some")
    start = time.monotonic()
    for path in ("/slow", "/drip"):
        with pytest.raises(photos.PhotoError):
            photos.read_photo(photos.fetch(f"http://photos.example{path}"))
    assert time.monotonic() - start < 5


# Models ---------------------------------------------------------------------------------------------------------------


def test_models_that_are_not_there(grounder, entries):
    for name in ("../../etc", str(SPACE), "a b/c", "checkpoints", "org/model/more", "http://x/y"):
        with pytest.raises(models.ModelError, match="no model's name"):
            grounder.ground(picture(), LINES, name)
    with pytest.raises(models.ModelError, match="does not hand out org/model now"):  # offline here
        grounder.ground(picture(), LINES, "org/model")
    assert grounder.ground(picture(), LINES)["models"][0]["title"] == "Tiny albef"


def test_only_one_visitor_loads_a_model_at_a_time(grounder):
    with grounder.loading_a_strangers, pytest.raises(models.ModelError, match="Another model is just being loaded"):
        grounder.ground(picture(), LINES, "org/model")


def test_the_owners_model_comes_first_or_the_page_says_why_not(entries):
    catalogue = [entries["b"]]
    chosen = grounding.Grounder(catalogue, preferred=entries["c"].id).ground(picture(), LINES)
    assert chosen["models"][0]["id"] == entries["c"].id and chosen["models"][0]["note"] is None
    instead = grounding.Grounder(catalogue, preferred="org/nothing").ground(picture(), LINES)
    assert instead["models"][0]["id"] == entries["b"].id
    assert re.match("The model org/nothing could not be loaded: .* Shown instead: Tiny", instead["models"][0]["note"])


def test_what_is_too_large_is_not_loaded(tmp_path, monkeypatch):
    entry = saved(tmp_path / "model", "albef")
    for name, bound, sentence in [
        ("MAX_PARAMETERS", 1000, "million parameters"),
        ("MAX_LAYERS", 4, "5 layers"),
        ("MAX_SIDE", 31, "images of 32 pixels"),
    ]:
        with monkeypatch.context() as patched:
            patched.setattr(models, name, bound)
            with pytest.raises(models.ModelError, match=sentence):
                models.load_own(entry)


def test_a_model_without_its_head_is_refused(tmp_path):
    model, processor = FAMILIES["albef"]()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("itm_head")}
    model.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    with pytest.raises(models.ModelError, match="lacks weights"):
        models.load_own(models.Entry(str(tmp_path), "", ""))


def test_the_models_that_come_along():
    for entry in models.read_catalogue():
        files = {path.name for path in (SPACE / entry.id).iterdir()}
        assert "model.safetensors" in files and files <= {*models.FILES, "README.md"}
        assert sum(path.stat().st_size for path in (SPACE / entry.id).iterdir()) < 3e6
        assert "auto_map" not in "".join(p.read_text() for p in (SPACE / entry.id).glob("*config.json"))
