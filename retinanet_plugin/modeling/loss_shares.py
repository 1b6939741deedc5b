"""The imbalance that the focal loss is about, recorded in training: paper, section 3."""

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from ..losses import ClassLoss
from .assigner import SparseTargets

# Steps that a record is made of: as many as lie between two lines of detectron2's writers.
PERIOD = 20


class LossShares:
    """Puts into detectron2's event storage, every 20 steps, what was seen since.

    | name | meaning |
    | --- | --- |
    | ``anchors/positive``, ``/ignored``, ``/negative`` | anchors of a picture, on average |
    | ``loss_cls_share/positive`` | of the class loss, what logits of positive anchors hold |
    | ``loss_cls_share/negative`` | what those of negative anchors hold; together 1 |

    All K logits of a positive anchor count as its own. With a loss that chooses among the anchors,
    the shares are those of the chosen. Sums stay on the device, so that it is waited for once in 20
    steps. Each worker looks at its own pictures; the writers show those of the first.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._pictures = self._positive = self._ignored = self._anchors = 0
        self._of_positives: Tensor | float = 0.0
        self._total: Tensor | float = 0.0

    @torch.no_grad()
    def add(self, targets: SparseTargets, num_images: int, loss: ClassLoss) -> None:
        """Looks at a step, if an event storage is there to record it.

        Args:
            targets: of the step's pictures.
            num_images: how many they are.
            loss: the class loss.
        """
        if not has_event_storage():
            return
        self._pictures += num_images
        self._positive += len(targets.anchor)
        self._ignored += len(targets.ignored_anchor)
        self._anchors += num_images * targets.grid.num_anchors
        self._of_positives = self._of_positives + loss.of_positives()
        self._total = self._total + loss.total.detach()
        storage = get_event_storage()
        if (storage.iter + 1) % PERIOD == 0:
            negative = self._anchors - self._positive - self._ignored
            found = {
                "anchors/positive": self._positive / self._pictures,
                "anchors/ignored": self._ignored / self._pictures,
                "anchors/negative": negative / self._pictures,
            }
            total = float(self._total)
            if total > 0:
                share = float(self._of_positives) / total
                found |= {"loss_cls_share/positive": share, "loss_cls_share/negative": 1 - share}
            for name, value in found.items():
                # An average of 20 steps already: not to be smoothed again.
                storage.put_scalar(name, value, smoothing_hint=False)
            self._clear()
