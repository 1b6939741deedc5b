"""Builds the three detectors, and random images for them.

detectron2's RetinaNet and ours have the same weights and settings. torchvision's has the same
backbone, frozen layers and thresholds, but weights of its own.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ...acceleration.accelerate import accelerate_inference
from ...config import get_config
from ...engine import Trainer
from ...errors import UserError

# The share of logits that score above the threshold: 20,000 of the 14.6 million of an image of
# 800 x 1216 with 80 classes.
SHARE_ABOVE = 20_000 / 14.6e6

Predict = Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]]


@dataclass(frozen=True)
class Setting:
    """What the detectors are measured on: a config, and the numbers that vary."""

    config: str
    overrides: tuple[str, ...]
    height: int
    width: int
    batch: int
    boxes: int  # per image
    device: str

    def cfg(self, *overrides: str) -> CfgNode:
        """Returns our config: without weights, and with detectron2's normalizer of losses."""
        return get_config(
            self.config,
            [
                *self.overrides,
                *("MODEL.WEIGHTS", "", "MODEL.DEVICE", self.device),
                *("MODEL.RETINANET.LOSS_NORMALIZER", "ema"),
                *overrides,
            ],
        )

    @cached_property
    def strides(self) -> list[int]:
        return [2 ** int(name[1:]) for name in self.cfg().MODEL.RETINANET.IN_FEATURES]

    @cached_property
    def level_shapes(self) -> list[tuple[int, int]]:
        """(H, W) of each feature level; images are padded to multiples of 32."""
        height, width = (math.ceil(x / 32) * 32 for x in (self.height, self.width))
        return [(math.ceil(height / s), math.ceil(width / s)) for s in self.strides]

    @cached_property
    def anchors_per_location(self) -> int:
        anchors = self.cfg().MODEL.ANCHOR_GENERATOR
        return int(anchors.SCALES_PER_OCTAVE * len(anchors.ASPECT_RATIOS[0]))

    @cached_property
    def num_anchors(self) -> int:
        """Number of anchors per image."""
        return sum(h * w for h, w in self.level_shapes) * self.anchors_per_location

    @cached_property
    def num_classes(self) -> int:
        return int(self.cfg().MODEL.RETINANET.NUM_CLASSES)

    @cached_property
    def num_logits(self) -> int:
        """Number of class logits per batch."""
        return self.batch * self.num_anchors * self.num_classes


class Bench:
    """The detectors for a setting, each built on first use.

    Args:
        weights: a folder through which processes share the detectors' weights; None: a new one.
    """

    def __init__(self, setting: Setting, weights: Path | None = None) -> None:
        torch.manual_seed(0)
        self.setting = setting
        self.device = torch.device(setting.device)
        self._folder = tempfile.TemporaryDirectory() if weights is None else None
        self._weights = weights or Path(self._folder.name)  # type: ignore[union-attr]

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        return random_inputs(self.setting)

    @property
    def pictures(self) -> list[dict[str, Any]]:
        """Another name of ``inputs``, for checks outside this repository."""
        return self.inputs

    @cached_property
    def detectron2(self) -> Any:
        model = build_model(detectron2_config(self.setting.cfg()))
        head = model.head

        def predict() -> tuple[list[Tensor], list[Tensor]]:
            levels = model.backbone(model.preprocess_image(self.inputs).tensor)
            logits, deltas = head([levels[f] for f in model.head_in_features])
            return logits, deltas

        self._share("detectron2", model, head.cls_score, head.bbox_pred, predict)
        return model

    @cached_property
    def torchvision(self) -> Any:
        model = build_torchvision(self.setting)
        head = model.head

        def predict() -> tuple[list[Tensor], list[Tensor]]:
            images, _ = model.transform(torchvision_images(self.inputs, self.device))
            outputs = head(list(model.backbone(images.tensors).values()))
            return [outputs["cls_logits"]], [outputs["bbox_regression"]]

        classes, boxes = head.classification_head, head.regression_head
        self._share("torchvision", model, classes.cls_logits, boxes.bbox_reg, predict)
        return model

    @cached_property
    def ours(self) -> Any:
        return self._ours(training=True)

    @cached_property
    def ours_compiled_loss(self) -> Any:
        return self._ours(True, "MODEL.RETINANET.COMPILE_LOSS", "True")

    @cached_property
    def ours_inference(self) -> Any:
        return self._ours(training=False)

    @cached_property
    def ours_half_inference(self) -> Any:
        return self._ours(False, "TEST.DTYPE", "bfloat16")

    def _ours(self, training: bool, *overrides: str) -> nn.Module:
        """Builds ours with detectron2's weights, as train_net.py trains or evaluates it."""
        path = self._weights / "detectron2.pth"
        if not path.exists():
            _ = self.detectron2
        cfg = self.setting.cfg(*overrides)
        model: nn.Module = Trainer.build_model(cfg)
        missing, unexpected = model.load_state_dict(_load(path), strict=False)
        if set(missing) != {"loss_normalizer"} or unexpected:
            raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
        if not training:
            accelerate_inference(model, cfg)
        return model

    def _share(
        self, name: str, model: nn.Module, classify: nn.Conv2d, regress: nn.Conv2d, predict: Predict
    ) -> None:
        """Loads the weights that another process saved, or creates and saves them."""
        path = self._weights / f"{name}.pth"
        if path.exists():
            model.load_state_dict(_load(path))
            return
        imitate_training(model, classify, regress, predict, self.setting.cfg())
        torch.save(model.state_dict(), path)


