"""How fast evaluation and training are: against the plain implementation, the machine, and what else there is.

    python -m benchmarks.bench                        # all of it; writes benchmarks/results.json
    python -m benchmarks.bench --only evaluation training
    python -m benchmarks.bench --device cuda

Models of base size with random weights. Seconds are medians of runs in turns (A B C A B C …). `ratio` is always ours
over baseline: a speed-up for rates, a cost for seconds and memory, a share of the machine's matrix rate for GFLOP/s.
The baseline is `benchmarks/baseline.py` in float32, unless the row's name says otherwise.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import baseline, flops
from benchmarks.alternatives import ALTERNATIVES, NUM_PHRASES
from benchmarks.parts import seconds_of_parts
from benchmarks.timing import matrix_products, median_seconds, seconds_of
from benchmarks.training_memory import VARIANTS, measure_apart
from benchmarks.workloads import (
    QUICK,
    BaselineStep,
    Scale,
    TrainingStep,
    evaluate,
    evaluation_batch,
    grounding_model,
    heatmaps_of,
    phrase_lengths,
    pretraining_model,
    scale_of,
    score,
    total_loss,
    training_batch,
)

RESULTS = Path(__file__).parent / "results.json"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
GIB = 2**30
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where and how often things are measured."""

    scale: Scale
    device: torch.device
    repeats: int

    @property
    def quick(self) -> bool:
        return self.scale is QUICK

    def seconds(self, functions: dict[str, Callable]) -> tuple[dict[str, float], dict[str, float]]:
        """Medians of functions by their name, and GFLOP/s of matrix products measured among them, by precision."""
        products = {
            name: matrix_products(self.device, dtype, self.scale.matrix_size) for name, dtype in PRECISIONS.items()
        }
        timed = {**functions, **{name: product for name, (product, _) in products.items()}}
        seconds = dict(zip(timed, median_seconds(self.repeats, *timed.values())))
        return seconds, {name: gflop / seconds[name] for name, (_, gflop) in products.items()}


def row(name: str, ours: float, reference: float | None, unit: str) -> Row:
    ratio = None if reference is None else ours / reference
    return {"name": name, "ours": ours, "baseline": reference, "ratio": ratio, "unit": unit}


# Evaluation


