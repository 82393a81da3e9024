"""Time and peak memory of converting a pre-training checkpoint to the original layout, and back to a folder."""

import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row, in_a_process, peak_bytes
from benchmarks.workloads import Scale, save_albef
from modeling_albef_amc import AlbefConfig
from modeling_albef_amc.tools.convert_albef_checkpoint import convert_checkpoint, write_original


def convert(to_original: bool, source: str, output: str, options: dict) -> dict[str, float]:
    """What `albef-amc convert` does. Returns: seconds, and bytes at the peak of the whole process."""
    start = time.perf_counter()
    (write_original if to_original else convert_checkpoint)(source, output, **options)
    return {"seconds": time.perf_counter() - start, "peak": peak_bytes()}


def costs(scale: Scale) -> list[Row]:
    config = AlbefConfig(**scale.config)
    heads = {f"{part}_heads": getattr(config, f"{part}_config").num_attention_heads for part in ("vision", "text")}
    with tempfile.TemporaryDirectory() as scratch:
        folder, original = f"{scratch}/albef", f"{scratch}/albef.pth"
        save_albef(scale, folder, pretraining=True)
        options = {"tokenizer": folder, "grounding_layer": config.grounding_layer} | heads
        larger = options | {"image_size": scale.image_sizes["384px"]}
        rows = []
        for name, *arguments in (
            ("to the original", True, folder, original, {}),
            ("to a folder", False, original, f"{scratch}/256px", options),
            ("to a folder, positions for 384 px", False, original, f"{scratch}/384px", larger),
        ):
            found, size = in_a_process(convert, *arguments), Path(original).stat().st_size
            rows.append({"conversion": name, "seconds": found["seconds"], "peak over file": found["peak"] / size})
    return rows
