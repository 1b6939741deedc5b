"""RetinaNet and the focal loss as a plugin for detectron2.

Importing registers the meta-architecture, head, anchor generator and losses in their registries,
and the quick start's data set by name; it does nothing else.
"""

import warnings as _warnings
from typing import TYPE_CHECKING, Any

from . import starting as _starting  # noqa: F401 - first, for Ctrl-C during the others

with _warnings.catch_warnings():  # of what these do when they are imported
    _warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    import detectron2.modeling as _modeling  # noqa: F401

# isort: split
from .config import add_retinanet_config, get_config
from .data import synthetic as _synthetic
from .errors import UserError
from .modeling import (
    CLS_LOSS_REGISTRY,
    DENSE_HEAD_REGISTRY,
    FocalLossHead,
    FocalRetinaNet,
    RetinaNetAnchorGenerator,
)

if TYPE_CHECKING:
    from .predictor import Predictor

__version__ = "0.1.0"

__all__ = [
    "CLS_LOSS_REGISTRY",
    "DENSE_HEAD_REGISTRY",
    "FocalLossHead",
    "FocalRetinaNet",
    "Predictor",
    "RetinaNetAnchorGenerator",
    "UserError",
    "add_retinanet_config",
    "get_config",
]

_synthetic.register()


def __getattr__(name: str) -> Any:
    """``Predictor``, once it is asked for: training's engine comes with it."""
    if name == "Predictor":
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
