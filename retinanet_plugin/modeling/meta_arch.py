"""The detector: backbone, head and anchors, in training and inference."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..config_keys import check_ranges
from ..errors import UserError, one_of
from ..losses import SparseTargets
from ..losses.normalizer import mean_over_workers
from .anchors import HostAnchors
from .assigner import AnchorAssigner
from .decoder import DetectionDecoder
from .head import FocalLossHead, build_dense_head
from .registry import register_once

LOSS_NORMALIZERS = ("positives", "ema")
_EMA_START, _EMA_MOMENTUM = 100.0, 0.9  # detectron2's


class FocalRetinaNet(DenseDetector):
    """RetinaNet of "Focal Loss for Dense Object Detection" (arXiv 1708.02002).

    Args:
        backbone: computes the feature levels.
        head: a :class:`FocalLossHead` or another entry of ``head.DENSE_HEAD_REGISTRY``.
        anchor_generator: maps the features to a ``Boxes`` per level.
        head_in_features: names of the levels, by increasing stride; None: all of the backbone's.
        assigner: labels the anchors in training.
        loss_normalizer: what the sums of losses are divided by. "positives": the assigned anchors
            of the batch, over all workers, as in the paper. "ema": detectron2's moving average of
            them, kept in the buffer ``loss_normalizer``. It averages the mean over the workers;
            detectron2 has one average per worker, and checkpoints none of them.
        test_score_thresh, test_topk_candidates, test_nms_thresh, max_detections_per_image,
            clip_before_nms: see :class:`DetectionDecoder`.
        pixel_mean, pixel_std: of each channel of the input.
        input_format: channel order of the input, "BGR" or "RGB".

    Attributes:
        targets, normalizer: what the latest training step trained towards and divided by.
    """

    targets: SparseTargets
    normalizer: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: FocalLossHead,
        anchor_generator: nn.Module,
        head_in_features: Sequence[str] | None = None,
        assigner: AnchorAssigner | None = None,
        loss_normalizer: str = "positives",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        clip_before_nms: bool = False,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        input_format: str = "BGR",
    ) -> None:
        super().__init__(
            backbone,
            head,
            None if head_in_features is None else list(head_in_features),
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        self.num_classes: int = head.num_classes
        self.anchor_generator = anchor_generator
        self._host_anchors = HostAnchors(anchor_generator)
        self.assigner = assigner or AnchorAssigner()
        self.normalize_by = one_of(
            loss_normalizer, LOSS_NORMALIZERS, "MODEL.RETINANET.LOSS_NORMALIZER"
        )
        if self.normalize_by == "ema":
            # A buffer, so that a resumed run continues with its value.
            self.register_buffer("loss_normalizer", torch.tensor(_EMA_START))
        self.decoder = DetectionDecoder(
            num_classes=head.num_classes,
            apply_deltas=head.box2box_transform.apply_deltas,
            score_thresh=test_score_thresh,
            topk_candidates=test_topk_candidates,
            nms_thresh=test_nms_thresh,
            max_detections=max_detections_per_image,
            class_agnostic=head.class_agnostic_bbox_reg,
            clip_before_nms=clip_before_nms,
        )
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        check_ranges(cfg, prefix="MODEL.")
        retinanet = cfg.MODEL.RETINANET
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        for name in retinanet.IN_FEATURES:
            one_of(name, shapes, "MODEL.RETINANET.IN_FEATURES")
        feature_shapes = [shapes[f] for f in retinanet.IN_FEATURES]
        p7 = getattr(getattr(backbone, "top_block", None), "p7", None)
        if p7 is not None and "p7" not in retinanet.IN_FEATURES:
            p7.requires_grad_(False)  # DDP would wait for its gradient
        return {
            "backbone": backbone,
            "head": build_dense_head(cfg, feature_shapes),
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "head_in_features": retinanet.IN_FEATURES,
            "assigner": AnchorAssigner(
                retinanet.IOU_THRESHOLDS,
                retinanet.IOU_LABELS,
                retinanet.ALLOW_LOW_QUALITY_MATCHES,
            ),
            "loss_normalizer": retinanet.LOSS_NORMALIZER,
            "test_score_thresh": retinanet.SCORE_THRESH_TEST,
            "test_topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": retinanet.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "clip_before_nms": retinanet.CLIP_BEFORE_NMS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Does what the base class does, but in training the ground truth stays on the CPU."""
        if not self.training:
            return super().forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        levels = self.backbone(images.tensor)
        features = [levels[f] for f in self.head_in_features]
        gt_instances = [x["instances"] for x in batched_inputs]
        return self.forward_training(images, features, self.head(features), gt_instances)

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Assigns the anchors and computes the losses.

        Anchors are assigned on the CPU, while a GPU may still work on the predictions.
        """
        self.targets = self.label_anchors(features, gt_instances)
        self.normalizer = self._update_normalizer(self.targets, len(gt_instances))
        return self.head.losses(predictions, self.targets, self.normalizer)

    @torch.no_grad()
    def label_anchors(
        self, features: Sequence[Tensor], gt_instances: list[Instances]
    ) -> SparseTargets:
        """Returns what the anchors of a batch are trained towards.

        Raises:
            UserError: if the ground truth has a class beyond the model's.
        """
        if self._host_anchors.generator is not self.anchor_generator:
            self._host_anchors = HostAnchors(self.anchor_generator)
        targets = self.assigner(self._host_anchors(features), gt_instances)
        lowest, highest = targets.gt_class.aminmax() if targets.num_positives else (0, 0)
        # Class K would be the first class of the next anchor.
        if lowest < 0 or highest >= self.num_classes:
            wrong = int(highest if lowest >= 0 else lowest)
            raise UserError(
                f"MODEL.RETINANET.NUM_CLASSES: {self.num_classes}, but the ground truth has class "
                f"{wrong}; set it to the number of classes of the dataset."
            )
        return targets

    @torch.no_grad()
    def _update_normalizer(self, targets: SparseTargets, num_images: int) -> Tensor:
        """Returns what the losses are divided by, a scalar on the model's device.

        Updates the moving average, if that is what they are divided by.
        """
        count = targets.num_positives
        if has_event_storage():
            get_event_storage().put_scalar("num_pos_anchors", count / num_images)
        mean = mean_over_workers(count, self.device)
        if self.normalize_by == "ema":
            update = (1 - _EMA_MOMENTUM) * mean.clamp_(min=1)
            self.loss_normalizer.mul_(_EMA_MOMENTUM).add_(update)
            return self.loss_normalizer.clone()
        return mean

    def forward_inference(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: Sequence[list[Tensor]],
    ) -> list[Instances]:
        """Returns the detections of each image, in the coordinates of the network's input."""
        logits, deltas = predictions
        anchors = [boxes.tensor for boxes in self.anchor_generator(features)]
        return self.decoder(logits, deltas, anchors, images.image_sizes)


register_once(META_ARCH_REGISTRY, FocalRetinaNet)
