"""The highest score that a detector gives, for when none of them is above the threshold."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn


def highest_of_workers(score: float | None) -> float | None:
    """The highest that any worker has seen, on the main process; None if it is not known."""
    return max((x for x in comm.gather(score) if x is not None), default=None)


@contextmanager
def highest_score(
    model: nn.Module, classes: Tensor | None = None
) -> Iterator[Callable[[], float | None]]:
    """Tells of a ``FocalRetinaNet``, also within DistributedDataParallel, how high its scores go.

    The decoder drops what is below the threshold, so its input is watched: one look at the logits.

    Args:
        classes: those that count, (k,) int64; None: all.

    Yields:
        a function that gives the highest score of all pictures seen within the block so far; NaN
        if there was one; None before the first, and for other detectors.
    """
    network: Any = getattr(model, "module", model)
    decode = getattr(network, "decoder", None)
    if decode is None:
        yield lambda: None
        return
    highest: Tensor | None = None

    def watch(logits: Sequence[Tensor], *others: Any) -> Any:
        nonlocal highest
        for level in logits:
            if classes is not None:
                level = level.unflatten(1, (-1, network.num_classes))[:, :, classes]
            most = level.amax()
            highest = most if highest is None else torch.maximum(highest, most)
        return decode(logits, *others)

    network.decoder = watch
    try:
        yield lambda: None if highest is None else highest.float().sigmoid().item()
    finally:
        network.decoder = decode
