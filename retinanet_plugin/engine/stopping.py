"""Signals that end training after the current step: Ctrl-C, SIGTERM and SIGUSR1.

Schedulers such as Slurm send the latter two before they take a machine back.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils import comm

from ..errors import STOPPED, TO_BE_RESUMED
from .evaluation_hook import EvaluationHook

# Windows has no SIGUSR1.
SIGNALS = [getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, x)]
_SAME_S = 1.0  # a terminal sends Ctrl-C to all processes, and launch passes it on to them again


def status_of(number: int) -> int:
    """Returns the exit status of a command that a signal ended."""
    return STOPPED if number == signal.SIGINT else TO_BE_RESUMED


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Installs a handler of :data:`SIGNALS`."""
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, old in zip(SIGNALS, before, strict=True):
            signal.signal(number, old)


@contextmanager
def stop_by_signal(trainer: DefaultTrainer) -> Iterator[None]:
    """Makes a signal end the training inside the block with a sentence and its exit status.

    All processes finish the current step, and the first saves a checkpoint of it. An evaluation is
    interrupted; a resumed run repeats it. A second signal ends training at once.
    """
    # After the scheduler has counted the step and its checkpoint is written.
    at = next(i for i, hook in enumerate(trainer._hooks) if isinstance(hook, EvaluationHook))
    hook = StopAfterStep(trainer._hooks[at])
    trainer.register_hooks([hook])
    trainer._hooks.insert(at, trainer._hooks.pop())
    with handled_by(hook.handle):
        try:
            yield
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):
                hook.save()
        except Exception:
            if not hook.received:
                raise  # otherwise another process has stopped, and this one cannot finish its step
        if hook.received:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            if comm.is_main_process():
                print(f"stopped: {hook.status()}", file=sys.stderr, flush=True)
            raise SystemExit(status_of(hook.received))


class StopAfterStep(HookBase):
    """Ends training by ``KeyboardInterrupt`` after a step in which any process got a signal."""

    def __init__(self, evaluation: EvaluationHook) -> None:
        self.received = 0  # number of the first signal
        self._received_at = 0.0
        self._evaluation = evaluation
        self._done = -1  # the last step, if complete

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Notes the first signal; ends an evaluation, and anything on the second."""
        now = time.monotonic()
        if self.received and now - self._received_at < _SAME_S:
            return
        is_second, self.received = self.received > 0, self.received or number
        self._received_at = now
        if is_second or self._evaluation.is_running:
            raise KeyboardInterrupt
        if comm.is_main_process():
            print("stopping after this step; a second signal stops at once", file=sys.stderr)

    def before_step(self) -> None:
        self._done = -1

    def after_step(self) -> None:
        self._done = self.trainer.iter
        self.received = max(comm.all_gather(self.received))
        if self.received:
            raise KeyboardInterrupt

    def after_train(self) -> None:
        if self.received and self.trainer.iter + 1 >= self.trainer.max_iter:
            raise KeyboardInterrupt  # before the evaluation that follows the last step

    def save(self) -> None:
        """Saves the last step if it is complete; all processes wait for the first, which does."""
        if self._done < 0:
            return
        if self._done == self.trainer.iter:  # otherwise training had ended
            is_last = self._done + 1 == self.trainer.max_iter
            name = "model_final" if is_last else f"model_{self._done:07d}"
            self.trainer.checkpointer.save(name, iteration=self._done)
        comm.synchronize()

    def status(self) -> str:
        """Returns a sentence on the steps done and on how to continue."""
        trainer, checkpointer = self.trainer, self.trainer.checkpointer
        done = trainer.iter + (self._done == trainer.iter)
        steps = f"{done} of {trainer.max_iter} steps are done"
        if not checkpointer.has_checkpoint():
            return f"{steps}, no checkpoint is saved."
        newest = os.path.basename(checkpointer.get_checkpoint_file())
        return f"{steps}; continue from {newest} in {trainer.cfg.OUTPUT_DIR} with --resume."
