"""Training data prepared on disk against streamed: how long until the first batch, how fast from then on, what is kept.

    python -m benchmarks.streaming --rows 20000

Photos of 500 × 375 as JPEG files, each with five phrases, are written as a builder writes them. Each way is tried in a
process of its own with an empty cache, in turns; medians are printed.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH_SIZE, PHRASES = 64, 5


def write(folder: Path, num_rows: int) -> None:
    """A data set of five files, 100 rows a row group."""
    import datasets
    from PIL import Image

    from dataset_scripts.features import FEATURES, make_row

    rng = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    for number in range(5):
        rows = []
        for photo in range(num_rows // 5 // PHRASES):
            coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((500, 375))
            coarse.save(file := io.BytesIO(), "JPEG")
            name, image = f"{number}-{photo}", {"bytes": file.getvalue(), "path": None}
            rows += [make_row(image, name, f"thing {i} of many", [[9, 9, 90, 90]]) for i in range(PHRASES)]
        file = folder / "data" / f"train-{number:05d}.parquet"
        datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(file, batch_size=100)


def measure(folder: str, way: str, num_workers: int) -> dict[str, float]:
    """Of one epoch's batches, collated as for training at 256 px."""
    begin = time.perf_counter()
    from torch.utils.data import DataLoader

    from tests.tiny_data import tiny_processor
    from trainer.data_collator import GroundingCollator
    from trainer.sampler import ImageGroupedSampler
    from trainer.streaming import StreamedBatches, StreamedRows, as_it_is
    from trainer.training import load_split

    imported = time.perf_counter()
    processor = tiny_processor()
    processor.image_processor.size = {"height": 256, "width": 256}
    collator = GroundingCollator(processor, mlm_probability=0.0)
    if way == "streamed":
        rows = StreamedRows.open(folder, None, "train")
        batches = StreamedBatches(rows, collator, BATCH_SIZE, phrases_per_image=PHRASES)
        loader = DataLoader(batches, batch_size=None, collate_fn=as_it_is, num_workers=num_workers)
    else:
        rows = load_split(folder, None, "train")
        sampler = ImageGroupedSampler(rows["image_id"], PHRASES)
        loader = DataLoader(rows, BATCH_SIZE, sampler=sampler, collate_fn=collator, num_workers=num_workers)
    iterator = iter(loader)
    next(iterator)
    first = time.perf_counter()
    count = sum(len(batch["input_ids"]) for batch in iterator)
    end = time.perf_counter()
    return {"import": imported - begin, "first_batch": first - imported, "rows_per_second": count / (end - first)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[dict]] = {"prepared": [], "streamed": []}
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "set", options.rows)
        size = sum(file.stat().st_size for file in (Path(name) / "set" / "data").iterdir())
        for repeat in range(options.repeats):
            for way, results in found.items():
                cache = Path(name) / f"cache-{way}-{repeat}"
                call = f"measure({str(Path(name) / 'set')!r}, {way!r}, {options.workers})"
                code = f"import json; from benchmarks.streaming import measure; print(json.dumps({call}))"
                environment = os.environ | {"HF_HOME": str(cache), "OMP_NUM_THREADS": "1"}
                done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                results.append(json.loads(done.stdout.splitlines()[-1]))
                kept = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
                results[-1]["kept"] = kept / size
    print(f"| {options.rows:,} phrases, {size / 2**20:.0f} MiB | first batch, s | phrases/s | on disk, × the files |")
    print("|---|---:|---:|---:|")
    for way, results in found.items():
        median = {key: statistics.median(result[key] for result in results) for key in results[0]}
        print(f"| {way} | {median['first_batch']:.1f} | {median['rows_per_second']:.0f} | {median['kept']:.2f} |")


if __name__ == "__main__":
    main()
