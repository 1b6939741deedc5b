"""The losses of a test set, from the same forward passes as its detections."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor, nn

from ..data import ReadableDatasetMapper
from ..losses import MinedLoss
from ..modeling import FocalRetinaNet


class ValidationLoss(DatasetEvaluator):
    """The training losses over a whole test set, as if it were one batch.

    Sums over all images are divided by their number of positive anchors (by the number of chosen
    anchors, for a classification loss that chooses), whatever ``LOSS_NORMALIZER`` is. The model is
    not changed: norms work as in inference.
    """

    def __init__(self, model: FocalRetinaNet) -> None:
        self._model = model
        self._seen: Any = None  # features and predictions of the last forward pass
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    @torch.compiler.disable
    def watch(self, head: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keeps what the head got and predicted; a forward hook."""
        self._seen = inputs[0], outputs

    def process(self, inputs: list[dict[str, Any]], outputs: Any) -> None:
        """Adds the images of the last forward pass, if their ground truth is known."""
        if self._seen is None or not all("instances" in x for x in inputs):
            return
        (features, predictions), self._seen = self._seen, None
        targets = self._model.label_anchors(features, [x["instances"] for x in inputs])
        head = self._model.head
        losses = head.losses(predictions, targets, None)
        counts = dict.fromkeys(losses, targets.num_positives)
        cls_loss = getattr(head, "cls_loss", None)  # a custom head may have none
        if isinstance(cls_loss, MinedLoss):
            counts["loss_cls"] = len(cls_loss.chosen[0])
        for name, loss in losses.items():
            self._sums[name] += loss.double()
            self._counts[name] += counts[name]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Returns ``{"validation": {"total_loss": ..., "loss_cls": ..., ...}}``.

        Empty without ground truth, and in all processes except the main one.
        """
        own = {name: (float(x), self._counts[name]) for name, x in self._sums.items()}
        parts = comm.gather(own)
        if not any(count for part in parts for _, count in part.values()):
            return {}
        losses = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            sums, counts = zip(*(part[name] for part in parts if name in part), strict=True)
            losses[name] = sum(sums) / max(sum(counts), 1)
        return {"validation": {"total_loss": sum(losses.values()), **losses}}


@contextmanager
def validation_loss(cfg: CfgNode, model: nn.Module) -> Iterator[ValidationLoss | None]:
    """Yields an evaluator that watches the forward passes of ``model`` inside the block.

    Yields None if ``TEST.LOSS`` is False or the model is not a :class:`FocalRetinaNet`.
    """
    model = getattr(model, "module", model)  # of DistributedDataParallel
    if not cfg.TEST.LOSS or not isinstance(model, FocalRetinaNet):
        yield None
        return
    losses = ValidationLoss(model)
    hook = model.head.register_forward_hook(losses.watch)
    try:
        yield losses
    finally:
        hook.remove()


def mapper_with_truth(cfg: CfgNode) -> ReadableDatasetMapper:
    """Returns a mapper of test images that also gives the ground truth that training would have."""
    return ReadableDatasetMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, False))
