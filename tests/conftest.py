"""Shared by all tests: a small detector, and random images and boxes."""

import logging
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from retinanet_plugin import get_config

# Comparisons to the last bit are made on the CPU, also where there is a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logs_reach_caplog() -> None:
    """Also after a test in which a command has set logs up, which ends their propagation."""
    logging.getLogger("retinanet_plugin").propagate = True


def small_config(*overrides: object) -> CfgNode:
    """A ResNet-18-FPN detector that a CPU runs in a fraction of a second."""
    return get_config(
        "Base-Scratch-R18.yaml",
        [
            *("MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "32"),
            *("MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.NUM_CLASSES", "7"),
            *map(str, overrides),
        ],
    )


def spread_logits(model: torch.nn.Module, spread: float = 3.0) -> None:
    """Makes random weights give logits and deltas as spread out as a trained model's."""
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
        model.head.cls_score.weight *= spread
        model.head.cls_score.bias.fill_(-spread)
        model.head.bbox_pred.weight *= 0.3


def random_image(
    height: int, width: int, num_boxes: int, num_classes: int = 7, largest: float = 0.7
) -> dict[str, object]:
    """An image of noise with random boxes, as detectron2's data loader gives it."""
    size = torch.tensor([width, height])
    extent = (torch.rand(num_boxes, 2) ** 2 * largest + 0.02) * size
    corner = torch.rand(num_boxes, 2) * (size - extent)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
    instances.gt_classes = torch.randint(num_classes, (num_boxes,))
    image = torch.rand(3, height, width) * 255
    return {"image": image, "instances": instances, "height": height, "width": width}
