"""Ctrl-C, SIGTERM and SIGUSR1: training ends after its step and keeps a checkpoint of it.

The latter two are how schedulers such as Slurm take a machine back.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils import comm

from ..errors import STOPPED, TO_BE_RESUMED, printable, sentence_of
from .parallel import started_by_torchrun
from .resuming import Checkpoints, not_written

# Windows has no SIGUSR1.
SIGNALS = [getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, x)]
_SAME = 1.0  # seconds in which two signals are one: a terminal's, and its forwarding
_GRACE = 50  # seconds that a worker has after SIGTERM


def status_of(number: int) -> int:
    """The exit status of a command that a signal ended."""
    return STOPPED if number == signal.SIGINT else TO_BE_RESUMED


@contextmanager
def handled_by(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
    """Where ``handler`` gets the signals."""
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)


@contextmanager
def stop_by_signal(trainer: DefaultTrainer) -> Iterator[None]:
    """Where :data:`SIGNALS` end the block by a sentence and the status of :func:`status_of`.

    Within a step they wait for its end, and a checkpoint is written, from which ``--resume`` goes
    on; so it is for an evaluation between steps, which is broken off and done again then. A second
    signal ends it at once. Of several workers the first does so, and whoever started them ends the
    others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of its business
        return
    if not comm.is_main_process():
        with _leave_to_the_first():
            yield
        return
    hook = _StopAfterStep()
    trainer.register_hooks([hook])
    hooks = trainer._hooks
    hooks.remove(hook)  # to where the schedule has counted the step, but no evaluation has begun
    hooks.insert([isinstance(x, Checkpoints) for x in hooks].index(True), hook)
    with handled_by(hook.request):
        try:
            yield
        except KeyboardInterrupt:
            problem = ""
            with suppress(KeyboardInterrupt):  # once more: not kept
                problem = hook.keep()
            print(f"stopped: {problem}{_what_is_kept(trainer)}", file=sys.stderr, flush=True)
            raise SystemExit(status_of(hook.number)) from None
        except Exception as error:
            if not hook.is_requested:
                raise
            why = printable(sentence_of(error) or f"{type(error).__name__}: {error}", 300)
            print(f"stopped: within a step ({why}); {_what_is_kept(trainer)}", file=sys.stderr)
            raise SystemExit(status_of(hook.number)) from None


@contextmanager
def _leave_to_the_first() -> Iterator[None]:
    """Where signals are noted only: each step needs all workers to come to its end.

    The first worker ends then, and with it the connection to it: this one ends as it does, and not
    by an error.
    """
    received: signal.Signals | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal.Signals(number)
        _end_some_time(number)

    with handled_by(note):
        try:
            yield
        except Exception:
            if received is None:
                raise
            raise SystemExit(status_of(received)) from None


def _end_some_time(number: int) -> None:
    """Sets a worker a limit to end by itself after SIGTERM.

    That comes from a scheduler, to all processes, or from detectron2's launch, as another worker
    has died: this one may wait for that, for as long as NCCL does. torchrun has such a limit too.
    """
    is_launched = comm.get_world_size() > 1 and not started_by_torchrun()
    if number == signal.SIGTERM and is_launched and hasattr(signal, "alarm"):
        signal.alarm(_GRACE)


class _StopAfterStep(HookBase):
    """Ends training by ``KeyboardInterrupt``, which the training loop does not log."""

    def __init__(self) -> None:
        self.number = signal.SIGINT
        self._requested_at: float | None = None
        self._in_step = self._in_evaluation = False

    @property
    def is_requested(self) -> bool:
        return self._requested_at is not None

    def request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested_at is not None:
            if now - self._requested_at < _SAME:
                return
            self._in_evaluation = False
            raise KeyboardInterrupt
        self._requested_at = now
        self.number = signal.Signals(number)
        if not self._in_step:
            raise KeyboardInterrupt
        _end_some_time(number)
        print(
            "stopping: this step is finished and kept first; once more stops at once.",
            file=sys.stderr,
            flush=True,
        )

    def before_step(self) -> None:
        self._in_step, self._in_evaluation = True, False

    def after_step(self) -> None:
        self._in_step, self._in_evaluation = False, True
        if self._requested_at is not None:
            if hasattr(signal, "alarm"):
                signal.alarm(0)  # a checkpoint takes as long as it does
            raise KeyboardInterrupt

    def after_train(self) -> None:
        self._in_step = False
        if self.trainer.iter >= self.trainer.max_iter:
            self._in_evaluation = False  # it follows the last checkpoint
        if self._requested_at is not None and self._was_last():
            raise KeyboardInterrupt  # before the evaluation that follows the last step

    def keep(self) -> str:
        """Writes the checkpoint of the step that is done; what went wrong, if anything did."""
        if self._in_evaluation:
            self._in_evaluation = False
            name = "model_final" if self._was_last() else f"model_{self.trainer.iter:07d}"
            checkpointer = self.trainer.checkpointer
            try:
                checkpointer.save(name, iteration=self.trainer.iter)
            except OSError as error:
                return f"{not_written(name, checkpointer.save_dir, error)}; "
        return ""

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
