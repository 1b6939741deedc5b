"""Classification losses by name: the values of ``MODEL.RETINANET.CLS_LOSS``.

To add one, subclass :class:`retinanet_plugin.losses.BinaryLoss` and register a function that makes
it from a config; the name of the function is the name of the loss::

    @CLS_LOSS_REGISTRY.register()
    def my_loss(cfg):
        return MyLoss(gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)

It is summed over all anchors. For a loss that trains on some of them, return a
:class:`retinanet_plugin.losses.MinedLoss`, or another :class:`retinanet_plugin.losses.ClassLoss`.
"""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from ..errors import UserError
from ..losses import (
    BinaryLoss,
    ClassLoss,
    CrossEntropyLoss,
    DenseLoss,
    FocalLoss,
    FocalStarLoss,
    HardExamples,
    MinedLoss,
)
from .registry import find

CLS_LOSS_REGISTRY = Registry("CLS_LOSS")


def build_cls_loss(cfg: CfgNode) -> ClassLoss:
    """Builds the loss named by ``MODEL.RETINANET.CLS_LOSS``.

    Raises:
        UserError: if the name is unknown or a parameter out of range.
    """
    name = cfg.MODEL.RETINANET.CLS_LOSS
    build = find(CLS_LOSS_REGISTRY, name, "MODEL.RETINANET.CLS_LOSS")
    try:
        loss: BinaryLoss | ClassLoss = build(cfg)
    except ValueError as error:
        raise UserError(f"MODEL.RETINANET: parameters of CLS_LOSS {name}: {error}.") from None
    if isinstance(loss, BinaryLoss):
        return DenseLoss(loss, compile=cfg.MODEL.RETINANET.COMPILE_LOSS)
    return loss


@CLS_LOSS_REGISTRY.register()
def focal(cfg: CfgNode) -> BinaryLoss:
    """Makes the focal loss; with ``FOCAL_LOSS_GAMMA: 0`` the balanced cross entropy."""
    return FocalLoss(cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA, cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)


@CLS_LOSS_REGISTRY.register()
def focal_star(cfg: CfgNode) -> BinaryLoss:
    """Makes FL* of the paper's appendix A."""
    retinanet = cfg.MODEL.RETINANET
    return FocalStarLoss(
        retinanet.FOCAL_LOSS_ALPHA, retinanet.FOCAL_LOSS_GAMMA, retinanet.FOCAL_STAR_BETA
    )


@CLS_LOSS_REGISTRY.register()
def cross_entropy(cfg: CfgNode) -> BinaryLoss:
    """Makes the cross entropy without weights."""
    return CrossEntropyLoss()


@CLS_LOSS_REGISTRY.register()
def balanced_cross_entropy(cfg: CfgNode) -> BinaryLoss:
    """Makes equation 3, with weights ``FOCAL_LOSS_ALPHA`` for positives and 1 - that for others."""
    return CrossEntropyLoss(cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA)


@CLS_LOSS_REGISTRY.register()
def ohem(cfg: CfgNode) -> MinedLoss:
    """Makes the cross entropy of the hardest anchors."""
    keys = cfg.MODEL.RETINANET.OHEM
    hardest = HardExamples(keys.BATCH_SIZE, keys.NMS_THRESH, keys.POSITIVE_FRACTION)
    return MinedLoss(CrossEntropyLoss(), hardest)
