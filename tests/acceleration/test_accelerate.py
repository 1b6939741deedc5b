"""An accelerated model against the plain one: losses, gradients, and what each key turns on."""

from typing import Any

import pytest
import torch
from conftest import random_image, small_config, spread_logits
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import Tensor, nn

from retinanet_plugin.acceleration import fast_conv
from retinanet_plugin.acceleration.accelerate import accelerate
from retinanet_plugin.engine import Trainer

KEYS = ("CHANNELS_LAST", "FOLD_NORMS", "WINOGRAD")


@pytest.mark.parametrize("on", [True, False])
def test_losses_and_gradients(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [x for key in KEYS for x in (f"MODEL.ACCELERATION.{key}", on)]
    cfg = small_config("MODEL.FPN.OUT_CHANNELS", 128, "MODEL.RESNETS.NORM", "FrozenBN", *keys)
    plain, fast = build_model(cfg), Trainer.build_model(cfg)
    spread_logits(plain)
    for norm in (m for m in plain.modules() if isinstance(m, FrozenBatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2.0)
    fast.load_state_dict(plain.state_dict())
    winograd, norms = _count_calls(fast, monkeypatch)
    image = random_image(256, 320, 5)
    losses, expected = fast([image]), plain([image])
    assert bool(winograd) == on and bool(norms) != on
    assert all(m.inplace for m in fast.head.modules() if isinstance(m, nn.ReLU))
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    for values in (losses, expected):
        sum(values.values()).backward()
    # Single gradients flip at the kink of a ReLU, but their norm does not change much.
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            limit = 0.02 * b.grad.norm() + 1e-6 if on else 0
            assert (a.grad - b.grad).norm() <= limit, name


def _count_calls(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[list, list]:
    """The calls of Winograd's convolution from now on, and of the model's norms."""
    winograd, norms, convolve = [], [], fast_conv.winograd_conv2d

    def counted(*args: Any) -> Tensor:
        winograd.append(1)
        return convolve(*args)

    monkeypatch.setattr(fast_conv, "winograd_conv2d", counted)
    for norm in (m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)):
        norm.register_forward_hook(lambda *_: norms.append(1))
    return winograd, norms


def test_relus_with_a_shared_input_stay() -> None:
    shared = nn.ReLU()
    curved = Conv2d(3, 3, 1, activation=torch.sigmoid)
    network = nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared, curved, nn.ReLU())
    accelerate(network, small_config("MODEL.COMPILE", False))
    assert [m.inplace for m in network if isinstance(m, nn.ReLU)] == [False, True, False]
