"""Checkpoints to resume a run from, and a warning if its settings have changed.

What else makes a resumed run the same run follows from the seed and the step: the order of the
images (:mod:`..data.training_loader`) and the random numbers of a step.
"""

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm

from ..config_keys import may_change_on_resume
from ..errors import printable
from ..utils import flatten
from .checkpoint import SafeCheckpointer, remove_old

_MAX_LISTED = 10

logger = logging.getLogger("retinanet_plugin")


class CheckpointHook(PeriodicCheckpointer):
    """detectron2's hook, but ``max_to_keep`` also counts checkpoints from before a resume.

    Also writes the final checkpoint of a run that was killed between its last step and that.
    """

    def __init__(self, checkpointer: SafeCheckpointer, period: int, max_to_keep: int = 0) -> None:
        super().__init__(checkpointer, period)
        self._max_to_keep = max_to_keep

    def before_train(self) -> None:
        super().before_train()
        trainer, last = self.trainer, self.trainer.start_iter - 1
        is_done = 0 <= last == trainer.max_iter - 1
        if is_done and not self.checkpointer.get_checkpoint_file().endswith("model_final.pth"):
            trainer.iter = last
            self.checkpointer.save("model_final", iteration=last)
            trainer.iter = trainer.start_iter

    def after_step(self) -> None:
        super().after_step()
        if comm.is_main_process() and (self.trainer.iter + 1) % self.period == 0:
            remove_old(Path(self.checkpointer.save_dir), self._max_to_keep)


def settings_of(cfg: CfgNode, content: str) -> dict[str, str]:
    """Returns what a run's weights follow from: config keys and the training set's ``content``."""
    keys = {key: repr(value) for key, value in flatten(cfg) if not may_change_on_resume(key)}
    return {**keys, "training set": content}


def warn_of_changes(before: object, now: dict[str, str]) -> None:
    """Warns of settings that differ from those that the run was started with."""
    if not isinstance(before, dict):  # a checkpoint of detectron2
        return
    changes = [f"{key} {before[key]} -> {x}" for key, x in now.items() if before.get(key, x) != x]
    if changes:
        more = f" and {len(changes) - _MAX_LISTED} more" if len(changes) > _MAX_LISTED else ""
        logger.warning(
            f"--resume: changed since the run was started: "
            f"{printable(', '.join(changes[:_MAX_LISTED]))}{more}"
        )
