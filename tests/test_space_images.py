"""Images that visitors of the Space send: odd files and odd addresses."""

import io
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from tests.helpers.data import EXIF_ORIENTATION, picture
from tests.helpers.space import space_module

images = space_module("images")
VisitorError = space_module("errors").VisitorError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_images_that_cannot_be_taken():
    for file, sentence in [
        (b"just text", "not a photo"),
        (encoded(Image.new("L", (8000, 5000))), "more than 25 megapixels"),
        (encoded(Image.new("1", (13400, 13400))), "more than 25 megapixels"),
        (encoded(Image.new("RGB", (1, 1))), "1 × 1 pixels"),
        (encoded(picture(), "JPEG")[:-200], "damaged"),
        (b"\0" * (images.MAX_BYTES + 1), "MB; at most"),
        (encoded(picture(), "EPS"), "choose a JPEG"),
    ]:
        with pytest.raises(VisitorError, match=sentence):
            images.read_image(file)


def test_unusual_images_are_taken():
    exif, animation = Image.Exif(), [Image.new("RGB", (40, 36), colour) for colour in ("red", "blue")]
    exif[EXIF_ORIENTATION] = 6  # shown after a quarter turn
    turned = images.read_image(encoded(picture(40, 36), "JPEG", exif=exif))
    start = images.read_image(encoded(animation[0], "GIF", save_all=True, append_images=animation[1:]))
    assert (turned.mode, turned.size, start.mode, start.size) == ("RGB", (36, 40), "RGB", (40, 36))
    assert start.getpixel((20, 20)) == pytest.approx((254, 0, 0), abs=2)


# Images from addresses ------------------------------------------------------------------------------------------------


class Web(BaseHTTPRequestHandler):
    """What the servers of these tests answer, whatever they are called."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["Host"], self.path))
        status, headers, body = self.server.pages[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body or b"12345")), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body is None:
            self.server.left.wait()
        else:
            self.wfile.write(body)


@pytest.fixture
def web(monkeypatch):
    """A web of names → addresses, all of which lead to one server on this machine. Returns: the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.asked, server.reached, connect = [], [], socket.create_connection
    server.left = threading.Event()  # until then, a page without a body does not end
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

    monkeypatch.setattr(images.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(images.socket, "create_connection", reach)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.left.set()
    server.shutdown()
    server.server_close()


def test_an_image_from_an_address(web):
    web.pages |= {
        "/a": (302, {"Location": "/b"}, b""),
        "/b": (301, {"Location": "http://photos.example/photo.png"}, b""),
    }
    for address in ("http://photos.example/photo.png", " http://photos.example/a?x=ü y"):
        assert images.read_image(images.fetch(address)).tobytes() == picture().tobytes()
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
    with pytest.raises(VisitorError, match="private network"):
        images.fetch(address)
    assert web.reached == []


def test_a_redirection_to_a_private_address_is_refused(web):
    for place in ("http://127.0.0.1/secret", "http://inside.example/secret", "//inside.example/secret"):
        web.pages["/away"] = (302, {"Location": place}, b"")
        with pytest.raises(VisitorError, match="private network"):
            images.fetch("http://photos.example/away")
    assert {path for _, path in web.asked} == {"/away"}


def test_a_name_that_turns_private_after_it_was_looked_up(web):
    """The second look-up never happens: the connection goes to the address that was found public."""
    found, web.names = web.names, {}
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])
    web.names = type("Turning", (dict,), {"__contains__": lambda *_: True, "__getitem__": lambda *_: next(answers)})()
    images.fetch("http://photos.example/photo.png")
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
    web.pages["/huge"] = (200, {}, b"\0" * (images.MAX_BYTES + 1))
    with pytest.raises(VisitorError, match=sentence):
        images.fetch(address)


def test_a_server_that_never_ends_is_left(web, monkeypatch):
    web.pages |= {"/slow": (200, {}, None), "/cut": (200, {"Content-Length": "500"}, encoded(picture())[:200])}
    with monkeypatch.context() as patch, pytest.raises(VisitorError, match="too slowly"):
        patch.setattr(images, "SECONDS", 0.3)
        images.fetch("http://photos.example/slow")  # comes back, though the server waits
    with pytest.raises(VisitorError, match="damaged"):
        images.read_image(images.fetch("http://photos.example/cut"))
