"""Ctrl-C and SIGTERM: training ends after its step and keeps a checkpoint of it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm

from ..errors import STOPPED


@contextmanager
def stop_by_signal(trainer: DefaultTrainer) -> Iterator[None]:
    """Where Ctrl-C and SIGTERM end the block by a sentence and status :data:`STOPPED`.

    Within a step they wait for its end, and a checkpoint is written, from which ``--resume`` goes
    on; elsewhere, as in an evaluation, or at the second signal, they end it at once. Of several
    workers the first does so, and whoever started them ends the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of its business
        return
    if not comm.is_main_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield
        return
    hook = _StopAfterStep()
    trainer.register_hooks([hook])
    hooks = trainer._hooks
    hooks.remove(hook)  # to where the schedule has counted the step, but no evaluation has begun
    hooks.insert([isinstance(x, PeriodicCheckpointer) for x in hooks].index(True), hook)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, hook.request) for number in numbers]
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped: {_what_is_kept(trainer)}", file=sys.stderr, flush=True)
        raise SystemExit(STOPPED) from None
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _StopAfterStep(HookBase):
    """Ends training by ``KeyboardInterrupt``, which the training loop does not log."""

    def __init__(self) -> None:
        self._in_step = self._requested = False

    def request(self, number: int, frame: FrameType | None) -> None:
        if self._requested or not (self._in_step and self.trainer.model.training):
            raise KeyboardInterrupt
        self._requested = True

    def before_step(self) -> None:
        self._in_step = True

    def after_step(self) -> None:
        if self._requested:
            done = self.trainer.iter
            name = "model_final" if self._was_last() else f"model_{done:07d}"
            self.trainer.checkpointer.save(name, iteration=done)
            raise KeyboardInterrupt

    def after_train(self) -> None:
        self._in_step = False
        if self._requested and self._was_last():
            raise KeyboardInterrupt  # before the evaluation that follows the last step

    def _was_last(self) -> bool:
        return self.trainer.iter + 1 >= self.trainer.max_iter


def _what_is_kept(trainer: DefaultTrainer) -> str:
    done = min(trainer.iter + 1, trainer.max_iter)
    if not trainer.checkpointer.has_checkpoint():
        return f"{done} of {trainer.max_iter} steps were done, and no checkpoint was written yet."
    newest = os.path.basename(trainer.checkpointer.get_checkpoint_file())
    return (
        f"{done} of {trainer.max_iter} steps were done; go on from {newest} in "
        f"{trainer.cfg.OUTPUT_DIR} by the same command with --resume."
    )
