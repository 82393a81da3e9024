"""The programs of `export_albef` as ONNX, in float32 or with weights of eight bits, and how they are run."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxscript import ir
from torch import Tensor
from torch.export import ExportedProgram

OPSET = 20


def save_onnx(program: ExportedProgram, path: Path, facts: dict[str, dict[str, str]]) -> None:
    """Inputs, outputs and their free sizes are named as in `facts`, of `export_albef.description`."""
    # Of torchvision's operations, which no program has, and of constants too large to be folded.
    for name in "torch.onnx", "onnxscript":
        logging.getLogger(name).setLevel(logging.ERROR)
    outputs = list(facts["outputs"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
        saved = torch.onnx.export(program, (), output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False)
    for value in [*saved.model.graph.inputs, *saved.model.graph.outputs]:
        _, _, shape = (facts["inputs"] | facts["outputs"])[value.name].partition(" ")
        sizes = [size for size in shape.strip("()").split(", ") if size]
        value.shape = ir.Shape([int(size) if size.isdigit() else size for size in sizes])
    saved.save(path)


def make_int8(path: Path) -> None:
    """Weights of matrix products become int8, a scale a column; activations do as they come, a scale a tensor."""
    folded = path.with_suffix(".folded")
    # Transposes of weights, in the backward pass, become weights first: only those are made int8.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    model = onnx.load(folded)
    add_pre_process_metadata(model)  # else it is asked for what was just done
    quantize_dynamic(model, path, op_types_to_quantize=["MatMul"], per_channel=True)
    folded.unlink()


def load_onnx(path: Path) -> Callable[..., dict[str, Tensor | int]]:
    """A program of tensors by name, on as many threads of the CPU as torch's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(**inputs: Tensor | int) -> dict[str, Tensor | int]:
        arrays = {name: torch.as_tensor(value).numpy() for name, value in inputs.items()}
        found = [torch.as_tensor(value) for value in session.run(names, arrays)]
        return {name: value if value.ndim else int(value) for name, value in zip(names, found, strict=True)}

    return run
