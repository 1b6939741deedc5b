"""Checkpoints of mmengine, whose training state holds objects that are no tensors.

PyTorch reads a file safely only if it knows each class and function that the file names. Those
that mmengine's logs name get stand-ins, which take whatever they are given, keep nothing and do
nothing; nothing of mmengine or numpy is called.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NUMPYS = ("numpy.core.multiarray", "numpy._core.multiarray")  # of version 1 and 2
_NAMES = {
    "mmengine.logging.history_buffer": ["HistoryBuffer"],
    "builtins": ["getattr"],  # by which a buffer names its own methods
    "numpy": ["ndarray", "dtype"],
    **{module: ["_reconstruct", "scalar"] for module in _NUMPYS},
}


class _Nothing:
    def __new__(cls, *_: Any, **__: Any) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_STAND_INS: list[Any] = [
    type(name, (_Nothing,), {"__module__": module})
    for module, names in _NAMES.items()
    for name in names
]


@contextmanager
def skipping_training_state() -> Iterator[None]:
    """While PyTorch reads with ``weights_only``, such objects become nothings."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
