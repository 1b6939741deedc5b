"""The base class of what a head trains its logits with."""

from collections.abc import Sequence

from torch import Tensor

from .targets import SparseTargets


class ClassLoss:
    """A classification loss of a batch, over all anchors or over some of them."""

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
        """Computes the loss of a batch, as a head calls it.

        Args:
            logits: a tensor per level, (N, A*K, H, W), contiguous or channels-last.
            targets: what the anchors are trained towards.
            positives: a tensor per level, int64, on the logits' device: memory offsets
                (:func:`offsets_of`) of the logits whose class is present.
            ignored: likewise, of the first class of each ignored anchor.
            num_classes: K.
            normalizer: scalar that the sum is divided by; None: the sum itself.

        Returns:
            a scalar, float32 (float64 for float64 logits).
        """
        raise NotImplementedError
