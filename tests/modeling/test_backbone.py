"""P6 and P7 against their convolutions in float64."""

import pytest
import torch
import torch.nn.functional as F
from conftest import small_config
from detectron2.modeling import build_backbone

OURS = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_p6p7_backbone")


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("source, channels", [("res5", 512), ("p5", 32)])
def test_p6_and_p7(source: str, channels: int, relu: bool) -> None:
    cfg = small_config(*OURS, "MODEL.FPN.P6_INPUT", source, "MODEL.FPN.P7_RELU", relu)
    backbone = build_backbone(cfg).double().eval()
    seen = {}
    backbone.bottom_up.register_forward_hook(lambda _, __, out: seen.update(out))
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 128, dtype=torch.float64)
        seen.update(levels := backbone(image))
        top = backbone.top_block
        assert top.p6.weight.shape == (32, channels, 3, 3)
        p6 = F.conv2d(seen[source], top.p6.weight, top.p6.bias, stride=2, padding=1)
        between = p6.clamp(min=0) if relu else p6
        p7 = F.conv2d(between, top.p7.weight, top.p7.bias, stride=2, padding=1)
    torch.testing.assert_close(levels["p6"], p6)
    torch.testing.assert_close(levels["p7"], p7)
    assert list(levels) == ["p3", "p4", "p5", "p6", "p7"]


def test_parameter_names_are_detectron2s() -> None:
    names = []
    for extra in ((), OURS):
        torch.manual_seed(1)
        backbone = build_backbone(small_config(*extra)).eval()
        names.append(list(backbone.state_dict()))
    assert names[0] == names[1]
