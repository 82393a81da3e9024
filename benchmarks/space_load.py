"""The Space under load: latency of one user with a base-size model, then many users at once; memory of the server.

    python benchmarks/space_load.py                      a random base-size model at 256 px, 20 users, 500 requests
    python benchmarks/space_load.py --model checkpoints/with_amc

The server runs in a process of its own, on 127.0.0.1; the users are `gradio_client`s in threads of this one.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from gradio_client import Client, handle_file
from PIL import Image

from modeling_albef_amc import AlbefConfig, AlbefImageProcessorPil, AlbefModel, AlbefProcessor, tokenizer_from_texts

ROOT = Path(__file__).parents[1]
WORDS = ["the", "small", "large", "red", "green", "blue", "star", "square", "triangle", "on", "left", "dog", "cat"]


def save_base_model(folder: Path) -> None:
    """ALBEF of base size with random weights, for images of 256 x 256 pixels."""
    torch.manual_seed(0)
    AlbefModel(AlbefConfig()).save_pretrained(folder)
    processor = AlbefImageProcessorPil(size={"height": 256, "width": 256})
    AlbefProcessor(processor, tokenizer_from_texts(WORDS)).save_pretrained(folder)


def save_photos(folder: Path, count: int, width: int = 1024, height: int = 768) -> list[Path]:
    """Smooth random pictures, as JPEG."""
    paths = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        paths.append(folder / f"photo_{number}.jpg")
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@contextmanager
def served(model: str, threads: int) -> Iterator[tuple[str, int]]:
    """The Space in a process of its own. Yields: its address and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"MODEL_ID": model, "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
    settings |= {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, ROOT / "space" / "app.py"]
        server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        try:
            address, text = f"http://127.0.0.1:{port}", ""
            while "Running on local URL" not in text:
                if server.poll() is not None:
                    raise SystemExit(f"The Space has not started:\n{text}")
                time.sleep(0.2)
                log.seek(0)
                text = log.read()
            yield address, server.pid
        finally:
            server.terminate()
            server.wait(30)


def resident_mebibytes(pid: int) -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def seconds(client: Client, photo: Path, lines: str) -> float:
    start = time.perf_counter()
    view = client.predict(handle_file(photo), lines, api_name="/ground")
    assert len(view["phrases"]) == len(lines.splitlines())
    return time.perf_counter() - start


def one_user(address: str, photos: list[Path]) -> None:
    client = Client(address, verbose=False)
    seconds(client, photos[0], "the red star")
    first = [seconds(client, photo, "the red star") for photo in photos[1:]]
    further = [seconds(client, photos[-1], f"the {word} square on the left") for word in WORDS[1:9]]
    print(f"one user, a new photo and a phrase: median {statistics.median(first):.2f} s, at most {max(first):.2f} s")
    print(
        f"a further phrase of the same photo: median {statistics.median(further):.2f} s, at most {max(further):.2f} s"
    )


def many_users(address: str, pid: int, photos: list[Path], users: int, requests: int) -> None:
    """Every user asks without a pause, in turn for a photo of their own and for one of everybody's."""

    def use(user: int) -> tuple[list[float], list[str]]:
        client, taken, errors = Client(address, verbose=False), [], []
        for number in range(requests // users):
            photo = photos[(user if number % 2 else number) % len(photos)]
            phrase = f"the {WORDS[(user + number) % len(WORDS)]} star"
            try:
                taken.append(seconds(client, photo, phrase))
            except Exception as error:  # whatever goes wrong is counted
                errors.append(repr(error))
        return taken, errors

    before, start = resident_mebibytes(pid), time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        done = list(pool.map(use, range(users)))
    wall, after = time.perf_counter() - start, resident_mebibytes(pid)
    taken = sorted(duration for durations, _ in done for duration in durations)
    errors = [error for _, failed in done for error in failed]
    p50, p95 = taken[len(taken) // 2], taken[int(0.95 * len(taken))]
    print(
        f"{users} users, {len(taken)} requests in {wall:.0f} s: p50 {p50:.2f} s, p95 {p95:.2f} s, {len(errors)} errors"
        f"\nmemory of the server: {before:.0f} MiB before, {after:.0f} MiB after"
    )
    for error in sorted(set(errors)):
        print(f"  {errors.count(error)} x {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a Hub id or a folder, also below space/; default: a random one of base size")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--requests", type=int, default=500, help="of all users together")
    parser.add_argument("--rounds", type=int, default=1, help="how often, to see whether memory goes on growing")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.model is None:
            save_base_model(Path(scratch) / "model")
        photos = save_photos(Path(scratch), max(10, options.users))
        with served(options.model or f"{scratch}/model", options.threads) as (address, pid):
            one_user(address, photos[:6])
            for _ in range(options.rounds):
                many_users(address, pid, photos, options.users, options.requests)


if __name__ == "__main__":
    main()