def evaluation(bench: Bench, size: str = "256px", precisions: tuple[str, ...] = ("fp32", "bf16")) -> list[Row]:
    """1, 5 and 14 phrases an image, several images a batch; the baseline takes a pair at a time, whatever the batch."""
    scale, model = bench.scale, grounding_model(bench.scale, bench.device)
    pairs = evaluation_batch(scale, bench.device, size, 1, len(scale.phrase_lengths))
    functions: dict[str, Callable] = {"baseline": partial(baseline.evaluate_pairs, model, pairs)}
    work = {}
    for num_phrases in (1, 5, 14):
        num_images = max(1, min(scale.max_images, scale.max_phrases // num_phrases))
        batch = evaluation_batch(scale, bench.device, size, num_images, num_phrases)
        for name in precisions:
            case = f"eval_{size}_{num_phrases}phrases_{name}"
            functions[case] = partial(evaluate, model, batch, name == "bf16")
            work[case] = name, num_images, phrase_lengths(scale, num_phrases) * num_images
            if num_phrases == 14:
                functions[f"heatmaps_{name}"] = partial(heatmaps_of, model, batch, name == "bf16")
                functions[f"scoring_{name}"] = partial(score, model, batch, name == "bf16")
    seconds, rates = bench.seconds(functions)

    plain_rate = len(scale.phrase_lengths) / seconds["baseline"]
    rows = [row(case, len(lengths) / seconds[case], plain_rate, "pairs/s") for case, (_, _, lengths) in work.items()]
    for case, (name, num_images, lengths) in work.items():
        useful = flops.evaluation(model.config, scale.image_sizes[size], num_images, lengths) / 1e9
        rows.append(row(f"{case}_matrix_share", useful / seconds[case], rates[name], "GFLOP/s"))
    for name in precisions:
        case = "heatmap_over_scoring" + ("" if size == "256px" else f"_{size}") + ("" if name == "fp32" else f"_{name}")
        rows.append(row(case, seconds[f"heatmaps_{name}"], seconds[f"scoring_{name}"], "s"))
    rows += same_answers(model, pairs, size, precisions)
    if size == "256px":
        rows += [row(f"matrix_rate_{name}", rate, None, "GFLOP/s") for name, rate in rates.items()]
        for name in precisions:
            rows += share_of_parts(bench, model, name)
    return rows


def same_answers(model: torch.nn.Module, pairs: dict, size: str, precisions: tuple[str, ...]) -> list[Row]:
    """How far maps are from the baseline's, over its maximum, and how many points are the same."""
    plain_heatmaps, plain_points = baseline.evaluate_pairs(model, pairs)
    rows = []
    for name in precisions:
        heatmaps, points = evaluate(model, pairs, name == "bf16")
        difference = ((heatmaps - plain_heatmaps).abs() / plain_heatmaps.amax(dim=(1, 2), keepdim=True)).max().item()
        same = (points.cpu() == plain_points).all(dim=1).sum().item()
        rows.append(row(f"eval_{size}_map_difference_{name}", difference, None, "of the maximum"))
        rows.append(row(f"eval_{size}_same_points_{name}", same, len(points), "points"))
    return rows


def share_of_parts(bench: Bench, model: torch.nn.Module, name: str) -> list[Row]:
    """Seconds of each part of evaluation with 14 phrases an image, over those of all."""
    batch = evaluation_batch(bench.scale, bench.device, "256px", max(1, bench.scale.max_phrases // 14), 14)
    runs = [seconds_of_parts(model, batch, name == "bf16") for _ in range(bench.repeats + 1)][1:]
    medians = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    return [row(f"eval_part_{part}_{name}", value, sum(medians.values()), "s") for part, value in medians.items()]


# Training


def training(bench: Bench) -> list[Row]:
    scale, count = bench.scale, bench.scale.batch_size
    model, batch = pretraining_model(scale, bench.device), training_batch(scale, bench.device)
    ours = TrainingStep(model, batch)
    plain = BaselineStep(model, batch)
    functions: dict[str, Callable] = {
        "baseline": plain,
        "baseline_bf16": BaselineStep(model, batch, plain.optimizer, bf16=True),
    }
    for name in PRECISIONS:
        for amc in (True, False):
            functions[f"{name}_{amc}"] = TrainingStep(model, batch, ours.optimizer, amc, name == "bf16")
    seconds, rates = bench.seconds(functions)
    rows, plain_rate = [], count / seconds["baseline"]
    masked = count * scale.masked_words
    useful = flops.training_step(model.config, scale.image_sizes["256px"], count, scale.caption_length, masked) / 1e9
    for name in PRECISIONS:
        with_amc, without = seconds[f"{name}_True"], seconds[f"{name}_False"]
        suffix = "" if name == "fp32" else f"_{name}"
        rows += [
            row(f"train_step_{name}", count / with_amc, plain_rate, "samples/s"),
            row(f"train_step_{name}_matrix_share", useful / with_amc, rates[name], "GFLOP/s"),
            row(f"amc_over_no_amc{suffix}", with_amc, without, "s"),
        ]
    in_bf16 = count / seconds["bf16_True"], count / seconds["baseline_bf16"]
    rows.append(row("train_step_bf16_over_baseline_in_bf16", *in_bf16, "samples/s"))
    return rows + share_of_phases(bench, ours)


def share_of_phases(bench: Bench, step: TrainingStep) -> list[Row]:
    """Seconds of each phase of a float32 step with AMC, over those of all."""
    runs = [seconds_of_phases(step) for _ in range(bench.repeats)]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return [row(f"train_part_{name}", value, sum(medians.values()), "s") for name, value in medians.items()]


def seconds_of_phases(step: TrainingStep) -> dict[str, float]:
    found: dict[str, Any] = {}
    phases = {
        "momentum": lambda: found.update(targets=step.momentum()),
        "forward": lambda: found.update(loss=total_loss(step.losses(found["targets"]))),
        "backward": lambda: found["loss"].backward(),
        "update": step.update,
    }
    return {name: seconds_of(phase) for name, phase in phases.items()}


def memory(bench: Bench) -> list[Row]:
    """Peak of a whole process that trains, each in one of its own; the part before the first step beside it."""
    found = {variant: measure_apart(variant, bench.device, bench.quick) for variant in VARIANTS}
    peaks = {variant: bytes_of["peak"] / GIB for variant, bytes_of in found.items()}
    names = {
        "ours": "train_peak_memory",
        "checkpointing": "train_peak_memory_checkpointing",
        "bf16": "train_peak_memory_bf16",
    }
    rows = [row(name, peaks[variant], peaks["baseline"], "GiB") for variant, name in names.items()]
    before = {variant: bytes_of["before"] / GIB for variant, bytes_of in found.items()}
    return [*rows, row("train_memory_before_the_first_step", before["ours"], before["baseline"], "GiB")]


# How it grows


def scaling(bench: Bench) -> list[Row]:
    """Evaluation by the images of a batch; training by batch size and by queue size. No baseline: it has no batches."""
    scale, rows = bench.scale, []
    model = grounding_model(scale, bench.device)
    sizes = (1, 2, 4, 8)
    batches = [evaluation_batch(scale, bench.device, "256px", size, 14) for size in sizes]
    seconds = median_seconds(bench.repeats, *(partial(evaluate, model, batch) for batch in batches))
    rows += [
        row(f"eval_batch_{n}images_14phrases", 14 * n / value, None, "pairs/s") for n, value in zip(sizes, seconds)
    ]
    del model

    model = pretraining_model(scale, bench.device)
    sizes = (scale.batch_size // 4, scale.batch_size // 2)
    step = TrainingStep(model, training_batch(scale, bench.device, sizes[0]))
    steps = [TrainingStep(model, training_batch(scale, bench.device, size), step.optimizer) for size in sizes]
    seconds = median_seconds(bench.repeats, *steps)
    rows += [row(f"train_batch_{n}", n / value, None, "samples/s") for n, value in zip(sizes, seconds)]
    small = pretraining_model(scale, bench.device, queue_size=scale.small_queue)
    batch = training_batch(scale, bench.device, sizes[1])
    queues = [TrainingStep(small, batch), TrainingStep(model, batch, step.optimizer)]
    of_small, of_large = median_seconds(bench.repeats, *queues)
    name = f"train_queue_{model.config.queue_size}_over_{scale.small_queue}"
    return [*rows, row(name, of_large, of_small, "s")]


# What else there is


def alternatives(bench: Bench) -> list[Row]:
    """One photo with 14 phrases, by us at 256 and 384 pixels, and by others at theirs."""
    model = grounding_model(bench.scale, bench.device)
    functions = {
        size: partial(evaluate, model, evaluation_batch(bench.scale, bench.device, size, 1, NUM_PHRASES))
        for size in bench.scale.image_sizes
    }
    functions |= {name: build(bench.device, bench.quick) for name, build in ALTERNATIVES.items()}
    seconds = dict(zip(functions, median_seconds(bench.repeats, *functions.values())))
    rows = []
    for name in ALTERNATIVES:
        size = "384px" if name.startswith("blip") else "256px"
        rows.append(row(f"{size}_over_{name}", 1 / seconds[size], 1 / seconds[name], "photos/s"))
    return rows


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "evaluation": evaluation,
    "evaluation_384px": partial(evaluation, size="384px", precisions=("fp32",)),
    "training": training,
    "memory": memory,
    "scaling": scaling,
    "alternatives": alternatives,
}


def table(rows: list[Row]) -> str:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

    lines = [["", "ours", "baseline", "ratio", "unit"]]
    lines += [[r["name"], cell(r["ours"]), cell(r["baseline"]), cell(r["ratio"]), r["unit"]] for r in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}" + "".join(f"  {text:>{width}}" for text, width in zip(numbers, widths[1:])) + f"  {unit}"
        for name, *numbers, unit in lines
    )


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return f"torch {torch.__version__}, {name}, {torch.get_num_threads()} CPU threads"


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run? The numbers mean nothing")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs that a median is of, after one that is not counted"
    )
    parser.add_argument(
        "--output", type=Path, help=f"JSON file (default: {RESULTS.name} beside this file, for a full run)"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    bench = Bench(scale_of(device, options.quick), device, options.repeats)
    print(f"{machine(bench.device)}{'; a tiny model, not the sizes that the names say' if options.quick else ''}")
    rows = []
    for name in options.only:
        start = time.perf_counter()
        found = PARTS[name](bench)
        rows += found
        print(f"\n{table(found)}\n({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    is_full = not options.quick and options.only == list(PARTS)
    output = options.output or (RESULTS if is_full else None)
    if output is not None:
        output.write_text(json.dumps(rows, indent=2) + "\n")
        print(f"\n{output} written.")
    return rows


if __name__ == "__main__":
    main()
