"""The losses of a test set, from the same forward passes as its detections."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

    Sums over all pictures are divided by the number of their positive anchors, of all workers,
    whatever ``LOSS_NORMALIZER`` training has; of a class loss that chooses among the anchors, by
    the number of the chosen. Nothing in the model changes: norms are as in inference.

    See :func:`validation_loss`, which gives one what it works on.
    """

    def __init__(self, model: FocalRetinaNet) -> None:
        self._model = model
        self.outputs: tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]] | None = None
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def process(self, inputs: list[dict[str, Any]], outputs: Any) -> None:
        """Adds the pictures whose forward pass has just been."""
        if self.outputs is None or not all("instances" in x for x in inputs):
            return
        (features, predictions), self.outputs = self.outputs, None
        targets = self._model.label_anchors(features, [x["instances"] for x in inputs])
        head = self._model.head
        losses = head.losses(predictions, targets, None)
        counts = dict.fromkeys(losses, targets.num_positives)
        if isinstance(head.cls_loss, MinedLoss):
            counts["loss_cls"] = len(head.cls_loss.chosen[0])
        for name, loss in losses.items():
            self._sums[name] += loss.double()
            self._counts[name] += counts[name]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"validation": {"total_loss": ..., "loss_cls": ..., ...}}`` on the main process.

        Empty without any ground truth.
        """
        sums = {name: float(x) for name, x in self._sums.items()}
        parts = comm.gather((sums, dict(self._counts)))
        if not comm.is_main_process():
            return {}
        count: dict[str, int] = defaultdict(int)
        total: dict[str, float] = defaultdict(float)
        for sums, counts in parts:
            for name in sums:
                total[name] += sums[name]
                count[name] += counts[name]
        if not any(count.values()):
            return {}
        losses = {name: total[name] / max(count[name], 1) for name in total}
        return {"validation": {"total_loss": sum(losses.values()), **losses}}


@contextmanager
def validation_loss(cfg: CfgNode, model: nn.Module) -> Iterator[ValidationLoss | None]:
    """Where evaluating ``model`` tells the evaluator what its forward passes gave.

    Gives None if ``TEST.LOSS`` is False, or for a model whose losses are not known.
    """
    model = getattr(model, "module", model)  # of several workers
    if not cfg.TEST.LOSS or not isinstance(model, FocalRetinaNet):
        yield None
        return
    losses = ValidationLoss(model)
    infer = model.forward_inference

    def forward_inference(images: Any, features: Any, predictions: Any) -> Any:
        losses.outputs = features, predictions
        return infer(images, features, predictions)

    model.forward_inference = forward_inference
    try:
        yield losses
    finally:
        del model.forward_inference


def mapper_with_truth(cfg: CfgNode) -> ReadableDatasetMapper:
    """Gives test pictures as they are tested, with the ground truth that training would have."""
    return ReadableDatasetMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, False))
