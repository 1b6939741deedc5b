"""Records the class imbalance that the focal loss is about; section 3 of the paper."""

from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from ..errors import UserError
from ..losses import DenseLoss, MinedLoss
from ..losses.layout import anchor_logits
from ..modeling import FocalRetinaNet

PERIOD = 20  # steps per record, as between two lines of detectron2's writers


class LossShares(HookBase):
    """Every 20 steps puts into the event storage what was seen since the last time.

    | name | meaning |
    | --- | --- |
    | ``anchors/positive``, ``/ignored``, ``/negative`` | anchors per image, on average |
    | ``loss_cls_share/positive`` | share of the class loss from the logits of positive anchors |
    | ``loss_cls_share/negative`` | the rest, from those of negative anchors |

    All K logits of a positive anchor count as positive. For a loss that chooses among the anchors,
    the shares are those of the chosen ones. Sums stay on the device, so that it is waited for once
    in 20 steps. Each worker records its own images; the writers show those of the first worker.

    Args:
        model: a :class:`FocalRetinaNet`, perhaps wrapped for data-parallel training.

    Raises:
        UserError: if its head has no ``cls_loss`` that sums or averages a binary loss.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = getattr(model, "module", model)
        head = getattr(self._model, "head", None)
        if not isinstance(getattr(head, "cls_loss", None), DenseLoss | MinedLoss):
            raise UserError(
                f"MODEL.RETINANET.LOG_LOSS_SHARES: the model's head ({type(head).__name__}) has no "
                "cls_loss that is a DenseLoss or a MinedLoss; set the key to False."
            )
        self._logits: list[Tensor] = []
        self._clear()

    def _clear(self) -> None:
        self._images = self._positive = self._ignored = self._anchors = 0
        self._loss_of_positives: Tensor | float = 0.0
        self._loss: Tensor | float = 0.0

    def before_train(self) -> None:
        self._model.head.register_forward_hook(self._keep_logits)
        self._model.register_forward_hook(self._add)

    @torch.compiler.disable
    def _keep_logits(self, _: nn.Module, __: Any, predictions: tuple[list[Tensor], Any]) -> None:
        self._logits = predictions[0] if self._model.training else []

    @torch.no_grad()
    def _add(self, model: FocalRetinaNet, _: Any, losses: dict[str, Tensor]) -> None:
        """Adds a training step, before its backward pass."""
        if not model.training:
            return
        logits, self._logits = self._logits, []
        targets, loss = model.targets, model.head.cls_loss
        image, anchor, label = targets.image, targets.anchor, targets.gt_class
        if isinstance(loss, MinedLoss):
            image, anchor = loss.chosen
            label = targets.labels(len(logits[0]))[image, anchor]
        rows, is_class = anchor_logits(logits, model.num_classes, image, anchor, label)
        values = loss.binary(rows, is_class).sum(1)
        of_positives = torch.where(is_class.any(1), values, 0).sum()
        is_mined = isinstance(loss, MinedLoss)
        normalizer = max(len(anchor), 1) if is_mined else model.normalizer
        self._loss_of_positives += of_positives / normalizer
        self._loss += values.sum() / normalizer if is_mined else losses["loss_cls"].detach()
        self._images += len(logits[0])
        self._anchors += len(logits[0]) * targets.grid.num_anchors
        self._positive += targets.num_positives
        self._ignored += len(targets.ignored_anchor)

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % PERIOD or not self._images:
            return
        counts = {"positive": self._positive, "ignored": self._ignored}
        counts["negative"] = self._anchors - self._positive - self._ignored
        values = {f"anchors/{name}": count / self._images for name, count in counts.items()}
        total = float(self._loss)
        if total > 0:
            share = float(self._loss_of_positives) / total
            values |= {"loss_cls_share/positive": share, "loss_cls_share/negative": 1 - share}
        for name, value in values.items():
            # Already an average of 20 steps: not to be smoothed again.
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        self._clear()
