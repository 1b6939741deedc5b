"""8-bit ONNX: convolutions of integers, with ranges measured on training images."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...runtimes.backends import optional_import
from .writers import INPUT


def quantize(source: Path, target: Path, batches: Iterable[np.ndarray]) -> None:
    """Writes a quantized copy of an exported ONNX file.

    The last convolutions of the head stay in float32: 256 different logits are too few to rank
    detections by. So does the first convolution, which reads pixels.

    Args:
        batches: inputs of the file, to measure ranges on.
    """
    onnx = optional_import("onnx", "onnx")
    quantization: Any = optional_import("onnxruntime.quantization", "onnxruntime")
    shape_inference = optional_import("onnxruntime.quantization.shape_inference", "onnxruntime")
    prepared = target.with_name(f"{target.stem}-prepared.onnx")
    # Fuses what the quantizer looks for. ONNX's own shape inference suffices.
    shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    inputs = iter(batches)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({INPUT: batch} for batch in inputs), None)

    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MaxPool"],
        nodes_to_exclude=_outer_convolutions(onnx.load(str(prepared)).graph),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    prepared.unlink()
    model, stored = onnx.load(str(target)), onnx.load(str(source)).metadata_props
    del model.metadata_props[:]
    model.metadata_props.extend(stored)
    # ONNX Runtime declares operator sets that other runtimes do not know, used or not.
    used = {node.domain for node in model.graph.node}
    declared = [x for x in model.opset_import if x.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(declared)
    onnx.save(model, str(target))


def _outer_convolutions(graph: Any) -> list[str]:
    """Returns the names of the convolutions that none precedes or none follows."""
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    preceding = {x.name: set(_preceding_convolutions(makers, x)) for x in convolutions}
    followed = set().union(*preceding.values())
    return [name for name, before in preceding.items() if not before or name not in followed]


def _preceding_convolutions(makers: dict[str, Any], node: Any) -> Iterator[str]:
    """Yields the convolutions from which a path without another one leads to the node."""
    seen, waiting = set(), list(node.input)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        if makers[name].op_type == "Conv":
            yield makers[name].name
        else:
            waiting += makers[name].input
