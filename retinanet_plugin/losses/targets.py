"""What goes between a dense head and its classification loss, whichever the loss is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2


class AnchorBoxes(Protocol):
    """The R anchors of a picture, XYXY in pixels, on the CPU."""

    def boxes_of(self, anchor: Tensor) -> Tensor:
        """(P, 4): the anchors with the numbers (P,), int64."""

    def pairs(
        self, boxes: Tensor, at_least: float, and_best: bool
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """In pieces: box, anchor and IoU of the pairs that have one of ``at_least``, above 0.

        A few pairs below may be among them; ``and_best`` asks for those with the highest IoU of a
        box besides.
        """


@dataclass(frozen=True)
class ClassTargets:
    """What the R anchors of each of N pictures are, for a head with K classes.

    Args:
        num_classes: K.
        positives: a tensor a level, int64, on the logits' device: the memory offsets
            (:func:`~retinanet_plugin.losses.offsets_of`) of the logits whose class is present.
        ignored: likewise, of the first class of each ignored anchor.
        labels: gives (N, R), int64, on the CPU: the class of each anchor, :data:`BACKGROUND` or
            :data:`IGNORED`. Anchors are numbered over all levels, within one by row, column, then
            anchor at that place.
        anchors: their boxes.
    """

    num_classes: int
    positives: Sequence[Tensor]
    ignored: Sequence[Tensor]
    labels: Callable[[], Tensor]
    anchors: AnchorBoxes


class ClassLoss(NamedTuple):
    """The class loss of a batch.

    Attributes:
        total: scalar, float32 (float64 for float64 logits), to be differentiated.
        of_positives: gives what of it the logits of positive anchors hold, all K of each; only
            who asks pays for it.
    """

    total: Tensor
    of_positives: Callable[[], Tensor]


def by_level(
    logits: Sequence[Tensor], num_classes: int, image: Tensor, anchor: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Where in the outputs of a head the given anchors are.

    Args:
        logits: a tensor a level, (N, A*K, H, W).
        image, anchor: (P,) int64; anchors as numbered in :class:`ClassTargets`.

    Yields:
        a level: which of the P are its own; and of each image, cell (``y * W + x``), and anchor at
        that place (0 .. A - 1).
    """
    start = 0
    for x in logits:
        per_place = x.shape[1] // num_classes
        stop = start + x[0, 0].numel() * per_place
        (here,) = torch.where((anchor >= start) & (anchor < stop))
        place = anchor[here] - start
        cell = torch.div(place, per_place, rounding_mode="floor")
        yield here, image[here], cell, place - cell * per_place
        start = stop


def send(parts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Moves the parts to a device in one copy, which the CPU does not wait for."""
    joined = torch.cat(list(parts))
    pinned = device.type == "cuda" and joined.device.type == "cpu"
    if pinned:
        joined = joined.pin_memory()
    return joined.to(device, non_blocking=pinned).split([len(x) for x in parts])


_counted: list[int] | None = None


@contextmanager
def counted_alone() -> Iterator[list[int]]:
    """Where :func:`mean_over_workers` takes this worker for the only one; gives what it counted.

    For workers that do not keep step, as in an evaluation.
    """
    global _counted
    _counted = []
    try:
        yield _counted
    finally:
        _counted = None


def mean_over_workers(count: int, device: torch.device) -> Tensor:
    """What each worker divides a sum by, for a mean over what ``count`` counts in all of them.

    Gradients are averaged over the workers, so that is the mean count of a worker. It is never
    less than one over all of them together.

    Returns:
        a scalar, float32.
    """
    if _counted is not None:
        _counted.append(count)
        return torch.full((), max(float(count), 1.0), device=device)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    workers = torch.distributed.get_world_size() if distributed else 1
    # Filled, not copied there: a copy of a number on the CPU would be waited for.
    mean = torch.full((), float(count), device=device)
    if workers > 1:
        torch.distributed.all_reduce(mean)
        mean /= workers
    return mean.clamp_(min=1 / workers)
