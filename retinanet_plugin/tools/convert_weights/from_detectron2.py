"""Reads RetinaNets of detectron2 and of this plugin, whose parameters have the same names."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from torch import Tensor

from ...errors import UserError
from .model import Keys, Model, detector_settings

_COMPUTED = ("anchor_generator.cell_anchors.", "pixel_mean", "pixel_std")


def read_model(
    tensors: Mapping[str, Tensor], classes: list[str] | None, cfg: CfgNode | None
) -> Model:
    """Reads a state dictionary with detectron2's names.

    Args:
        classes: the class names in the file.
        cfg: the config that the model was trained with; None: it is from detectron2's model zoo.

    Raises:
        UserError: if it is not a RetinaNet, or has no config and needs one.
    """
    weights = {
        key: x.float() if x.is_floating_point() else x
        for key, x in tensors.items()
        if not key.startswith(_COMPUTED)
    }
    unused = {key: "follows from the config" for key in tensors if key not in weights}
    notes = ["MODEL.WEIGHTS also accepts the original file; only the config is new"]
    settings = {}
    if cfg is None:
        if any(key.endswith(".num_batches_tracked") for key in weights):
            raise UserError(
                "its batch norms are not frozen, so it is not from detectron2's model zoo; give "
                "--config-file, the config.yaml of its training."
            )
        settings = {**detector_settings(weights), "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0}
        notes.append(
            "no config was given: the new one is that of detectron2's model zoo (BGR, mean "
            "subtracted, stride in the first convolution of a block)"
        )
    keys = Keys({key: key for key in weights}, unused)
    return Model("detectron2 RetinaNet", weights, keys, settings, classes, notes)
