"""The dense head: two subnets shared over the levels, the prior, and the losses they train with."""

from functools import partial
from itertools import islice

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..errors import UserError
from ..losses import BOX_LOSSES, BinaryLoss, ClassTargets, FocalLoss, box_regression_loss
from ..losses.dense import is_dense, offsets_of
from ..losses.targets import by_level, send
from .assigner import SparseTargets
from .cls_losses import build_cls_loss
from .loss_shares import LossShares
from .registry import find, one_of, register_once

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
Dense heads, called as ``head(cfg, input_shape)`` with the shapes of the feature levels.

A head maps a list of features to (logits, deltas), each a list of a tensor a level, and has
``losses(predictions, targets, normalizer)`` and ``num_classes``, ``num_anchors``,
``box2box_transform`` and ``class_agnostic_bbox_reg``; :class:`FocalLossHead` is the example.
"""


def build_dense_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """The head that ``MODEL.RETINANET.HEAD_NAME`` names."""
    head = find(DENSE_HEAD_REGISTRY, cfg.MODEL.RETINANET.HEAD_NAME, "MODEL.RETINANET.HEAD_NAME")
    return head(cfg, input_shape)


class FocalLossHead(RetinaNetHead):
    """RetinaNet's class and box subnets with the focal loss.

    Layers, names and initial weights are those of detectron2's ``RetinaNetHead``, including the
    prior on the last class bias.

    Args:
        input_shape: of each feature level; all have the same channels.
        num_classes: K.
        num_anchors: A, anchors a place.
        conv_dims: channels of each hidden convolution of a subnet.
        norm: normalization of the hidden convolutions; "" is none.
        prior_prob: pi, the score that every anchor starts from.
        cls_loss: the loss of one logit, and of which anchors.
        box2box_transform: encoding of boxes relative to anchors.
        box_reg_loss_type: one of ``losses.BOX_LOSSES``.
        smooth_l1_beta: where smooth L1 turns linear; 0 is L1.
        class_agnostic_bbox_reg: False predicts a box for each class, (A*K*4) channels.
        log_loss_shares: record anchors and loss shares, see :class:`LossShares`.

    Raises:
        UserError: if a number or name is not allowed.
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
        cls_loss: BinaryLoss | None = None,
        box2box_transform: Box2BoxTransform | None = None,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.1,
        class_agnostic_bbox_reg: bool = True,
        log_loss_shares: bool = False,
    ) -> None:
        if not 0 < prior_prob < 1:
            raise UserError(
                f"MODEL.RETINANET.PRIOR_PROB: {prior_prob} given; give a number between 0 and 1."
            )
        if num_classes < 1:
            raise UserError(
                f"MODEL.RETINANET.NUM_CLASSES: {num_classes} given; give a whole number of at "
                "least 1."
            )
        if not conv_dims:
            raise UserError("MODEL.RETINANET.NUM_CONVS: 0 given; give at least 1.")
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
        self.cls_loss = cls_loss or FocalLoss()
        self.box2box_transform = box2box_transform or Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
        self.box_reg_loss_type = one_of(
            box_reg_loss_type, BOX_LOSSES, "MODEL.RETINANET.BBOX_REG_LOSS_TYPE"
        )
        self.smooth_l1_beta = smooth_l1_beta
        self.loss_shares = LossShares() if log_loss_shares else None

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
            "log_loss_shares": retinanet.LOG_LOSS_SHARES,
        }

    def losses(
        self,
        predictions: tuple[list[Tensor], list[Tensor]],
        targets: SparseTargets,
        normalizer: Tensor | float,
    ) -> dict[str, Tensor]:
        """Class and box loss of a batch.

        Args:
            predictions: logits and deltas, each a tensor a level, as :meth:`forward` gives them.
            targets: what the anchors train towards; from the CPU they reach a GPU unawaited.
            normalizer: scalar that both sums are divided by; a class loss that chooses among the
                anchors has its own.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars, float32.
        """
        logits = [x if is_dense(x) else x.contiguous() for x in predictions[0]]
        device = logits[0].device
        order, located = self._locate(logits, targets)
        indices = iter(send(located, device))
        chosen, positives, ignored = [], [], []
        for deltas_i in predictions[1]:
            positive, image, group, cell, first = islice(indices, 5)
            positives.append(positive)
            # (N, A*4 or A*K*4, H, W) -> (P_i, 4)
            chosen.append(deltas_i.unflatten(1, (-1, 4)).flatten(3)[image, group, :, cell])
            ignored.append(first)
        anchor_box, gt_box = send([targets.anchor_box[order], targets.gt_box[order]], device)
        loss_box_reg = box_regression_loss(
            torch.cat(chosen),
            anchor_box,
            gt_box,
            kind=self.box_reg_loss_type,
            beta=self.smooth_l1_beta,
            weights=self.box2box_transform.weights,
            decode=self.box2box_transform.apply_deltas,
        )
        labels = partial(targets.labels, len(logits[0]))
        found = ClassTargets(self.num_classes, positives, ignored, labels, targets.grid)
        loss_cls = self.cls_loss.over_anchors(logits, found, normalizer)
        if self.loss_shares is not None:
            self.loss_shares.add(targets, len(logits[0]), loss_cls)
        return {"loss_cls": loss_cls.total, "loss_box_reg": loss_box_reg / normalizer}

    def _locate(self, logits: list[Tensor], targets: SparseTargets) -> tuple[Tensor, list[Tensor]]:
        """Where the outputs for the named anchors are, found where the targets are.

        Returns:
            the order (P,) that the levels bring the positives into; and five indices a level: of
            its positives the memory offset of the logit, and for the deltas the image, group of 4
            channels and cell; of its ignored anchors the offset of the first class.
        """
        order, indices = [], []
        k = self.num_classes
        positives = by_level(logits, k, targets.image, targets.anchor)
        ignored = by_level(logits, k, targets.ignored_image, targets.ignored_anchor)
        for logits_i, positive, ignored_i in zip(logits, positives, ignored, strict=True):
            here, image, cell, anchor = positive
            channel = anchor * k + targets.gt_class[here]
            group = anchor if self.class_agnostic_bbox_reg else channel
            indices += [offsets_of(logits_i, image, cell, channel), image, group, cell]
            order.append(here)
            _, image, cell, anchor = ignored_i
            indices.append(offsets_of(logits_i, image, cell, anchor * k))
        return torch.cat(order), indices


register_once(DENSE_HEAD_REGISTRY, FocalLossHead)
