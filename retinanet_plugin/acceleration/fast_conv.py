"""Convolutions that compute the same numbers, up to rounding, in less time.

A frozen batch norm scales and shifts each channel of its convolution's output. Scaling the weights
and shifting the bias instead saves two passes over the features, and a third one backward.
Detectors are fine-tuned with frozen norms, and in inference all batch norms are frozen. 3x3
convolutions, nine tenths of RetinaNet's work, can do with fewer multiplications: see
:mod:`~retinanet_plugin.acceleration.winograd`.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .winograd import is_faster, winograd_conv2d


class FastConv2d(Conv2d):
    """detectron2's ``Conv2d``, with the same parameters, buffers, names and gradients.

    Attributes:
        folds_norm: apply the norm to the weights, in each call.
        winograd: use Winograd's algorithm where it is faster.
    """

    folds_norm: bool = False
    winograd: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (N, C_in, H, W) to (N, C_out, H', W')."""
        weight, bias = _folded(self) if self.folds_norm else (self.weight, self.bias)
        if self.winograd and is_faster(x, weight):
            x = winograd_conv2d(x, weight, bias)
        else:
            x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        if self.norm is not None and not self.folds_norm:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def use_fast_convolutions(network: nn.Module, *, fold_norms: bool, winograd: bool) -> None:
    """Turns convolutions into :class:`FastConv2d` in place, for training and inference.

    Args:
        network: its ``nn.Conv2d`` and detectron2 ``Conv2d`` layers change.
        fold_norms: apply frozen norms to the weights.
        winograd: use Winograd's algorithm where it is faster.
    """
    for layer in network.modules():
        if type(layer) not in (nn.Conv2d, Conv2d):
            continue
        norm, activation = (getattr(layer, name, None) for name in ("norm", "activation"))
        if type(layer) is nn.Conv2d and not (norm is None and activation is None):
            continue  # attributes of someone else's, who calls them
        folds_norm = fold_norms and isinstance(norm, FrozenBatchNorm2d)
        suits = winograd and _is_plain_3x3(layer)
        if folds_norm or suits:
            layer.__class__ = FastConv2d
            fast = cast(FastConv2d, layer)
            fast.norm, fast.activation = norm, activation
            fast.folds_norm, fast.winograd = folds_norm, suits


@torch.no_grad()
def fold_norms(network: nn.Module) -> int:
    """Folds the batch norms of detectron2's ``Conv2d`` layers into their weights, in place.

    The network computes the features of evaluation mode, up to rounding. It can no longer be
    trained, nor load a checkpoint of the original network.

    Returns:
        the number of folded norms.
    """
    folded = 0
    for layer in network.modules():
        norm = getattr(layer, "norm", None)
        foldable = isinstance(norm, FrozenBatchNorm2d) or (
            isinstance(norm, _BatchNorm) and norm.affine and norm.track_running_stats
        )
        if isinstance(layer, Conv2d) and foldable:
            weight, bias = _folded(layer)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.bias = nn.Parameter(bias, requires_grad=False)
            layer.norm = None
            layer.folds_norm = False
            folded += 1
    return folded


def _is_plain_3x3(conv: Any) -> bool:
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    same = sizes == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.padding_mode == "zeros"
    return same and conv.groups == 1


def _folded(conv: Conv2d) -> tuple[Tensor, Tensor]:
    """Returns weights and bias of the convolution and its norm together."""
    norm = conv.norm
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return conv.weight * scale[:, None, None, None], bias
