"""Images of visitors: files that they upload and addresses that they type, neither of which is to be trusted."""

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import quote, urljoin, urlsplit

from PIL import Image

from errors import VisitorError
from modeling_albef_amc.images import UNREADABLE, open_file, open_image

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 25_000_000
MIN_SIDE = 8
MAX_REDIRECTS = 3
SECONDS = 15
PORTS = {"http": 80, "https": 443}
TOO_SLOW = "The photo came too slowly: try again, or upload it."


def read_image(data: bytes) -> Image.Image:
    """The file of an image, as the package's `open_image` opens it: RGB, upright, of an animation the start."""
    if len(data) > MAX_BYTES:
        size = f"{len(data) / 2**20:.0f} MB"
        raise VisitorError(f"This file has {size}; at most {MAX_BYTES // 2**20} are taken. Make it smaller.")
    try:
        with open_file(io.BytesIO(data)) as opened:  # only its head is read
            width, height = opened.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError
    except Image.DecompressionBombError as error:
        most, example = MAX_PIXELS // 10**6, "for example 2000 pixels wide"
        raise VisitorError(f"This photo has more than {most} megapixels: make it smaller, {example}.") from error
    except UNREADABLE as error:
        raise VisitorError("This file is not a photo that can be read: choose a JPEG, PNG, WebP or GIF.") from error
    if min(width, height) < MIN_SIDE:
        least = f"choose one of at least {MIN_SIDE} × {MIN_SIDE}"
        raise VisitorError(f"This photo is {width} × {height} pixels, too small to show anything: {least}.")
    try:
        return open_image({"bytes": data})
    except ValueError as error:
        raise VisitorError("This photo is damaged or cut off: save it anew, or choose another.") from error


def fetch(url: str) -> bytes:
    """The file at an address of the public internet.

    Each host, also each that the way is redirected to, is looked up once; only if all its addresses are public, one of
    them is connected to, without a second look-up that could say otherwise. No proxy is used: it would look up anew.
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
                raise VisitorError(TOO_SLOW) from error
            raise VisitorError("The photo could not be fetched: check its address, or upload it.") from error
        finally:
            deadline.cancel()
            connection.close()
        if answer.status != 200:
            raise VisitorError(f"The server answered {answer.status} {answer.reason}: check the photo's address.")
        if time.monotonic() >= ends:
            raise VisitorError(TOO_SLOW)
        if len(data) > MAX_BYTES:
            raise VisitorError(f"This address has more than {MAX_BYTES // 2**20} MB: choose a smaller photo.")
        return data
    raise VisitorError(f"This address leads on more than {MAX_REDIRECTS} times: copy the address of the photo itself.")


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
        raise VisitorError("This is not an address: it should look like https://example.org/photo.jpg.") from error
    if parts.scheme not in PORTS or not host:
        raise VisitorError("This is not a photo's address: it should look like https://example.org/photo.jpg.")
    if port not in PORTS.values() or parts.username is not None:
        raise VisitorError("Addresses with a port or a user name are not fetched: upload the photo instead.")
    address = public_address(host, port)
    try:
        plain = socket.create_connection((address, port), timeout=SECONDS)
        if parts.scheme == "https":
            plain = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except OSError as error:
        raise VisitorError(f"{host} cannot be reached: check the photo's address, or upload it.") from error
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    connection.sock = plain
    # Letters that may not stand in a request are written as bytes; what is written so already stays.
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + ("?" if parts.query else "")
    return connection, target + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")


def public_address(host: str, port: int) -> str:
    """One of the host's addresses. VisitorError: it has none, or one of them is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise VisitorError(f"There is no host {host}: check the photo's address.") from error
    addresses = [sockaddr[0] for *_, sockaddr in found]
    if not addresses or not all(map(is_public, addresses)):
        raise VisitorError("This address lies in a private network: only photos on the public web are fetched.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is everyone's; one of version 6 that stands for one of version 4 does not count."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and (ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip.is_site_local):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)
