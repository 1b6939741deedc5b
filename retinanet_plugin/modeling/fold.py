"""Norms that only scale and shift, folded into the convolution before them.

A frozen batch norm multiplies and adds to each channel of what its convolution gives. The same
numbers follow from a convolution whose weights are multiplied and whose bias is added to: the two
passes over the features, and in training a third one back, are saved. Detectors fine-tune with
frozen norms, and in inference all batch norms are frozen.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenNormConv2d(Conv2d):
    """detectron2's ``Conv2d`` with a frozen batch norm, applied to its weights at each call.

    Parameters, their names and gradients, and buffers are those of the layer that it replaces.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        weight, bias = _folded(self)
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(network: nn.Module) -> None:
    """In place: frozen norms are applied to the weights from now on, in training and inference."""
    for layer in network.modules():
        if type(layer) is Conv2d and isinstance(layer.norm, FrozenBatchNorm2d):
            layer.__class__ = FrozenNormConv2d


@torch.no_grad()
def fold_norms_for_inference(network: nn.Module) -> int:
    """In place: every batch norm after a convolution becomes part of it, once and for good.

    The network gives the same features as in evaluation mode, up to rounding, and can no longer
    be trained or hold a checkpoint of the unfolded one.

    Returns:
        how many norms were folded.
    """
    folded = 0
    for layer in network.modules():
        norm = getattr(layer, "norm", None)
        if isinstance(layer, Conv2d) and isinstance(norm, (FrozenBatchNorm2d, _BatchNorm)):
            weight, bias = _folded(layer)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.bias = nn.Parameter(bias, requires_grad=False)
            layer.norm = None
            layer.__class__ = Conv2d
            folded += 1
    return folded


def _folded(conv: Conv2d) -> tuple[Tensor, Tensor]:
    """Weights (C_out, C_in, k, k) and bias (C_out) of the convolution and its norm as one."""
    norm = conv.norm
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return conv.weight * scale[:, None, None, None], bias
