"""Training data prepared on disk against streamed: how long until the first batch, how fast then, what is kept."""

import io
import os
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.measure import Row, in_a_process, medians
from dataset_scripts.features import FEATURES, make_row
from modeling_albef_amc import AlbefImageProcessorPil, AlbefProcessor, tokenizer_from_texts
from trainer.data_collator import GroundingCollator
from trainer.sampler import ImageGroupedSampler
from trainer.splits import open_split
from trainer.streaming import StreamedBatches, StreamedRows, as_it_is

BATCH_SIZE, PHRASES, NUM_WORKERS = 64, 5, 2


def write(folder: Path, num_rows: int, phrases: int = PHRASES) -> int:
    """A data set of five files, 100 rows a row group, JPEG images of 500 x 375. Returns: its bytes."""
    rng = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    for number in range(5):
        rows = []
        for index in range(num_rows // 5 // phrases):
            coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((500, 375))
            coarse.save(file := io.BytesIO(), "JPEG")
            name, image = f"{number}-{index}", {"bytes": file.getvalue(), "path": None}
            rows += [make_row(image, name, f"thing {i} of many", [[9, 9, 90, 90]]) for i in range(phrases)]
        file = folder / "data" / f"train-{number:05d}.parquet"
        datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(file, batch_size=100)
    return bytes_of(folder / "data")


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def read(folder: str, way: str) -> dict[str, float]:
    """Seconds until the first batch of an epoch, and phrases a second from then on, collated as for training."""
    start = time.perf_counter()
    tokenizer = tokenizer_from_texts([f"thing {index} of many" for index in range(PHRASES)])
    processor = AlbefProcessor(AlbefImageProcessorPil(size={"height": 256, "width": 256}), tokenizer)
    collator = GroundingCollator(processor, mlm_probability=0.0)
    if way == "streamed":
        rows = StreamedRows.open(folder, None, "train")
        batches = StreamedBatches(rows, collator, BATCH_SIZE, phrases_per_image=PHRASES)
        loader = DataLoader(batches, batch_size=None, collate_fn=as_it_is, num_workers=NUM_WORKERS)
    else:
        rows = open_split(folder, None, "train")
        sampler = ImageGroupedSampler(rows["image_id"], PHRASES)
        loader = DataLoader(rows, BATCH_SIZE, sampler=sampler, collate_fn=collator, num_workers=NUM_WORKERS)
    iterator = iter(loader)
    next(iterator)
    first = time.perf_counter()
    count = sum(len(batch["input_ids"]) for batch in iterator)
    return {"first batch, s": first - start, "phrases/s": count / (time.perf_counter() - first)}


def rates(num_rows: int, repeats: int) -> list[Row]:
    """Medians of each way in processes of their own with an empty cache, in turns."""
    found: dict[str, list[Row]] = {"prepared": [], "streamed": []}
    with tempfile.TemporaryDirectory() as scratch:
        size = write(Path(scratch) / "set", num_rows)
        for repeat in range(repeats):
            for way, results in found.items():
                cache = Path(scratch) / f"cache-{way}-{repeat}"
                environment = os.environ | {"HF_HOME": str(cache), "OMP_NUM_THREADS": "1"}
                results.append(in_a_process(read, f"{scratch}/set", way, environment=environment))
                results[-1]["on disk, x the files"] = bytes_of(cache) / size
    return [{"way": way} | medians(results) for way, results in found.items()]
