"""Classification losses by name: what ``MODEL.RETINANET.CLS_LOSS`` may be.

To add one, subclass :class:`retinanet_plugin.losses.BinaryLoss` and register a function that
makes it from a config; its name is the loss's name::

    @CLS_LOSS_REGISTRY.register()
    def my_loss(cfg):
        return MyLoss(gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)

One that trains on some of the anchors subclasses :class:`retinanet_plugin.losses.SelectingLoss`.
"""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from ..errors import UserError
from ..losses import BinaryLoss, CrossEntropyLoss, FocalLoss, FocalStarLoss, OhemLoss
from .registry import find

CLS_LOSS_REGISTRY = Registry("CLS_LOSS")


def build_cls_loss(cfg: CfgNode) -> BinaryLoss:
    """The loss that ``MODEL.RETINANET.CLS_LOSS`` names, compiled if ``COMPILE_LOSS`` says so.

    Raises:
        UserError: if the name is unknown, or a number is out of the loss's range.
    """
    name = cfg.MODEL.RETINANET.CLS_LOSS
    build = find(CLS_LOSS_REGISTRY, name, "MODEL.RETINANET.CLS_LOSS")
    try:
        loss = build(cfg)
    except ValueError as error:
        raise UserError(f"MODEL.RETINANET: the loss {name} cannot be made: {error}.") from None
    loss.compiled = cfg.MODEL.RETINANET.COMPILE_LOSS
    return loss


@CLS_LOSS_REGISTRY.register()
def focal(cfg: CfgNode) -> BinaryLoss:
    """FL; with ``FOCAL_LOSS_GAMMA: 0`` the balanced cross entropy."""
    return FocalLoss(cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA, cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)


@CLS_LOSS_REGISTRY.register()
def focal_star(cfg: CfgNode) -> BinaryLoss:
    """FL* of the appendix."""
    retinanet = cfg.MODEL.RETINANET
    return FocalStarLoss(
        retinanet.FOCAL_LOSS_ALPHA, retinanet.FOCAL_LOSS_GAMMA, retinanet.FOCAL_STAR_BETA
    )


@CLS_LOSS_REGISTRY.register()
def cross_entropy(cfg: CfgNode) -> BinaryLoss:
    """Plain cross entropy, every logit of the same weight."""
    return CrossEntropyLoss()


@CLS_LOSS_REGISTRY.register()
def balanced_cross_entropy(cfg: CfgNode) -> BinaryLoss:
    """Equation 3: positives weigh ``FOCAL_LOSS_ALPHA``, negatives the rest to 1."""
    return CrossEntropyLoss(cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA)


@CLS_LOSS_REGISTRY.register()
def ohem(cfg: CfgNode) -> BinaryLoss:
    """Plain cross entropy of the hardest anchors."""
    keys = cfg.MODEL.RETINANET.OHEM
    return OhemLoss(keys.BATCH_SIZE, keys.NMS_THRESH, keys.POSITIVE_FRACTION)
