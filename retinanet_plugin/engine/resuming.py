"""What a run keeps to be gone on with: checkpoints, and what has been measured lately.

The rest that a resumed run needs to be the same run follows from the seed and the step: the order
of the pictures (:mod:`..data.stream`) and the random numbers of a step.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from ..errors import UserError, printable, sentence_of
from .atomic_io import remove_old
from .checkpoint import SafeCheckpointer

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
        try:
            remove_old(Path(folder), self._keep)
        except OSError as error:
            logger.error(f"older checkpoints cannot be removed ({error.strerror or error})")


def save_final(checkpointer: SafeCheckpointer, step: int) -> None:
    """Writes ``model_final.pth``, the end of a run.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        checkpointer.save("model_final", iteration=step)
    except OSError as error:
        problem = not_written("model_final", checkpointer.save_dir, error)
        remedy = "go on from the last checkpoint by the same command with --resume"
        if not checkpointer.has_checkpoint():
            remedy = "begin again: no checkpoint was written before"
        raise UserError(f"OUTPUT_DIR: {problem}; make room, and {remedy}") from None


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


# What a run's weights follow from; of these groups, the rest may change on the way.
_GROUPS = ("DATALOADER", "DATASETS", "INPUT", "MODEL", "SOLVER")
_MAY_CHANGE = re.compile(
    r"DATALOADER\.(NUM_WORKERS|SKIP_UNREADABLE)|DATASETS\.(OWN\.|TEST|TRAIN$)|INPUT\.\w+_TEST"
    r"|MODEL\.(DEVICE|ACCELERATION\.KEEP_FREED_MEMORY|WEIGHTS)|MODEL\.RETINANET\.(\w+_TEST|LOG_LOSS_SHARES)"
    r"|SOLVER\.(CHECKPOINT_PERIOD|EARLY_STOPPING|KEEP_CHECKPOINTS|SKIP_NOT_FINITE)"
)


def settings_of(cfg: CfgNode, content: str) -> dict[str, str]:
    """What makes a run this one and no other: its keys, and the ``content`` of its training set."""

    def leaves(node: CfgNode, prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in node.items():
            if isinstance(value, CfgNode):
                yield from leaves(value, f"{prefix}{key}.")
            elif not _MAY_CHANGE.match(f"{prefix}{key}"):
                yield f"{prefix}{key}", repr(value)

    found = dict(pair for group in _GROUPS for pair in leaves(cfg[group], f"{group}."))
    return {**found, "the training set": content}


def warn_of_changes(before: object, now: dict[str, str]) -> None:
    """Says which of the settings a run goes on with are not those it began with."""
    if not isinstance(before, dict):  # of an older version, or detectron2's
        return
    changes = [f"{key} {before[key]} -> {x}" for key, x in now.items() if before.get(key, x) != x]
    if changes:
        more = f" and {len(changes) - 10} more" if len(changes) > 10 else ""
        logger.warning(
            f"--resume: this is not the run that it was: {printable(', '.join(changes[:10]))}{more}"
        )


def check_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError for a state, just loaded, that no step could go on from."""
    for name in {"iteration", "seed"} & state.keys():
        if type(state[name]) is not int or not 0 <= state[name] < 2**63:
            raise ValueError(f"{name} is {printable(repr(state[name]), 80)}")
    for parameter, kept in optimizer.state.items():
        for value in kept.values():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError("the optimizer's momenta are of another shape")


@contextmanager
def complete(checkpointer: SafeCheckpointer) -> Iterator[None]:
    """Where a checkpoint is loaded as a whole, the trainer's state included, or not at all."""
    loaded: list[str] = []
    trainer = checkpointer.checkpointables["trainer"]

    class Noted:
        def load_state_dict(self, state: dict[str, Any]) -> None:
            trainer.load_state_dict(state)
            loaded.append("trainer")

    checkpointer.complete, checkpointer.checkpointables["trainer"] = True, Noted()
    try:
        yield
        if not loaded:
            raise ValueError("it holds weights alone")
    except Exception as error:  # what it holds in place of a state raises nearly anything
        reason = sentence_of(error) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"--resume: the run in {checkpointer.save_dir} cannot go on by this config and version "
            f"({printable(reason, 700).rstrip('.')}); give those that it began with, or begin in "
            "another OUTPUT_DIR with its checkpoint as MODEL.WEIGHTS."
        ) from None
    finally:
        checkpointer.complete, checkpointer.checkpointables["trainer"] = False, trainer
