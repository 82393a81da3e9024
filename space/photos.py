"""Photos of visitors: files that they upload and addresses that they type, neither of which is to be trusted."""

import http.client
import io
import ipaddress
import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import quote, urljoin, urlsplit

from PIL import Image

from modeling_albef_amc.images import UNREADABLE, open_image

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 25_000_000
MIN_SIDE = 8
MAX_REDIRECTS = 3
SECONDS = 15
PORTS = {"http": 80, "https": 443}
# What browsers show; Pillow knows others, of which some start programs.
FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]
TOO_SLOW = "The photo came too slowly: try again, or upload it."


class PhotoError(ValueError):
    """A sentence for the visitor: what is wrong with the photo, and what to do."""


def read_photo(file: str | os.PathLike | bytes) -> Image.Image:
    """
    Args:
        file: a path, or the bytes of a file.

    Returns: the photo as `modeling_albef_amc.images.open_image` gives it, RGB and upright; of an animation its start.

    Raises:
        PhotoError: it is no picture, cut off, too large or too small.
    """
    size = len(file) if isinstance(file, bytes) else os.path.getsize(file)
    if size > MAX_BYTES:
        raise PhotoError(
            f"This file has {size / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} are taken. Make it smaller."
        )
    try:
        opened = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PhotoError(too_many_pixels()) from error
    except UNREADABLE as error:
        raise PhotoError("This file is not a photo that can be read: choose a JPEG, PNG, WebP or GIF.") from error
    with opened:
        # Only the head of the file has been read so far.
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise PhotoError(too_many_pixels(width, height))
        if min(width, height) < MIN_SIDE:
            raise PhotoError(
                f"This photo is {width} × {height} pixels, too small to show anything: choose one of at least "
                f"{MIN_SIDE} × {MIN_SIDE}."
            )
        try:
            return open_image(opened)
        except ValueError as error:
            raise PhotoError("This photo is damaged or cut off: save it anew, or choose another.") from error


def too_many_pixels(width: int | None = None, height: int | None = None) -> str:
    size = f"{width * height / 1e6:.0f}" if width and height else "far too many"
    return (
        f"This photo has {size} megapixels; at most {MAX_PIXELS // 10**6} are taken. Make it smaller, for example 2000 "
        "pixels wide."
    )


def fetch(url: str) -> bytes:
    """
    The file at an address of the public internet.

    Each host, also each that the way is redirected to, is looked up once; only if all its addresses are public, one of
    them is connected to, without a second look-up that could say otherwise. No proxy is used: it would look up anew.

    Raises:
        PhotoError: the address is malformed, not public, answers with an error, too much or too slowly.
    """
    for _ in range(MAX_REDIRECTS + 1):
        connection, target = connect(url)
        # Of a server that sends a byte now and then, no single wait is too long.
        ends = time.monotonic() + SECONDS
        deadline = threading.Timer(SECONDS, hang_up, [connection.sock])
        deadline.start()
        try:
            connection.request("GET", target, headers={"User-Agent": "albef-amc", "Accept": "image/*"})
            answer = connection.getresponse()
            location = answer.getheader("Location")
            if answer.status in (301, 302, 303, 307, 308) and location:
                url = urljoin(url, location)
                continue
            data = answer.read(MAX_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= ends:
                raise PhotoError(TOO_SLOW) from error
            raise PhotoError("The photo could not be fetched: check its address, or upload it.") from error
        finally:
            deadline.cancel()
            connection.close()
        if answer.status != 200:
            raise PhotoError(f"The server answered {answer.status} {answer.reason}: check the photo's address.")
        if time.monotonic() >= ends:
            raise PhotoError(TOO_SLOW)
        if len(data) > MAX_BYTES:
            raise PhotoError(f"The file at this address has more than {MAX_BYTES // 2**20} MB: choose a smaller photo.")
        return data
    raise PhotoError(f"This address leads on more than {MAX_REDIRECTS} times: copy the address of the photo itself.")


def hang_up(connected: socket.socket) -> None:
    """Ends a connection that another thread is waiting for."""
    with suppress(OSError):  # it has ended by itself
        connected.shutdown(socket.SHUT_RDWR)


def connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    """Connects to the host of a URL. Returns: the connection, and what to ask of it: path and query."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or PORTS.get(parts.scheme)
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        raise PhotoError("This is not an address: it should look like https://example.org/photo.jpg.") from error
    if parts.scheme not in PORTS or not host:
        raise PhotoError("This is not a photo's address: it should look like https://example.org/photo.jpg.")
    if port not in PORTS.values() or parts.username is not None:
        raise PhotoError("Addresses with a port or a user name are not fetched: upload the photo instead.")
    address = public_address(host, port)
    try:
        plain = socket.create_connection((address, port), timeout=SECONDS)
        if parts.scheme == "https":
            plain = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except OSError as error:
        raise PhotoError(f"{host} cannot be reached: check the photo's address, or upload it.") from error
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    connection.sock = plain
    # Letters that may not stand in a request are written as bytes; what is written so already stays.
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + ("?" if parts.query else "")
    return connection, target + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")


def public_address(host: str, port: int) -> str:
    """One of the host's addresses. PhotoError: it has none, or one of them is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PhotoError(f"There is no host {host}: check the photo's address.") from error
    addresses = [sockaddr[0] for *_, sockaddr in found]
    if not addresses or not all(map(is_public, addresses)):
        raise PhotoError("This address lies in a private network: only photos on the public web are fetched.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is everyone's; one of version 6 that stands for one of version 4 does not count."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and (ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip.is_site_local):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)
