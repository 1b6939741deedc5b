"""Non-maximum suppression by ONNX's own operator, which runtimes have fast code for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...runtimes.backends import optional_import


@torch.library.custom_op("retinanet_plugin::nms_mask", mutates_args=())
def nms_mask(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    num_classes: int,
    max_detections: int,
    threshold: float,
) -> Tensor:
    """Returns which boxes remain, at most ``max_detections`` per class: (N, M), bool.

    A placeholder in the exported graph: only its translation to ONNX can be computed. The other
    arguments are those of :func:`traceable_nms.nms_top_k`.
    """
    raise NotImplementedError


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, *_: object) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def onnx_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    max_detections: int,
    threshold: float,
    *,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Replaces :func:`traceable_nms.nms_top_k` in graphs that become ONNX."""
    mask = nms_mask(boxes, scores, classes, num_classes, max_detections, threshold)
    kept, index = (scores * mask).topk(max_detections)
    return index, kept


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the ``custom_translation_table`` of ``torch.onnx.export``."""
    op: Any = optional_import("onnxscript").opset18

    def translate(
        boxes: Any, scores: Any, classes: Any, num_classes: int, count: int, threshold: float
    ) -> Any:
        # Scores from (N, M) to (N, K, M): 0 in the rows of other classes.
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        axis = op.Constant(value_ints=[1])
        labels = op.Range(zero, op.Constant(value_int=num_classes), one)
        labels = op.Reshape(labels, op.Constant(value_ints=[1, -1, 1]))
        is_class = op.Equal(op.Unsqueeze(classes, axis), labels)
        selected = op.NonMaxSuppression(
            boxes,
            op.Mul(op.Unsqueeze(scores, axis), op.Cast(is_class, to=1)),
            op.Constant(value_ints=[count]),
            op.Constant(value_floats=[threshold]),
            op.Constant(value_floats=[0.0]),
        )
        # Rows of image, class and candidate.
        position = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        ones = op.Expand(op.Constant(value_float=1.0), op.Slice(op.Shape(selected), [0], [1]))
        zeros = op.Mul(scores, op.Constant(value_float=0.0))
        return op.Cast(op.ScatterND(zeros, position, ones), to=9)

    return {torch.ops.retinanet_plugin.nms_mask.default: translate}
