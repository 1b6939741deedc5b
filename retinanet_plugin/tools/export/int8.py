"""8-bit ONNX: convolutions by integers, their ranges measured on training pictures."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...runtimes.exported_files import needed
from .files import INPUT


def quantise(source: Path, target: Path, pictures: Iterable[np.ndarray]) -> None:
    """Writes a quantised copy of an ONNX file of ours, with its metadata.

    The last convolutions of the head stay as they are: 256 logits are too few to rank detections
    by. So does everything after them, and the first convolution, whose inputs are pixels.

    Args:
        pictures: batches as the file takes them.
    """
    onnx = needed("onnx", "onnx")
    quantization = needed("onnxruntime.quantization", "onnxruntime")
    shape_inference = needed("onnxruntime.quantization.shape_inference", "onnxruntime")
    prepared = target.with_name(f"{target.stem}-prepared.onnx")
    # Fuses what the quantiser looks for; ONNX's own shapes are enough for it.
    shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(target),
        _reader(quantization, pictures),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MaxPool"],
        nodes_to_exclude=_kept(onnx.load(str(prepared)).graph),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    prepared.unlink()
    model, stored = onnx.load(str(target)), onnx.load(str(source)).metadata_props
    del model.metadata_props[:]
    model.metadata_props.extend(stored)
    _leave_out_unused_operators(model)
    onnx.save(model, str(target))


def _leave_out_unused_operators(model: Any) -> None:
    """Of the sets that ONNX Runtime declares: other runtimes may know only those used."""
    used = {node.domain for node in model.graph.node}
    declared = [x for x in model.opset_import if x.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(declared)


def _kept(graph: Any) -> list[str]:
    """Names of the convolutions that no other follows or precedes."""
    makers = {name: node for node in graph.node for name in node.output}
    after: set[str] = set()
    before: set[str] = set()  # convolutions that another precedes
    names = [node.name for node in graph.node if node.op_type == "Conv"]
    for node in graph.node:
        if node.op_type == "Conv":
            found = list(_convolutions_before(makers, node))
            after |= set(found)
            if found:
                before.add(node.name)
    return [name for name in names if name not in after or name not in before]


def _convolutions_before(makers: dict[str, Any], node: Any) -> Iterator[str]:
    """Those from which a path without another leads to the node."""
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


def _reader(quantization: Any, pictures: Iterable[np.ndarray]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._pictures = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._pictures, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
