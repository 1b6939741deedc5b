"""What a run keeps to be gone on with: checkpoints, and what has been measured lately.

The rest that a resumed run needs to be the same run follows from the seed and the step: the order
of the pictures (:mod:`..data.stream`) and the random numbers of a step.
"""

import logging
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..errors import UserError
from .checkpoint import SafeCheckpointer
from .durable import remove_old

_WINDOW = 20  # values that detectron2's writers take medians over

logger = logging.getLogger("retinanet_plugin")


class Checkpoints(HookBase):
    """Writes a checkpoint every ``period`` steps and at the end, before the step's evaluation.

    One that cannot be written, as when the disk is full, does not end the run: those before it
    are whole, and the next may succeed.

    Args:
        keep: how many of the numbered ones stay; 0: all.
    """

    def __init__(self, checkpointer: SafeCheckpointer, period: int, keep: int = 0) -> None:
        self._checkpointer, self._period, self._keep = checkpointer, period, keep

    def after_step(self) -> None:
        step = self.trainer.iter
        is_last = step + 1 >= self.trainer.max_iter
        if not comm.is_main_process() or not (is_last or (step + 1) % self._period == 0):
            return
        folder = self._checkpointer.save_dir
        if is_last:
            save_final(self._checkpointer, step)
        else:
            name = f"model_{step:07d}"
            try:
                self._checkpointer.save(name, iteration=step)
            except OSError as error:
                problem = not_written(name, folder, error)
                logger.error(f"{problem}; training goes on, older checkpoints are as they were")
                return
        remove_old(Path(folder), self._keep)


def save_final(checkpointer: SafeCheckpointer, step: int) -> None:
    """Writes ``model_final.pth``, the end of a run.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        checkpointer.save("model_final", iteration=step)
    except OSError as error:
        problem = not_written("model_final", checkpointer.save_dir, error)
        raise UserError(
            f"OUTPUT_DIR: {problem}; make room, and go on from the last checkpoint by the same "
            "command with --resume"
        ) from None


def not_written(name: str, folder: str, error: OSError) -> str:
    """Which checkpoint is not there, and why."""
    return f"{name}.pth cannot be written to {folder} ({error.strerror or error})"


class EventHistory(HookBase):
    """Keeps the latest values of losses and the like: what is logged next are medians of them."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        hints = self.trainer.storage.smoothing_hints()
        histories = self.trainer.storage.histories().items()
        return {name: kept.values()[-_WINDOW:] for name, kept in histories if hints[name]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept = state_dict

    def before_train(self) -> None:
        for name, values in self._kept.items():
            for value, step in values:
                self.trainer.storage.put_scalar(name, value, cur_iter=int(step))
