"""The dense head: two subnets shared over the levels, the prior, and their losses."""

from itertools import islice

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..errors import check, one_of
from ..losses import (
    BOX_LOSSES,
    BinaryLoss,
    ClassLoss,
    DenseLoss,
    FocalLoss,
    SparseTargets,
    box_regression_loss,
    offsets_of,
)
from ..losses.layout import by_level, gather, is_dense, to_device
from .cls_losses import build_cls_loss
from .registry import find, register_once

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
Dense heads, called as ``head(cfg, input_shape)`` with the shapes of the feature levels.

A head maps a list of features to (logits, deltas), each a list with a tensor per level. It has
``losses(predictions, targets, normalizer)``, which returns sums if ``normalizer`` is None, and the
attributes ``num_classes``, ``num_anchors``, ``box2box_transform`` and ``class_agnostic_bbox_reg``.
:class:`FocalLossHead` is the example.
"""


def build_dense_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Builds the head named by ``MODEL.RETINANET.HEAD_NAME``."""
    head = find(DENSE_HEAD_REGISTRY, cfg.MODEL.RETINANET.HEAD_NAME, "MODEL.RETINANET.HEAD_NAME")
    return head(cfg, input_shape)


class FocalLossHead(RetinaNetHead):
    """RetinaNet's classification and box subnets, trained with the focal loss.

    Layers, names and initial weights are those of detectron2's ``RetinaNetHead``, including the
    prior in the bias of the last classification layer.

    Args:
        input_shape: of each feature level; all have the same number of channels.
        num_classes: K.
        num_anchors: A, anchors per location.
        conv_dims: channels of each hidden convolution of a subnet.
        norm: normalization of the hidden convolutions; "" is none.
        prior_prob: pi, the score that every anchor starts from.
        cls_loss: the loss of the logits; a binary loss is summed over all anchors.
        box2box_transform: encoding of boxes relative to anchors.
        box_reg_loss_type: one of ``losses.BOX_LOSSES``.
        smooth_l1_beta: where smooth L1 turns linear; 0 is L1.
        class_agnostic_bbox_reg: False predicts a box per class, in A*K*4 channels.

    Raises:
        UserError: if ``box_reg_loss_type`` is unknown.
    """

    num_classes: int
    num_anchors: int
    class_agnostic_bbox_reg: bool
    box2box_transform: Box2BoxTransform

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: list[int],
        norm: str = "",
        prior_prob: float = 0.01,
        cls_loss: BinaryLoss | ClassLoss | None = None,
        box2box_transform: Box2BoxTransform | None = None,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.1,
        class_agnostic_bbox_reg: bool = True,
    ) -> None:
        check(num_classes >= 1, "MODEL.RETINANET.NUM_CLASSES", num_classes, "at least 1")
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            num_anchors=num_anchors,
            conv_dims=conv_dims,
            norm=norm,
            prior_prob=prior_prob,
        )
        if not class_agnostic_bbox_reg:
            self.bbox_pred = nn.Conv2d(
                conv_dims[-1], num_anchors * num_classes * 4, kernel_size=3, padding=1
            )
            nn.init.normal_(self.bbox_pred.weight, std=0.01)
            nn.init.constant_(self.bbox_pred.bias, 0)  # type: ignore[arg-type]
        self.num_classes = num_classes
        self.num_anchors = num_anchors
        self.class_agnostic_bbox_reg = class_agnostic_bbox_reg
        cls_loss = cls_loss or FocalLoss()
        self.cls_loss: ClassLoss = (
            DenseLoss(cls_loss) if isinstance(cls_loss, BinaryLoss) else cls_loss
        )
        self.box2box_transform = box2box_transform or Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
        key = "MODEL.RETINANET.BBOX_REG_LOSS_TYPE"
        self.box_reg_loss_type = one_of(box_reg_loss_type, BOX_LOSSES, key)
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        retinanet = cfg.MODEL.RETINANET
        return {
            **super().from_config(cfg, input_shape),
            "cls_loss": build_cls_loss(cfg),
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
            "class_agnostic_bbox_reg": retinanet.CLASS_AGNOSTIC_BBOX_REG,
        }

    def losses(
        self,
        predictions: tuple[list[Tensor], list[Tensor]],
        targets: SparseTargets,
        normalizer: Tensor | float | None,
    ) -> dict[str, Tensor]:
        """Computes the classification and box loss of a batch.

        Args:
            predictions: logits and deltas from :meth:`forward`.
            targets: what the anchors are trained towards.
            normalizer: scalar that both sums are divided by (a ``MinedLoss`` is divided by the
                number of chosen anchors instead); None: the sums themselves.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars, float32.
        """
        logits = [x if is_dense(x) else x.contiguous() for x in predictions[0]]
        device = logits[0].device
        order, indices = self._locate(logits, targets)
        remaining = iter(to_device(indices, device))
        deltas, positives, ignored = [], [], []
        for deltas_i in predictions[1]:
            positive, image, cell, group, first = islice(remaining, 5)
            positives.append(positive)
            deltas.append(gather(deltas_i, 4, image, cell, group))
            ignored.append(first)
        anchor_box, gt_box = to_device([targets.anchor_box[order], targets.gt_box[order]], device)
        loss_box_reg = box_regression_loss(
            torch.cat(deltas),
            anchor_box,
            gt_box,
            loss_type=self.box_reg_loss_type,
            beta=self.smooth_l1_beta,
            weights=self.box2box_transform.weights,
            decode=self.box2box_transform.apply_deltas,
        )
        loss_cls = self.cls_loss(
            logits,
            targets,
            positives=positives,
            ignored=ignored,
            num_classes=self.num_classes,
            normalizer=normalizer,
        )
        if normalizer is not None:
            loss_box_reg = loss_box_reg / normalizer
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}

    def _locate(self, logits: list[Tensor], targets: SparseTargets) -> tuple[Tensor, list[Tensor]]:
        """Finds the outputs of the positive and ignored anchors, on the CPU, where the targets are.

        Returns:
            the order (P,) of the positives by level; and five indices per level: of the positives
            the memory offset of the logit, and the image, cell and group of 4 channels of the
            deltas; of the ignored anchors the memory offset of the first class.
        """
        order, indices = [], []
        k = self.num_classes
        positives = by_level(logits, k, targets.image, targets.anchor)
        ignored = by_level(logits, k, targets.ignored_image, targets.ignored_anchor)
        for logits_i, positive, ignored_i in zip(logits, positives, ignored, strict=True):
            here, image, cell, anchor = positive
            channel = anchor * k + targets.gt_class[here]
            group = anchor if self.class_agnostic_bbox_reg else channel
            indices += [offsets_of(logits_i, image, cell, channel), image, cell, group]
            order.append(here)
            _, image, cell, anchor = ignored_i
            indices.append(offsets_of(logits_i, image, cell, anchor * k))
        return torch.cat(order), indices


register_once(DENSE_HEAD_REGISTRY, FocalLossHead)
