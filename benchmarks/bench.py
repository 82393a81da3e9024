"""How fast evaluation and training are: against the plain implementation, the machine, and what else there is.

    make bench                                           # the parts of docs/speed.md; writes benchmarks/results.json
    make bench BENCH="--only training memory"            # or serving, conversion, scale, streaming
    make bench BENCH="--device cuda"                     # writes benchmarks/results_gpu.json

Models of base size with random weights. Seconds are medians of runs in turns (A B C A B C …). `ratio` is always ours
over baseline: a speed-up for rates, a cost for seconds and memory, a share of the machine's matrix rate for GFLOP/s.
The baseline is `benchmarks/baseline.py` in float32, unless the row's name says otherwise.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import baseline, conversion, generative, scale, serving, streaming, workloads
from benchmarks.alternatives import ALTERNATIVES, NUM_PHRASES
from benchmarks.measure import Row, gigaflops, in_a_process, matrix_products, median_seconds, report
from benchmarks.workloads import Scale, TrainingStep, build_albef, evaluate, evaluation_batch, heatmaps_of

RESULTS = Path(__file__).parent / "results.json"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Bench:
    """Where and how often things are measured; `quick`: on the tiny scale."""

    scale: Scale
    device: torch.device
    repeats: int
    quick: bool

    def seconds(self, functions: dict[str, Callable]) -> tuple[dict[str, float], dict[str, float]]:
        """Medians of functions by their name, and GFLOP/s of matrix products measured among them, by precision."""
        size = self.scale.matrix_size
        products = {name: matrix_products(self.device, dtype, size) for name, dtype in PRECISIONS.items()}
        seconds = median_seconds(self.repeats, functions | {name: product for name, (product, _) in products.items()})
        return seconds, {name: gflop / seconds[name] for name, (_, gflop) in products.items()}


def compared(name: str, ours: float, reference: float | None, unit: str) -> Row:
    ratio = ours / reference if reference else None
    return {"name": name, "ours": ours, "baseline": reference, "ratio": ratio, "unit": unit}


def evaluation(bench: Bench, size: str = "256px", precisions: tuple[str, ...] = tuple(PRECISIONS)) -> list[Row]:
    """1, 5 and 14 phrases an image, several images a batch; the baseline takes a pair at a time, whatever the batch."""
    scale, model = bench.scale, build_albef(bench.scale, bench.device)
    pairs = evaluation_batch(scale, bench.device, size, 1, len(scale.phrase_lengths))
    functions: dict[str, Callable] = {"baseline": partial(baseline.evaluate_pairs, model, pairs)}
    work = {}
    for num_phrases in (1, 5, 14):
        num_images = max(1, min(scale.max_images, scale.max_phrases // num_phrases))
        batch = evaluation_batch(scale, bench.device, size, num_images, num_phrases)
        work[num_phrases] = num_images * num_phrases, evaluation_gigaflops(scale, size, num_images, num_phrases)
        functions |= {f"{num_phrases}{name}": partial(evaluate, model, batch, name == "bf16") for name in precisions}
    for name in precisions:
        functions[f"heatmaps_{name}"] = partial(heatmaps_of, model, batch, name == "bf16")
        functions[f"scoring_{name}"] = partial(workloads.score, model, batch, name == "bf16")
    seconds, rates = bench.seconds(functions)

    plain_rate = len(scale.phrase_lengths) / seconds["baseline"]
    rows = [compared(f"matrix_rate_{name}", rate, None, "GFLOP/s") for name, rate in rates.items()]
    for name in precisions:
        for num_phrases, (num_pairs, gflop) in work.items():
            case, taken = f"eval_{size}_{num_phrases}phrases_{name}", seconds[f"{num_phrases}{name}"]
            rows.append(compared(case, num_pairs / taken, plain_rate, "pairs/s"))
            rows.append(compared(f"{case}_matrix_share", gflop / taken, rates[name], "GFLOP/s"))
        explained, scored = seconds[f"heatmaps_{name}"], seconds[f"scoring_{name}"]
        rows.append(compared(f"heatmap_over_scoring_{size}_{name}", explained, scored, "s"))
    return rows + same_answers(model, pairs, size, precisions)


def evaluation_gigaflops(scale: Scale, size: str, num_images: int, num_phrases: int) -> float:
    """What has to be computed: of phrases of the mean length, without the padding of longer ones."""
    length = round(sum(scale.phrase_lengths) / len(scale.phrase_lengths))
    model = build_albef(scale, torch.device("cpu"))
    model.set_attn_implementation("eager")
    batch = evaluation_batch(replace(scale, phrase_lengths=(length,)), model.device, size, num_images, num_phrases)
    return gigaflops(partial(heatmaps_of, model, batch))


def same_answers(model: torch.nn.Module, pairs: dict, size: str, precisions: tuple[str, ...]) -> list[Row]:
    """How far maps are from the baseline's, over its maximum, and how many points are the same."""
    plain_heatmaps, plain_points = baseline.evaluate_pairs(model, pairs)
    rows = []
    for name in precisions:
        heatmaps, points = evaluate(model, pairs, name == "bf16")
        difference = ((heatmaps - plain_heatmaps).abs() / plain_heatmaps.amax(dim=(1, 2), keepdim=True)).max().item()
        same = (points.cpu() == plain_points).all(dim=1).sum().item()
        rows.append(compared(f"eval_{size}_map_difference_{name}", difference, None, "of the maximum"))
        rows.append(compared(f"eval_{size}_same_points_{name}", same, len(points), "points"))
    return rows


