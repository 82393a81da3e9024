"""`ground-dataset` by one process against two actors of Ray, a core each: rows a second once the first are there."""

import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row, in_a_process, medians
from benchmarks.streaming import write
from modeling_albef_amc import AlbefConfig, AlbefImageProcessorPil, AlbefModel, AlbefProcessor, tokenizer_from_texts
from trainer.ground_dataset import main

PHRASES = 14


def save(folder: str, config: Row) -> None:
    """A checkpoint of random weights."""
    tokenizer = tokenizer_from_texts([f"thing {index} of many" for index in range(PHRASES)])
    model = AlbefModel(AlbefConfig(**config))
    size = model.config.vision_config.image_size
    model.save_pretrained(folder)
    AlbefProcessor(AlbefImageProcessorPil(size={"height": size, "width": size}), tokenizer).save_pretrained(folder)


def ground(folder: str, output: str, num_actors: int, block_size: int) -> dict[str, float]:
    """Of a fresh run: seconds until the first file of rows, and rows a second from then on."""
    start = time.time()
    words = f"--model {folder}/model --dataset {folder}/set --output {output} --cpu --block_size {block_size}"
    main([*words.split(), "--num_actors", str(num_actors)])
    ends = sorted(file.stat().st_mtime for file in Path(output).glob("data/*"))
    return {"first rows, s": ends[0] - start, "rows/s": (len(ends) - 1) * block_size / (ends[-1] - ends[0])}


def rates(config: Row, num_images: int, block_size: int, repeats: int, ways: tuple[int, ...] = (0, 2)) -> list[Row]:
    """Medians of so many actors each, in processes of their own, in turns."""
    found: dict[int, list[Row]] = {actors: [] for actors in ways}
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch) / "set", num_images * PHRASES, PHRASES)
        save(f"{scratch}/model", config)
        for repeat in range(repeats):
            for actors, results in found.items():
                output = f"{scratch}/rows-{actors}-{repeat}"
                results.append(in_a_process(ground, scratch, output, actors, block_size))
    return [{"actors": actors} | medians(results) for actors, results in found.items()]
