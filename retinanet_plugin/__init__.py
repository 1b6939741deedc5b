"""RetinaNet and the focal loss as a plugin for detectron2.

Importing this package registers the meta-architecture, head, anchor generator and losses, and the
quick start's dataset by name; it has no other effect.
"""

import warnings as _warnings
from typing import TYPE_CHECKING, Any

with _warnings.catch_warnings():  # raised while detectron2's dependencies are imported
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
    """Imports ``Predictor`` on first use, because it imports the training engine."""
    if name == "Predictor":
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
