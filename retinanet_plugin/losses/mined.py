"""Class losses that train on some anchors only, chosen by how large their loss is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .binary import BinaryLoss
from .dense import in_memory_order, offsets_of
from .per_anchor import anchor_losses
from .targets import (
    IGNORED,
    AnchorBoxes,
    ClassLoss,
    ClassTargets,
    by_level,
    mean_over_workers,
    send,
)


class SelectingLoss(BinaryLoss):
    """Base of the losses that choose among the anchors of each picture, by their losses.

    The loss of an anchor is the sum over its K logits. A subclass writes :meth:`value`, the loss of
    a logit, and :meth:`choose`. What trains is the mean over the chosen anchors of the whole batch,
    over all workers; the normalizer of other losses, the number of positives, plays no part. Where
    nothing is chosen, loss and gradient are 0.

    Losses to choose by are computed in pieces, and are all that stands beside the logits until
    backward. Choosing is done on the CPU, so a GPU is waited for, once a batch.
    """

    def choose(self, losses: Tensor, positive: Tensor, anchors: AnchorBoxes) -> Tensor:
        """Which anchors of a picture train.

        Args:
            losses: (R,), float32 (float64 for float64 logits), on the CPU; ``-inf`` for ignored
                anchors.
            positive: (R,), bool, on the CPU.
            anchors: their boxes.

        Returns:
            (B,), int64, anchor numbers; none twice, none ignored.
        """
        raise NotImplementedError

    def over_anchors(
        self, logits: Sequence[Tensor], targets: ClassTargets, normalizer: Tensor | float
    ) -> ClassLoss:
        labels = targets.labels()
        losses = anchor_losses(self, logits, targets.positives, targets.num_classes).cpu()
        losses[labels == IGNORED] = -torch.inf
        chosen = [
            self.choose(losses_i, labels_i >= 0, targets.anchors)
            for losses_i, labels_i in zip(losses, labels, strict=True)
        ]
        image = torch.repeat_interleave(torch.tensor([len(x) for x in chosen]))
        anchor = torch.cat(chosen)
        first, order = [], []
        places = by_level(logits, targets.num_classes, image, anchor)
        for x, (here, image_i, cell, place) in zip(logits, places, strict=True):
            first.append(offsets_of(x, image_i, cell, place * targets.num_classes))
            order.append(here)
        label = labels[image, anchor][torch.cat(order)]
        device = logits[0].device
        *first, label = send([*first, label], device)
        classes = torch.arange(targets.num_classes, device=device)
        rows = torch.cat(
            [
                _Take.apply(x, index[:, None] + classes * x.stride(1))
                for x, index in zip(logits, first, strict=True)
            ]
        )
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        values = self(rows, label[:, None] == classes).sum(1)
        count = mean_over_workers(len(anchor), device)
        return ClassLoss(
            values.sum() / count,
            lambda: torch.where(label >= 0, values.detach(), 0).sum() / count,
        )


class _Take(torch.autograd.Function):
    """Elements at memory offsets, each at most once; their gradient is one dense tensor."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        ctx.geometry = dense.shape, dense.stride()
        return in_memory_order(dense)[offsets]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        grad = upstream.new_empty(0).new_empty_strided(*ctx.geometry).zero_()
        in_memory_order(grad)[offsets] = upstream
        return grad, None
