"""What makes the network itself faster without changing what it computes, up to rounding."""

from itertools import pairwise

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..engine.amp import DTYPES
from .fast_conv import fold_norms_for_inference, make_convolutions_fast


def speed_up(network: nn.Module, cfg: CfgNode) -> None:
    """In place, for training and inference: memory format, convolutions, ReLUs, compilation."""
    if cfg.MODEL.ACCELERATION.CHANNELS_LAST:
        network.to(memory_format=torch.channels_last)
    make_convolutions_fast(
        network,
        fold_norms=cfg.MODEL.ACCELERATION.FOLD_NORMS,
        winograd=cfg.MODEL.ACCELERATION.WINOGRAD,
    )
    for sequence in [x for x in network.modules() if isinstance(x, nn.Sequential)]:
        for i, (before, layer) in enumerate(pairwise(sequence), start=1):
            if type(layer) is nn.ReLU and _forgets_its_output(before):
                sequence[i] = nn.ReLU(inplace=True)  # a new one: others may share the old
    if cfg.MODEL.COMPILE:
        torch._dynamo.config.suppress_errors = True  # what does not compile runs as it is
        for name in ("backbone", "head"):
            network.get_submodule(name).compile()


def _forgets_its_output(layer: nn.Module) -> bool:
    """Whether neither the layer nor its derivative looks again at what it gave."""
    kinds = (nn.Conv2d, nn.GroupNorm, _NormBase)
    return isinstance(layer, kinds) and getattr(layer, "activation", None) is None


@torch.no_grad()
def speed_up_inference(network: nn.Module, cfg: CfgNode) -> str:
    """In place, once the weights are loaded and for good: the network can no longer be trained.

    It is to run under autocast to ``TEST.DTYPE``, if that is not float32.

    Returns:
        what was done, for the log.
    """
    folded = fold_norms_for_inference(network) if cfg.MODEL.ACCELERATION.FOLD_NORMS else 0
    dtype = DTYPES[cfg.TEST.DTYPE]
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # autocast would convert its weights at each call
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    parameter.data = parameter.to(dtype)
    if cfg.MODEL.COMPILE:
        torch._inductor.config.freezing = True  # weights are constants: laid out once
    return (
        f"{cfg.TEST.DTYPE} (TEST.DTYPE), channels last: {cfg.MODEL.ACCELERATION.CHANNELS_LAST} "
        f"(MODEL.ACCELERATION.CHANNELS_LAST), norms folded into convolutions: {folded} (MODEL.ACCELERATION.FOLD_NORMS), "
        f"Winograd's algorithm on a CPU: {cfg.MODEL.ACCELERATION.WINOGRAD} (MODEL.ACCELERATION.WINOGRAD), "
        f"compiled: {cfg.MODEL.COMPILE} (MODEL.COMPILE)"
    )
