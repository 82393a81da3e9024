"""The Space under load: latency of one user with a base-size model, then many users at once; memory of the server.

    python -m benchmarks.space_load                      a random base-size model at 256 px, 20 users, 500 requests
    python -m benchmarks.space_load --model checkpoints/with_amc

The server runs in a process of its own, on 127.0.0.1; the users are `gradio_client`s in threads of this one.
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from gradio_client import Client, handle_file
from PIL import Image

from benchmarks.workloads import FULL, save_albef
from tests.helpers.space import ROOT, served

USERS, REQUESTS = 20, 500  # requests: of all users together
WORDS = ["the", "small", "large", "red", "green", "blue", "star", "square", "triangle", "on", "left", "dog", "cat"]


def save_image(path: Path, seed: int) -> Path:
    """A smooth random image, as JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC).save(path)
    return path


def seconds(client: Client, image: Path, lines: str) -> float:
    start = time.perf_counter()
    view = client.predict(handle_file(image), lines, api_name="/ground")
    assert len(view["phrases"]) == len(lines.splitlines())
    return time.perf_counter() - start


def one_user(address: str, images: list[Path]) -> None:
    client = Client(address, verbose=False)
    seconds(client, images[0], "the red star")
    first = [seconds(client, image, "the red star") for image in images[1:]]
    further = [seconds(client, images[-1], f"the {word} square on the left") for word in WORDS[1:9]]
    for what, taken in ("a new image and a phrase", first), ("a further phrase of the same image", further):
        print(f"one user, {what}: median {statistics.median(taken):.2f} s, at most {max(taken):.2f} s")


def many_users(address: str, pid: int, images: list[Path]) -> None:
    """Every user asks without a pause, in turn for an image of their own and for one of everybody's."""
    taken, errors = [], []

    def use(user: int) -> None:
        client = Client(address, verbose=False)
        for number in range(REQUESTS // USERS):
            image = images[(user if number % 2 else number) % len(images)]
            try:
                taken.append(seconds(client, image, f"the {WORDS[(user + number) % len(WORDS)]} star"))
            except Exception as error:  # whatever goes wrong is counted
                errors.append(repr(error))

    server, start = psutil.Process(pid), time.perf_counter()
    before = server.memory_info().rss / 2**20
    with ThreadPoolExecutor(USERS) as pool:
        list(pool.map(use, range(USERS)))
    wall, after = time.perf_counter() - start, server.memory_info().rss / 2**20
    p50, p95 = np.percentile(taken, [50, 95])
    print(f"{USERS} users, {len(taken)} requests in {wall:.0f} s: p50 {p50:.2f} s, p95 {p95:.2f} s")
    print(f"memory of the server: {before:.0f} MiB before, {after:.0f} MiB after; {len(errors)} errors", *set(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a Hub id or a folder, also below space/; default: a random one of base size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.model is None:
            save_albef(FULL, f"{scratch}/model", texts=WORDS)
        settings = {"MODEL_ID": options.model or f"{scratch}/model", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
        images = [save_image(Path(scratch) / f"image_{n}.jpg", n) for n in range(USERS)]
        with served([sys.executable, ROOT / "space" / "app.py"], ROOT, **settings) as (address, pid):
            one_user(address, images[:6])
            many_users(address, pid, images)


if __name__ == "__main__":
    main()
