"""detectron2's RetinaNet, and this plugin's own: weights that have their names already."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from torch import Tensor

from ...errors import UserError
from . import rows
from .model import Keys, Model, Options, detector_settings

_COMPUTED = ("anchor_generator.cell_anchors.", "pixel_mean", "pixel_std")


def read(
    tensors: Mapping[str, Tensor], classes: list[str] | None, cfg: CfgNode | None, options: Options
) -> Model:
    """A state dictionary with detectron2's names.

    Args:
        classes: that the file names.
        cfg: that the model was trained with; None: one of detectron2's zoo.

    Raises:
        UserError: for one that is no RetinaNet, or needs a config and has none.
    """
    weights = {
        key: x.float() if x.is_floating_point() else x
        for key, x in tensors.items()
        if not key.startswith(_COMPUTED)
    }
    unused = {key: "follows from the config" for key in tensors if key not in weights}
    notes = ["MODEL.WEIGHTS takes the file as it is: only the config is new"]
    settings = {}
    if cfg is None:
        if any(key.endswith(".num_batches_tracked") for key in weights):
            raise UserError(
                "its batch norms are not those of detectron2's zoo, so it needs --config-file: the "
                "config.yaml that its training left behind."
            )
        settings = detector_settings(weights)
        settings["MODEL.RETINANET.SMOOTH_L1_LOSS_BETA"] = 0.0
        notes.append(
            "no config was given: this one is that of detectron2's zoo (BGR, mean subtracted, the "
            "stride in a block's first convolution)"
        )
    num_classes = settings.get("MODEL.RETINANET.NUM_CLASSES")
    classes = options.classes or classes
    if classes is None and num_classes == len(rows.COCO_CLASSES):
        classes = list(rows.COCO_CLASSES)
    keys = Keys({key: key for key in weights}, unused)
    return Model("detectron2 RetinaNet", weights, keys, settings, classes, notes)
