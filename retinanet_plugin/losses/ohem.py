"""Online hard example mining, what the paper compares the focal loss with: table 1d."""

import torch
from torch import Tensor
from torchvision.ops import nms

from .binary import BinaryLoss
from .cross_entropy import CrossEntropyLoss
from .selecting import SelectingLoss
from .targets import AnchorBoxes

# Anchors that NMS looks at together: about as many as a batch needs.
_CANDIDATES = 1024


class OhemLoss(SelectingLoss):
    """Cross entropy of the hardest anchors.

    Section 5.2: examples are scored by their loss, suppressed by that score, and the hardest make
    the minibatch. Here an example is an anchor that is not ignored, its score the sum of its K
    cross entropies, and its box for the NMS the anchor itself. The paper does not say whether a
    batch is drawn from a picture or from several: here each picture gives its own, as detectron2
    samples for an RPN.

    With a ``positive_fraction`` f, still after one NMS over positives and negatives together, a
    batch takes the hardest positives, at most ``f * batch_size`` and at least one, and to each
    ``(1 - f) / f`` of the hardest negatives: at 0.25 the paper's 1:3. So where few positives are
    left the batch is small; where there is none, it has the negatives that go with one.

    Args:
        batch_size: anchors that each picture trains on, at least 1.
        nms_thresh: IoU above which the easier of two anchors is dropped, above 0; 1 drops none.
        positive_fraction: f, in [0, 1); 0: the hardest train, whatever they are.
        loss: of a logit; None: plain cross entropy, as in the paper.
    """

    def __init__(
        self,
        batch_size: int = 128,
        nms_thresh: float = 0.5,
        positive_fraction: float = 0.0,
        loss: BinaryLoss | None = None,
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
        self.loss = loss or CrossEntropyLoss()

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        return self.loss.value(logits, positive)

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        return self.loss.value_and_grad(logits, positive)

    def choose(self, losses: Tensor, positive: Tensor, anchors: AnchorBoxes) -> Tensor:
        """As the base; greedy NMS by falling loss, of equal losses the lowest number first.

        It ends where the batch is full. Those suppressed are found from the kept ones by geometry:
        no list of kept boxes is compared with the others.
        """
        # IoUs are float32: so is what they are compared with, or one that equals it may pass.
        threshold = torch.tensor(self.nms_thresh, dtype=torch.float32).item()
        waiting = losses.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        kept = torch.empty(0, dtype=torch.int64)
        while True:
            batch = self._batch(kept, positive, waiting)
            if batch is not None:
                return batch
            # topk alone would choose among equals as it likes.
            least = waiting.topk(min(_CANDIDATES, len(waiting))).values[-1]
            (found,) = torch.where((waiting >= least) & (waiting > -torch.inf))
            order = waiting[found].sort(descending=True, stable=True).indices[:_CANDIDATES]
            candidates = found[order]
            boxes = anchors.boxes_of(candidates)
            # Ranks are scores without equals.
            rank = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
            keep = nms(boxes, rank, threshold)
            kept = torch.cat([kept, candidates[keep]])
            waiting[candidates] = -torch.inf
            for _, near, iou in anchors.pairs(boxes[keep], threshold, False):
                waiting[near[iou > threshold]] = -torch.inf

    def _batch(self, kept: Tensor, positive: Tensor, waiting: Tensor) -> Tensor | None:
        """The batch out of ``kept``, hardest first; None if those ``waiting`` may change it."""
        is_last = not (waiting > -torch.inf).any()
        if self.positive_fraction == 0:
            return kept[: self.batch_size] if is_last or len(kept) >= self.batch_size else None
        most = max(1, round(self.positive_fraction * self.batch_size))
        positives = kept[positive[kept]][:most]
        if len(positives) < most and (waiting[positive] > -torch.inf).any():
            return None
        share = (1 - self.positive_fraction) / self.positive_fraction
        wanted = min(round(max(1, len(positives)) * share), self.batch_size - len(positives))
        negatives = kept[~positive[kept]]
        if len(negatives) < wanted and not is_last:
            return None
        return torch.cat([positives, negatives[:wanted]])
