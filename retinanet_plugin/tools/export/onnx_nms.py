"""Non-maximum suppression as ONNX's own operator, which each runtime has its fastest code for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...runtimes.exported_files import needed


@torch.library.custom_op("retinanet_plugin::kept_by_nms", mutates_args=())
def kept_by_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, num_classes: int, most: int, threshold: float
) -> Tensor:
    """(N, M), bool: which boxes remain, of each class at most the ``most`` best.

    Only its translation to ONNX computes anything.

    Args:
        boxes, scores, classes, threshold: as of :func:`picking.pick`.
    """
    raise NotImplementedError


@kept_by_nms.register_fake
def _(
    boxes: Tensor, scores: Tensor, classes: Tensor, num_classes: int, most: int, threshold: float
) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def select_by_onnx(num_classes: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """What does the work of :func:`picking.pick` in a graph that becomes ONNX."""

    def select(
        boxes: Tensor, scores: Tensor, classes: Tensor, most: int, threshold: float
    ) -> tuple[Tensor, Tensor]:
        kept = kept_by_nms(boxes, scores, classes, num_classes, most, threshold)
        picked, index = (scores * kept).topk(most)
        return index, picked

    return select


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """``custom_translation_table`` of ``torch.onnx.export``."""
    op: Any = needed("onnxscript", "onnxscript").opset18

    def translated(
        boxes: Any, scores: Any, classes: Any, num_classes: int, most: int, threshold: float
    ) -> Any:
        # (N, M) to (N, K, M): a class's own candidates have their scores, the others 0.
        labels = op.Reshape(
            op.Range(
                op.Constant(value_int=0),
                op.Constant(value_int=num_classes),
                op.Constant(value_int=1),
            ),
            op.Constant(value_ints=[1, -1, 1]),
        )
        one = op.Constant(value_ints=[1])
        of_class = op.Equal(op.Unsqueeze(classes, one), labels)
        by_class = op.Mul(op.Unsqueeze(scores, one), op.Cast(of_class, to=1))
        selected = op.NonMaxSuppression(
            boxes,
            by_class,
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[threshold]),
            op.Constant(value_floats=[0.0]),
        )
        # Rows of picture, class and candidate.
        place = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        found = op.Expand(op.Constant(value_float=1.0), op.Slice(op.Shape(selected), [0], [1]))
        nothing = op.Mul(scores, op.Constant(value_float=0.0))
        return op.Cast(op.ScatterND(nothing, place, found), to=9)

    return {torch.ops.retinanet_plugin.kept_by_nms.default: translated}
