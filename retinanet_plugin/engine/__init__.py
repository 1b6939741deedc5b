"""Training and evaluation on detectron2's engine."""

from .checkpoint import SafeCheckpointer
from .imports import import_code
from .launch import invoke
from .parallel import choose_workers
from .pictures import draw_detections
from .setup import prepare
from .trainer import Trainer

__all__ = [
    "SafeCheckpointer",
    "Trainer",
    "choose_workers",
    "draw_detections",
    "import_code",
    "invoke",
    "prepare",
]
