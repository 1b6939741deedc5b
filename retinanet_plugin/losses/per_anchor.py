"""Class losses summed over the K logits of an anchor, from sparse targets and without gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .binary import BinaryLoss
from .dense import in_memory_order, piece_of
from .targets import ClassTargets


@torch.no_grad()
def anchor_losses(
    loss: BinaryLoss, logits: Sequence[Tensor], positives: Sequence[Tensor], num_classes: int
) -> Tensor:
    """The loss of every anchor: the sum over its K logits.

    Args:
        logits: a tensor a level, (N, A*K, H, W), contiguous or channels-last.
        positives: see :class:`ClassTargets`.

    Returns:
        (N, R), float32 (float64 for float64 logits), on the logits' device.
    """
    return torch.cat(
        [
            _anchor_losses_of_level(loss, x, index, num_classes)
            for x, index in zip(logits, positives, strict=True)
        ],
        dim=1,
    )


def _anchor_losses_of_level(
    loss: BinaryLoss, x: Tensor, positives: Tensor, num_classes: int
) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    flat = in_memory_order(x.detach())
    # In memory the K logits of an anchor are so far apart: 1, or the cells of the level.
    spacing = x.stride(1)
    groups = flat.view(-1, num_classes, spacing)
    losses = torch.empty((len(groups), spacing), dtype=dtype, device=x.device)
    piece = piece_of(x)
    width = max(1, min(spacing, piece // num_classes))
    count = max(1, piece // (num_classes * width))
    for i in range(0, len(groups), count):
        for j in range(0, spacing, width):
            here = groups[i : i + count, :, j : j + width].to(dtype)
            losses[i : i + count, j : j + width] = loss.value(here, False).sum(1)
    found = flat[positives].to(dtype)
    group = torch.div(positives, num_classes * spacing, rounding_mode="floor")
    losses.view(-1)[group * spacing + positives % spacing] += loss.value(found, True) - loss.value(
        found, False
    )
    return losses.view(len(x), -1, spacing).transpose(1, 2).flatten(1)


@torch.no_grad()
def loss_of_positives(loss: BinaryLoss, logits: Sequence[Tensor], targets: ClassTargets) -> Tensor:
    """Sum of the losses of all K logits of each positive anchor: a scalar."""
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=logits[0].device)
    classes = torch.arange(targets.num_classes, device=logits[0].device)
    for x, index in zip(logits, targets.positives, strict=True):
        spacing = x.stride(1)
        own = torch.div(index, spacing, rounding_mode="floor") % targets.num_classes
        first = index - own * spacing
        rows = in_memory_order(x.detach())[first[:, None] + classes * spacing].to(dtype)
        total += loss(rows, own[:, None] == classes).sum()
    return total