def detectron2_config(cfg: CfgNode) -> CfgNode:
    """Returns the config of the same detector with detectron2's own classes."""
    cfg = cfg.clone()
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    octave = [2 ** (i / anchors.SCALES_PER_OCTAVE) for i in range(anchors.SCALES_PER_OCTAVE)]
    strides = [2 ** int(name[1:]) for name in cfg.MODEL.RETINANET.IN_FEATURES]
    anchors.SIZES = [[anchors.ANCHOR_SCALE * s * step for step in octave] for s in strides]
    anchors.NAME = "DefaultAnchorGenerator"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    return cfg


def build_torchvision(setting: Setting) -> RetinaNet:
    """Builds what ``retinanet_resnet50_fpn`` builds, with the config's depth and frozen layers.

    Raises:
        UserError: if torchvision has no such backbone.
    """
    cfg = setting.cfg()
    resnets = cfg.MODEL.RESNETS
    name = f"resnet{resnets.DEPTH}"
    norms = {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d}
    if resnets.NUM_GROUPS > 1 or resnets.NORM not in norms:
        raise UserError(f"MODEL.RESNETS: torchvision has no {name} with {resnets.NORM} and groups.")
    backbone = resnet_fpn_backbone(
        backbone_name=name,
        weights=None,
        norm_layer=norms[resnets.NORM],
        trainable_layers=5 - cfg.MODEL.BACKBONE.FREEZE_AT,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    retinanet = cfg.MODEL.RETINANET
    model = RetinaNet(
        backbone,
        num_classes=retinanet.NUM_CLASSES,
        min_size=min(setting.height, setting.width),
        max_size=max(setting.height, setting.width),
        score_thresh=retinanet.SCORE_THRESH_TEST,
        nms_thresh=retinanet.NMS_THRESH_TEST,
        topk_candidates=retinanet.TOPK_CANDIDATES_TEST,
        detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    return model.to(setting.device)


def random_inputs(setting: Setting) -> list[dict[str, Any]]:
    """Returns images of noise with random boxes, as detectron2's data loader gives them.

    Boxes measure from 16 pixels to 0.8 of the image.
    """
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([setting.width, setting.height], dtype=torch.float32)
    inputs = []
    for _ in range(setting.batch):
        shape = (3, setting.height, setting.width)
        smallest = 16 / size
        share = torch.rand(setting.boxes, 2, generator=generator) ** 2
        extent = (smallest * (0.8 / smallest) ** share) * size
        corner = torch.rand(setting.boxes, 2, generator=generator) * (size - extent)
        instances = Instances(shape[1:])
        instances.gt_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
        instances.gt_classes = torch.randint(
            setting.num_classes, (setting.boxes,), generator=generator
        )
        image = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        inputs.append(
            {"image": image, "instances": instances, "height": shape[1], "width": shape[2]}
        )
    return inputs


random_pictures = random_inputs  # for checks outside this repository


def torchvision_images(inputs: Sequence[dict[str, Any]], device: torch.device) -> list[Tensor]:
    """Returns the images as torchvision expects them: RGB from 0 to 1."""
    return [x["image"].to(device).flip(0).float().div_(255) for x in inputs]


def torchvision_targets(
    inputs: Sequence[dict[str, Any]], device: torch.device
) -> list[dict[str, Tensor]]:
    """Returns the ground truth as torchvision expects it."""
    instances = [x["instances"].to(device) for x in inputs]
    return [{"boxes": x.gt_boxes.tensor, "labels": x.gt_classes} for x in instances]


@torch.no_grad()
def imitate_training(
    model: nn.Module, classify: nn.Conv2d, regress: nn.Conv2d, predict: Predict, cfg: CfgNode
) -> None:
    """Makes random weights behave like trained ones, so that every step has its usual work.

    Norms get the statistics of their inputs, so that features neither vanish nor explode. Logits
    get a deviation of 1 and a bias with which :data:`SHARE_ABOVE` of them score above the
    threshold; deltas get a deviation of 0.2.
    """
    model.eval()
    for layer in model.head.modules():  # type: ignore[union-attr]
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    hooks = [
        layer.register_forward_pre_hook(_take_statistics)
        for layer in model.modules()
        if hasattr(layer, "running_var")
    ]
    logits, deltas = (torch.cat([x.flatten() for x in part]) for part in predict())
    for hook in hooks:
        hook.remove()
    scale = 1 / logits.std()
    for layer, factor in ((regress, 0.2 / deltas.std()), (classify, scale)):
        layer.weight *= factor
        if layer.bias is not None:
            layer.bias *= factor
    score = cfg.MODEL.RETINANET.SCORE_THRESH_TEST
    limit = math.log(score / (1 - score))
    above = max(round(SHARE_ABOVE * logits.numel()), 1)
    bias = classify.bias
    assert bias is not None
    bias += limit - logits.topk(above + 1).values[-1] * scale


def _take_statistics(norm: Any, inputs: tuple[Tensor]) -> None:
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _load(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
