"""Online hard example mining, which table 1d of the paper compares the focal loss with."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.ops import nms

from .targets import AnchorBoxes

# Anchors that NMS processes together: about as many as a minibatch needs.
_CANDIDATES = 1024


class HardExamples:
    """Chooses the hardest anchors of an image, for :class:`~retinanet_plugin.losses.MinedLoss`.

    Section 5.2 of the paper: examples are scored by their loss, NMS is applied, and the
    highest-scoring ones form the minibatch. Here an example is an anchor that is not ignored, with
    its own box for the NMS. The paper does not say whether a minibatch is drawn per image or from
    several; here each image gives its own, as in detectron2's sampling for an RPN.

    With a ``positive_fraction`` f, the minibatch takes, after the same NMS, the hardest positives,
    at most ``f * batch_size`` and at least one, and ``(1 - f) / f`` times as many of the hardest
    negatives; f = 0.25 is the paper's 1:3. Few positives make a small minibatch; an image without
    any gives the negatives for one.

    Args:
        batch_size: anchors to train on per image, at least 1.
        nms_thresh: IoU above which the easier of two anchors is dropped, above 0; 1 drops none.
        positive_fraction: f, in [0, 1); 0 takes the hardest, positive or negative.
    """

    def __init__(
        self, batch_size: int = 128, nms_thresh: float = 0.5, positive_fraction: float = 0.0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 < nms_thresh <= 1:
            raise ValueError(f"nms_thresh must be above 0 and at most 1, got {nms_thresh}")
        if not 0 <= positive_fraction < 1:
            raise ValueError(
                f"positive_fraction must be at least 0 and below 1, got {positive_fraction}"
            )
        self.batch_size = batch_size
        self.nms_thresh = nms_thresh
        self.positive_fraction = positive_fraction

    def __call__(self, losses: Tensor, positive: Tensor, anchors: AnchorBoxes) -> Tensor:
        """Returns the indices of the chosen anchors; arguments as ``MinedLoss.choose`` has them."""
        kept = torch.empty(0, dtype=torch.int64)
        for kept, is_open in _greedy_nms(losses, anchors, self.nms_thresh):
            if self._is_enough(kept, positive & is_open, positive):
                break
        if self.positive_fraction == 0:
            return kept[: self.batch_size]
        positives = kept[positive[kept]][: self._max_positives]
        negatives = kept[~positive[kept]]
        count = min(self._negatives_for(len(positives)), self.batch_size - len(positives))
        return torch.cat([positives, negatives[:count]])

    @property
    def _max_positives(self) -> int:
        return max(1, round(self.positive_fraction * self.batch_size))

    def _negatives_for(self, positives: int) -> int:
        ratio = (1 - self.positive_fraction) / self.positive_fraction
        return round(max(1, positives) * ratio)

    def _is_enough(self, kept: Tensor, open_positive: Tensor, positive: Tensor) -> bool:
        """Returns whether ``kept`` holds the minibatch, whatever the open anchors are."""
        if self.positive_fraction == 0:
            return len(kept) >= self.batch_size
        positives = int(positive[kept].sum())
        if positives < self._max_positives and open_positive.any():
            return False
        wanted = self._negatives_for(min(positives, self._max_positives))
        return len(kept) - positives >= min(wanted, self.batch_size)


def _greedy_nms(
    losses: Tensor, anchors: AnchorBoxes, threshold: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Applies greedy NMS to anchors by falling loss, some at a time, so that the caller can stop.

    What a kept anchor suppresses is found by geometry, so no list of kept boxes is compared with
    all others.

    Yields:
        the anchors kept so far, by falling loss, then by index; and which of all R anchors are
        neither kept nor suppressed yet, bool.
    """
    # Those of a diverged model come first, so that the loss shows it.
    losses = losses.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # IoUs are float32, and so is what they are compared with.
    threshold = torch.tensor(threshold, dtype=torch.float32).item()
    is_open = losses > -torch.inf
    order = losses.sort(descending=True, stable=True).indices[: int(is_open.sum())]
    kept = order[:0]
    for candidates in order.split(_CANDIDATES):
        candidates = candidates[is_open[candidates]]
        rank = torch.arange(len(candidates), 0, -1, dtype=torch.float32)  # scores without ties
        new = candidates[nms(anchors.boxes_of(candidates), rank, threshold)]
        is_open[candidates] = False
        for _, anchor, iou in anchors.pairs(anchors.boxes_of(new), threshold, include_best=False):
            is_open[anchor[iou > threshold]] = False
        kept = torch.cat([kept, new])
        yield kept, is_open
