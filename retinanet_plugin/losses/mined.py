"""A classification loss over some of the anchors, chosen by how large their loss is."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .binary import BinaryLoss
from .class_loss import ClassLoss
from .layout import anchor_logits, chunk_size, in_memory_order
from .normalizer import mean_over_workers
from .targets import IGNORED, AnchorBoxes, SparseTargets


class MinedLoss(ClassLoss):
    """The mean of a binary loss over the anchors that ``choose`` selects in each image.

    The loss of an anchor is the sum over its K logits. The mean is over the chosen anchors of the
    whole batch, over all workers; it is 0, with a gradient of 0, if none is chosen. The value of
    ``normalizer`` is not used: if it is None, the result is the sum, else the mean.

    The losses to choose by are computed in chunks, without gradients. Choosing happens on the
    CPU, so it waits for a GPU once per batch.

    Args:
        binary: the loss of a logit.
        choose: called as ``choose(losses, positive, anchors)`` for each image, on the CPU:
            ``losses``, (R,), float32 (float64 for float64 logits), ``-inf`` for ignored anchors;
            ``positive``, (R,), bool; and the boxes of the anchors. Returns the indices of the
            anchors to train on, (B,), int64; none twice and none ignored.

    Attributes:
        chosen: image and anchor index of the anchors chosen in the latest call, (C,), int64.
    """

    def __init__(
        self, binary: BinaryLoss, choose: Callable[[Tensor, Tensor, AnchorBoxes], Tensor]
    ) -> None:
        self.binary = binary
        self.choose = choose
        none = torch.zeros(0, dtype=torch.int64)
        self.chosen = (none, none)

    def __call__(
        self,
        logits: Sequence[Tensor],
        targets: SparseTargets,
        *,
        positives: Sequence[Tensor],
        ignored: Sequence[Tensor],
        num_classes: int,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        labels = targets.labels(len(logits[0]))
        losses = anchor_losses(self.binary, logits, positives, num_classes).cpu()
        losses[labels == IGNORED] = -torch.inf
        chosen = [
            self.choose(losses_i, labels_i >= 0, targets.grid)
            for losses_i, labels_i in zip(losses, labels, strict=True)
        ]
        image = torch.repeat_interleave(torch.tensor([len(x) for x in chosen]))
        anchor = torch.cat(chosen)
        self.chosen = image, anchor
        rows, is_class = anchor_logits(logits, num_classes, image, anchor, labels[image, anchor])
        total = self.binary(rows, is_class).sum(1).sum()
        return total if normalizer is None else total / mean_over_workers(len(anchor), total.device)


@torch.no_grad()
def anchor_losses(
    binary: BinaryLoss, logits: Sequence[Tensor], positives: Sequence[Tensor], num_classes: int
) -> Tensor:
    """Computes the loss of every anchor, summed over its K logits.

    Args:
        logits: a tensor per level, (N, A*K, H, W), contiguous or channels-last.
        positives: see :meth:`ClassLoss.__call__`.

    Returns:
        (N, R), float32 (float64 for float64 logits), on the logits' device.
    """
    levels = zip(logits, positives, strict=True)
    return torch.cat([_level_losses(binary, x, index, num_classes) for x, index in levels], dim=1)


def _level_losses(binary: BinaryLoss, x: Tensor, positives: Tensor, num_classes: int) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    flat = in_memory_order(x.detach())
    # Distance in memory between the K logits of an anchor: 1, or the number of cells.
    spacing = x.stride(1)
    groups = flat.view(-1, num_classes, spacing)
    losses = torch.empty((len(groups), spacing), dtype=dtype, device=x.device)
    chunk = chunk_size(x)
    width = max(1, min(spacing, chunk // num_classes))
    count = max(1, chunk // (num_classes * width))
    for i in range(0, len(groups), count):
        for j in range(0, spacing, width):
            here = groups[i : i + count, :, j : j + width].to(dtype)
            losses[i : i + count, j : j + width] = binary.value(here, False).sum(1)
    logit = flat[positives].to(dtype)
    group = torch.div(positives, num_classes * spacing, rounding_mode="floor")
    correction = binary.value(logit, True) - binary.value(logit, False)
    losses.view(-1)[group * spacing + positives % spacing] += correction
    return losses.view(len(x), -1, spacing).transpose(1, 2).flatten(1)
