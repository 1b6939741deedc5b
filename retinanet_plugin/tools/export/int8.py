"""8-bit ONNX: convolutions of integers, with ranges measured on training images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...runtimes.backends import optional_import
from .writers import INPUT

_LAST = ("head.cls_score.weight", "head.bbox_pred.weight")


def quantize(source: Path, target: Path, batches: Iterable[np.ndarray]) -> None:
    """Writes a quantized copy of an exported ONNX file.

    The last convolutions of the head stay in float32: 256 different logits are too few to rank
    detections by. So does the first convolution, which reads pixels.

    Args:
        batches: inputs of the file, to measure ranges on.
    """
    onnx = optional_import("onnx")
    quantization: Any = optional_import("onnxruntime.quantization")
    shape_inference = optional_import("onnxruntime.quantization.shape_inference")
    prepared = target.with_name("prepared.onnx")
    # Fuses what the quantizer looks for. ONNX's own shape inference suffices.
    shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    convolutions = [x for x in onnx.load(str(prepared)).graph.node if x.op_type == "Conv"]
    excluded = convolutions[:1] + [x for x in convolutions if x.input[1].startswith(_LAST)]
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
        nodes_to_exclude=[x.name for x in excluded],
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
