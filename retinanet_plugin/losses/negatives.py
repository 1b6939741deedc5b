"""The bulk of a dense class loss: all logits as those of absent classes, eager or compiled."""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .binary import BinaryLoss


def sum_as_negatives(
    loss: BinaryLoss, logits: Tensor, grad: Tensor | None, scale: Tensor
) -> Tensor:
    """Sum of the losses of logits whose classes are absent.

    With ``loss.compiled``, a kernel that ``torch.compile`` makes for all lengths. Where it cannot
    (no compiler, or a loss that it does not understand) a warning says so, once a loss, and the
    operations run one by one from then on.

    Args:
        logits: (n,)
        grad: (n,), of the logits' dtype, or None: filled with the derivatives times ``scale``.
        scale: a scalar, of the dtype to compute in.

    Returns:
        a scalar, of the dtype of ``scale``, which it is not multiplied by.
    """
    # A length of 1 would be compiled for itself.
    if loss.compiled and len(logits) > 1:
        try:
            for x in (logits, grad):
                if x is not None:
                    torch._dynamo.maybe_mark_dynamic(x, 0)
            # PyTorch 2.14 would soon compile the loss's own numbers as variables, and then answer
            # for one gamma with the kernel of another.
            with torch._dynamo.config.patch(specialize_float=True):
                return _compiled(torch.get_num_threads())(loss, logits, grad, scale).sum()
        except Exception as error:
            loss.compiled = False
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"The class loss cannot be compiled here and runs uncompiled, with the same "
                f"result but slower: {reason}",
                stacklevel=2,
            )
    return _negatives(loss, logits, grad, scale).sum()


@functools.cache
def _compiled(threads: int) -> Callable[..., Tensor]:
    # Named, or a kernel made for one thread is taken from PyTorch's cache on disk for many.
    return torch.compile(_negatives, fullgraph=True, options={"cpp.threads": threads})


def _negatives(loss: BinaryLoss, logits: Tensor, grad: Tensor | None, scale: Tensor) -> Tensor:
    """The losses or, where the compiler makes no sum that is exact enough, their sum."""
    x = logits.to(scale.dtype)
    # Compiled, a derivative that nobody reads costs nothing.
    if grad is None and not torch.compiler.is_compiling():
        return loss.value(x, False).sum()
    value, derivative = loss.value_and_grad(x, False)
    if grad is not None:
        torch.mul(derivative, scale, out=grad)
    # Compiled for a CPU, a sum adds millions of numbers one after another in float32.
    return value if value.is_cpu else value.sum()
