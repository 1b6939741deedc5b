"""The highest score that a detector predicts, including scores below the threshold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import Tensor, nn


def highest_of_workers(score: float | None) -> float | None:
    """Returns the highest score of all workers on the main process; None if unknown."""
    return max((x for x in comm.gather(score) if x is not None), default=None)


@contextmanager
def highest_score(
    model: nn.Module, classes: Tensor | None = None
) -> Iterator[Callable[[], float | None]]:
    """Watches the logits of a dense detector, which may be in DistributedDataParallel.

    Args:
        classes: class ids to look at, (k,) int64; None: all.

    Yields:
        a function that returns the highest score of all images seen so far (NaN if one was), or
        None before the first image and for other detectors.
    """
    network: Any = getattr(model, "module", model)
    highest: Tensor | None = None

    @torch.compiler.disable
    def watch(head: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal highest
        for level in outputs[0]:
            if classes is not None:
                level = level.unflatten(1, (-1, network.num_classes))[:, :, classes]
            maximum = level.detach().amax()
            highest = maximum if highest is None else torch.maximum(highest, maximum)

    if not isinstance(network, DenseDetector):
        yield lambda: None
        return
    hook = network.head.register_forward_hook(watch)
    try:
        yield lambda: None if highest is None else highest.float().sigmoid().item()
    finally:
        hook.remove()
