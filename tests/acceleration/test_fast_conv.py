"""Norms folded into weights, against norms applied to features."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from torch import nn

from retinanet_plugin.acceleration.fast_conv import fold_norms, use_fast_convolutions


def randomize(norm: nn.Module) -> None:
    """The initial statistics would leave nothing to fold."""
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean"):
            getattr(norm, name).normal_()
        norm.running_var.uniform_(0.1, 4.0)


def layer(norm: str, bias: bool, activation: object = None) -> nn.Module:
    conv = Conv2d(6, 8, 3, 2, 1, groups=2, bias=bias, norm=get_norm(norm, 8), activation=activation)
    randomize(conv.norm)
    return nn.Sequential(conv).double()


@pytest.mark.parametrize("bias", [True, False])
def test_training_keeps_features_gradients_and_names(bias: bool) -> None:
    plain = layer("FrozenBN", bias, activation=nn.functional.relu)
    folded = copy.deepcopy(plain)
    use_fast_convolutions(folded, fold_norms=True, winograd=False)
    assert type(folded[0]) is not type(plain[0])
    assert list(folded.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    results = []
    for network in (plain, folded):
        y = network(x)
        grads = torch.autograd.grad(y, [x, *network.parameters()], upstream)
        results.append((y, *grads))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN"])
@pytest.mark.parametrize("bias", [True, False])
def test_inference_keeps_features(norm: str, bias: bool) -> None:
    plain = layer(norm, bias).eval()
    folded = copy.deepcopy(plain)
    if norm == "FrozenBN":
        use_fast_convolutions(folded, fold_norms=True, winograd=False)  # first, as in evaluation
    assert fold_norms(folded) == 1
    assert folded[0].norm is None
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-10, atol=1e-12)


def test_other_layers_stay() -> None:
    owned = nn.Conv2d(3, 3, 3, padding=1)
    owned.activation = "relu"  # set by other code
    no_affine = Conv2d(3, 32, 1, norm=nn.BatchNorm2d(32, affine=False))
    group_norm = Conv2d(32, 32, 1, norm=get_norm("GN", 32))
    network = nn.Sequential(owned, no_affine, group_norm).eval()
    x = torch.randn(1, 3, 5, 5)
    expected = network(x)
    use_fast_convolutions(network, fold_norms=True, winograd=True)
    assert fold_norms(network) == 0
    assert torch.equal(network(x), expected)
