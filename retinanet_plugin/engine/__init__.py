"""Training and evaluation on detectron2's engine."""

from .checkpoint import SafeCheckpointer
from .launch import invoke
from .parallel import choose_workers
from .setup import prepare
from .trainer import Trainer
from .user_code import import_code

__all__ = [
    "SafeCheckpointer",
    "Trainer",
    "choose_workers",
    "import_code",
    "invoke",
    "prepare",
]
