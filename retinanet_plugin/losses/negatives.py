"""The bulk of a dense class loss: all logits treated as negatives, eager or compiled."""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .binary import BinaryLoss
from .layout import chunk_size


class Negatives:
    """Sums a binary loss over logits whose classes are absent.

    Args:
        binary: the loss of a logit.
        compile: use a kernel that ``torch.compile`` makes for all lengths. If that fails, because
            there is no compiler or it does not understand the loss, one warning says so, and
            ``compile`` becomes False.
    """

    def __init__(self, binary: BinaryLoss, compile: bool = False) -> None:
        self.binary = binary
        self.compile = compile

    def chunk_size(self, logits: Tensor) -> int:
        """Returns how many of the flat ``logits`` to sum at a time."""
        if self.compile and not logits.is_cpu:
            return max(1, len(logits))
        # A compiled kernel needs one buffer instead of five.
        return chunk_size(logits) * (4 if self.compile else 1)

    def sum(self, logits: Tensor, grad: Tensor | None, scale: Tensor) -> Tensor:
        """Sums the losses, in chunks.

        Args:
            logits: (n,)
            grad: (n,), of the logits' dtype: filled with the derivatives times ``scale``; or None.
            scale: a scalar, of the dtype to compute in.

        Returns:
            a scalar, of the dtype of ``scale``; it is not multiplied by ``scale``.
        """
        chunk = self.chunk_size(logits)
        starts = range(0, len(logits), chunk)
        # One tensor for all sums: allocated one by one between the buffers of the chunks, they
        # would make the heap grow with each chunk.
        sums = scale.new_zeros(len(starts))
        for i, start in enumerate(starts):
            here = slice(start, start + chunk)
            sums[i] = self._sum(logits[here], None if grad is None else grad[here], scale)
        return sums.sum()

    def _sum(self, logits: Tensor, grad: Tensor | None, scale: Tensor) -> Tensor:
        if self.compile and len(logits) > 1:  # a length of 1 would get a kernel of its own
            try:
                return self._compiled_sum(logits, grad, scale)
            except Exception as error:
                self.compile = False
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(
                    "The class loss cannot be compiled here; it runs uncompiled, with the same "
                    f"result but slower: {reason}",
                    stacklevel=2,
                )
        return _losses(self.binary, logits, grad, scale).sum()

    def _compiled_sum(self, logits: Tensor, grad: Tensor | None, scale: Tensor) -> Tensor:
        for x in (logits, grad):
            if x is not None:
                torch._dynamo.maybe_mark_dynamic(x, 0)
        # PyTorch 2.14 may turn the loss's own numbers into variables, and then use the kernel of
        # one gamma for another.
        with torch._dynamo.config.patch(specialize_float=True):
            return _compiled(torch.get_num_threads())(self.binary, logits, grad, scale).sum()


@functools.cache
def _compiled(threads: int) -> Callable[..., Tensor]:
    # Without the number of threads, PyTorch's disk cache would return a kernel for another number.
    return torch.compile(_losses, fullgraph=True, options={"cpp.threads": threads})


def _losses(binary: BinaryLoss, logits: Tensor, grad: Tensor | None, scale: Tensor) -> Tensor:
    """Computes the losses, or their sum where the compiler's sum is accurate enough."""
    x = logits.to(scale.dtype)
    # A compiler drops a derivative that is not used.
    if grad is None and not torch.compiler.is_compiling():
        return binary.value(x, False).sum()
    value, derivative = binary.value_and_grad(x, False)
    if grad is not None:
        torch.mul(derivative, scale, out=grad)
    # Compiled for a CPU, a sum would add millions of numbers one after another in float32.
    return value if value.is_cpu else value.sum()
