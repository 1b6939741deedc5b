"""Lets checkpoints of mmengine be read, whose training state holds objects other than tensors.

``torch.load(weights_only=True)`` must know every class and function that a file names. Those that
mmengine's logs name are replaced by a class that keeps nothing and does nothing, so no code of
mmengine or numpy runs.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_NAMES = {
    "mmengine.logging.history_buffer": ["HistoryBuffer"],
    "builtins": ["getattr"],  # buffers name their own methods by it
    "numpy": ["ndarray", "dtype"],
    "numpy.core.multiarray": ["_reconstruct", "scalar"],  # numpy 1
    "numpy._core.multiarray": ["_reconstruct", "scalar"],  # numpy 2
}


class _Ignored:
    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...


def ignore_training_state() -> AbstractContextManager[Any]:
    """While active, ``torch.load(weights_only=True)`` ignores mmengine's training state."""
    if not hasattr(torch.serialization, "safe_globals"):  # torch 2.4
        return nullcontext()
    stand_ins: list[Any] = [
        type(name, (_Ignored,), {"__module__": module})
        for module, names in _NAMES.items()
        for name in names
    ]
    return torch.serialization.safe_globals(stand_ins)
