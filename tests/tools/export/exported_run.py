"""The folder of a run with random weights, for tests of exported files."""

from pathlib import Path

import numpy as np
import torch
from coco_sets import valid_content, write_set
from small_run import network_on, save

CLASSES = ["cat", "dög", "<b>|x"]
LEVELS = ["p3", "p4", "p5", "p6", "p7"]


def write_run(folder: Path, *overrides: object, levels: list[str] = LEVELS) -> Path:
    """Writes config.yaml and model_final.pth of a model that detects much in noise only."""
    content = valid_content()
    content["categories"].append({"id": 9, "name": CLASSES[2]})
    write_set(folder, content)
    cfg, model = network_on(
        folder,
        *("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.IN_FEATURES", levels),
        *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "FrozenBN"),
        *("MODEL.RETINANET.NMS_THRESH_TEST", 0.7),
        *overrides,
    )
    with torch.no_grad():
        model.head.cls_score.weight *= 0.15
        model.head.cls_score.bias -= 1
        model.head.bbox_pred.weight *= 0.1
        for name, value in model.backbone.named_buffers():
            if name.endswith(("norm.running_var", "norm.weight")):  # not the identity
                value.uniform_(0.5, 1.5)
    save(cfg, model, CLASSES)
    return folder / "out"


def blocks(number: int, height: int, width: int) -> np.ndarray:
    """Returns (N, H, W, 3) uint8: squares of random colors, the same for each size."""
    rng = np.random.default_rng(height * width)
    small = (number, -(-height // 8), -(-width // 8), 3)
    large = rng.integers(0, 256, small, dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return large[:, :height, :width]
