"""Online hard example mining, what the paper compares the focal loss with: table 1d."""

import torch
from torch import Tensor
from torchvision.ops import nms

from .binary import BinaryLoss
from .cross_entropy import CrossEntropyLoss
from .mined import SelectingLoss
from .targets import AnchorBoxes

# Anchors that NMS looks at together: about as many as a batch needs.
_CANDIDATES = 1024
# When to give up settling anchors one by one: anchors looked at, and what a step costs, in these.
_MOST_LOOKED_AT = 16 * 1024
_STEP = 32


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
        no list of kept boxes is compared with the others. Positives easier than the negatives of
        the batch are settled one by one, so that NMS need not come down to them.
        """
        # IoUs are float32: so is what they are compared with, or one that equals it may pass.
        threshold = torch.tensor(self.nms_thresh, dtype=torch.float32).item()
        losses = losses.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        waiting = losses > -torch.inf
        order = losses.sort(descending=True, stable=True).indices[: int(waiting.sum())]
        kept = torch.empty(0, dtype=torch.int64)
        for candidates in order.split(_CANDIDATES):
            if self._has_enough(kept, positive, waiting):
                break
            kept = torch.cat([kept, _keep(candidates, waiting, anchors, threshold)])
        if self.positive_fraction == 0:
            return kept[: self.batch_size]
        positives = kept[positive[kept]]
        if len(positives) < self._most_positives:
            easy = order[(positive & waiting)[order]]
            easy = easy[_survives(easy, order, waiting, anchors, threshold)]
            positives = torch.cat([positives, easy])
        positives = positives[: self._most_positives]
        negatives = kept[~positive[kept]]
        wanted = min(self._negatives_for(len(positives)), self.batch_size - len(positives))
        return torch.cat([positives, negatives[:wanted]])

    @property
    def _most_positives(self) -> int:
        return max(1, round(self.positive_fraction * self.batch_size))

    def _negatives_for(self, positives: int) -> int:
        share = (1 - self.positive_fraction) / self.positive_fraction
        return round(max(1, positives) * share)

    def _has_enough(self, kept: Tensor, positive: Tensor, waiting: Tensor) -> bool:
        """Whether ``kept`` has all of the batch but positives that are ``waiting``."""
        if self.positive_fraction == 0:
            return len(kept) >= self.batch_size
        positives = int(positive[kept].sum())
        possible = min(positives + int((positive & waiting).sum()), self._most_positives)
        return len(kept) - positives >= min(self._negatives_for(possible), self.batch_size)


def _keep(candidates: Tensor, waiting: Tensor, anchors: AnchorBoxes, threshold: float) -> Tensor:
    """NMS of those still waiting among the hardest; they and all they suppress wait no longer."""
    candidates = candidates[waiting[candidates]]
    boxes = anchors.boxes_of(candidates)
    # Ranks are scores without equals.
    rank = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    keep = nms(boxes, rank, threshold)
    waiting[candidates] = False
    for _, near, iou in anchors.pairs(boxes[keep], threshold, False):
        waiting[near[iou > threshold]] = False
    return candidates[keep]


def _survives(
    asked: Tensor, order: Tensor, waiting: Tensor, anchors: AnchorBoxes, threshold: float
) -> Tensor:
    """Which of some anchors greedy NMS keeps, without an NMS of all.

    An anchor is kept if no harder one that overlaps it is. So each waits for the hardest that
    overlaps it, that one for the hardest that overlaps it, and so on up to one without a harder:
    it is kept, and those that it overlaps are not. Few of all anchors are on such ways; where many
    are, as among equal losses, NMS of those that still wait takes over.

    Args:
        asked: (P,), int64, anchor numbers.
        order: those that are not ignored, by falling hardness.
        waiting: (R,), bool: those that neither are kept nor overlap a kept one; changed here.
        anchors: their boxes.
        threshold: of the IoU, exactly a float32.

    Returns:
        (P,), bool.
    """
    rank = torch.full_like(waiting, len(order), dtype=torch.int64)
    rank[order] = torch.arange(len(order))
    hardest = rank.clone()  # of each on the way, the lowest rank that still overlaps it
    kept = torch.zeros_like(waiting)
    seen = torch.zeros_like(waiting)
    on_way, new = asked[:0], asked
    of, near = asked[:0], asked[:0]  # the pairs that overlap
    looked_at = 0
    while waiting[asked].any() and looked_at < _MOST_LOOKED_AT:
        looked_at += len(new) + _STEP
        seen[new] = True
        pairs = anchors.pairs(anchors.boxes_of(new), threshold, False)
        found = [(new[i[iou > threshold]], j[iou > threshold]) for i, j, iou in pairs]
        of = torch.cat([of, *(i for i, _ in found)])
        near = torch.cat([near, *(j for _, j in found)])
        here = waiting[of] & waiting[near]
        of, near = of[here], near[here]
        on_way = torch.cat([on_way, new])
        on_way = on_way[waiting[on_way]]
        hardest[on_way] = rank[on_way]
        hardest.scatter_reduce_(0, of, rank[near], "amin")
        is_top = hardest[on_way] == rank[on_way]
        top = on_way[is_top]
        kept[top] = True
        waiting[top] = False
        waiting[near[hardest[of] == rank[of]]] = False
        new = order[hardest[on_way[~is_top]]].unique()
        new = new[waiting[new] & ~seen[new]]
    for candidates in order.split(_CANDIDATES):
        if not waiting[asked].any():
            break
        kept[_keep(candidates, waiting, anchors, threshold)] = True
    return kept[asked]
