"""Makes a network faster without changing its results, up to rounding: MODEL.ACCELERATION."""

from itertools import pairwise

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .fast_conv import fold_norms, use_fast_convolutions


def accelerate(network: nn.Module, cfg: CfgNode) -> None:
    """Accelerates a network in place, for training and inference.

    Changes the memory format, convolutions and ReLUs, and compiles backbone and head.
    """
    keys = cfg.MODEL.ACCELERATION
    if keys.CHANNELS_LAST:
        network.to(memory_format=torch.channels_last)
    use_fast_convolutions(network, fold_norms=keys.FOLD_NORMS, winograd=keys.WINOGRAD)
    for sequence in [x for x in network.modules() if isinstance(x, nn.Sequential)]:
        for i, (before, layer) in enumerate(pairwise(sequence), start=1):
            if type(layer) is nn.ReLU and _output_is_free(before):
                sequence[i] = nn.ReLU(inplace=True)  # a new one: others may share the old one
    if cfg.MODEL.COMPILE:
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs eagerly
        for name in ("backbone", "head"):
            network.get_submodule(name).compile()


def _output_is_free(layer: nn.Module) -> bool:
    """Returns whether neither the layer nor its derivative reads its output again."""
    types = (nn.Conv2d, nn.GroupNorm, _NormBase)
    return isinstance(layer, types) and getattr(layer, "activation", None) is None


@torch.no_grad()
def accelerate_inference(network: nn.Module, cfg: CfgNode) -> str:
    """Accelerates a network in place, after its weights are loaded; it can no longer be trained.

    Run it under autocast to ``TEST.DTYPE``, unless that is float32.

    Returns:
        a description for the log.
    """
    keys = cfg.MODEL.ACCELERATION
    folded = fold_norms(network) if keys.FOLD_NORMS else 0
    dtype = getattr(torch, cfg.TEST.DTYPE)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # autocast would convert its weights in each call
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    parameter.data = parameter.to(dtype)
    if cfg.MODEL.COMPILE:
        torch._inductor.config.freezing = True  # treats weights as constants
    return (
        f"{cfg.TEST.DTYPE}, channels last: {keys.CHANNELS_LAST}, norms folded into convolutions: "
        f"{folded}, Winograd convolutions on a CPU: {keys.WINOGRAD}, compiled: {cfg.MODEL.COMPILE} "
        "(TEST.DTYPE, MODEL.ACCELERATION, MODEL.COMPILE)"
    )