def training(bench: Bench) -> list[Row]:
    """A whole step, with and without AMC."""
    count, device = bench.scale.batch_size, bench.device
    model, batch = build_albef(bench.scale, device, pretraining=True), workloads.training_batch(bench.scale, device)
    ours, without_amc = TrainingStep(model, batch), partial(workloads.training_losses, amc=False)
    functions: dict[str, Callable] = {"baseline": TrainingStep(model, batch, baseline.training_losses)}
    for name in PRECISIONS:
        functions[f"step_{name}"] = TrainingStep(model, batch, ours.losses, name == "bf16", ours.optimizer)
        functions[f"no_amc_{name}"] = TrainingStep(model, batch, without_amc, name == "bf16", ours.optimizer)
    seconds, rates = bench.seconds(functions)
    model.set_attn_implementation("eager")
    gflop = gigaflops(lambda: ours.loss().backward())
    rows = []
    for name in PRECISIONS:
        taken = seconds[f"step_{name}"]
        rows += [
            compared(f"train_step_{name}", count / taken, count / seconds["baseline"], "samples/s"),
            compared(f"train_step_{name}_matrix_share", gflop / taken, rates[name], "GFLOP/s"),
            compared(f"amc_over_no_amc_{name}", taken, seconds[f"no_amc_{name}"], "s"),
        ]
    return rows


def memory(bench: Bench) -> list[Row]:
    """Peak of a whole process that trains, each in one of its own; and what a sample more takes, of 4 to 16 a batch."""

    def peak(variant: str, batch_size: int | None = None) -> float:
        return in_a_process(workloads.training_memory, variant, bench.device.type, bench.quick, batch_size) / 2**30

    variants = "baseline", "ours", "checkpointing", "bf16"
    rows = []
    for name, unit, values in (
        ("peak_memory", "GiB", {each: peak(each) for each in variants}),
        ("memory_a_sample", "GiB/sample", {each: (peak(each, 16) - peak(each, 4)) / 12 for each in variants}),
    ):
        plain = values.pop("baseline")
        rows += [compared(f"train_{name}_{variant}", value, plain, unit) for variant, value in values.items()]
    return rows


def alternatives(bench: Bench) -> list[Row]:
    """One image with 14 phrases, by us at 256 and 384 pixels, and by others at theirs."""
    model = build_albef(bench.scale, bench.device)
    functions: dict[str, Callable] = {
        size: partial(evaluate, model, evaluation_batch(bench.scale, bench.device, size, 1, NUM_PHRASES))
        for size in bench.scale.image_sizes
    }
    functions |= {name: build(bench.device, bench.quick) for name, build in ALTERNATIVES.items()}
    seconds = median_seconds(bench.repeats, functions)
    sizes = {name: "384px" if name.startswith("blip") else "256px" for name in ALTERNATIVES}
    rates = {name: 1 / taken for name, taken in seconds.items()}
    return [compared(f"{size}_over_{name}", rates[size], rates[name], "images/s") for name, size in sizes.items()]


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "evaluation": evaluation,
    "evaluation_384px": partial(evaluation, size="384px", precisions=("fp32",)),
    "training": training,
    "memory": memory,
    "alternatives": alternatives,
    "serving": lambda bench: serving.export_and_time(bench.scale, bench.repeats),
    "conversion": lambda bench: conversion.costs(bench.scale),
    "generative": lambda bench: generative.costs(bench.quick),
    "scale": lambda bench: scale.rates(
        bench.scale.config, 10 if bench.quick else 200, 14 if bench.quick else 140, bench.repeats
    ),
    "streaming": lambda bench: streaming.rates(100 if bench.quick else 15_000, bench.repeats),
}
BY_DEFAULT = list(PARTS)[:5]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run? The numbers mean nothing")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of a median, after one that is not counted")
    parser.add_argument("--output", type=Path, help="JSON file (default: in this folder, unless --quick)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {name}, {options.threads} CPU threads{', a tiny model' * options.quick}")
    output = options.output
    if output is None and not options.quick:
        output = RESULTS if device.type == "cpu" else RESULTS.with_name("results_gpu.json")
    bench = Bench(workloads.scale_of(device, options.quick), device, options.repeats, options.quick)
    for part in options.only or BY_DEFAULT:
        start = time.perf_counter()
        report(part, PARTS[part](bench), output)
        print(f"({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
