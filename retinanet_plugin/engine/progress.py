"""What a terminal shows of training and evaluation: one line with the time left.

detectron2's log is in ``OUTPUT_DIR/log.txt``, and is printed only where no terminal is.
"""

import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

_PERIOD = 20  # steps between two looks at the losses, and those their median is of
_FORMAT = "{desc}{n_fmt}/{total_fmt}{unit}s |{bar:16}| {rate_fmt}, {remaining} left{postfix}"


def on_terminal() -> bool:
    """Whether this process shows progress: the main one, where stderr is a terminal."""
    return comm.is_main_process() and sys.stderr.isatty()


def start_logs(folder: str) -> None:
    """Opens ``folder/log.txt`` as detectron2's ``default_setup`` does; on a terminal, prints less.

    There, of detectron2's lines only warnings and AP tables are printed, around the progress line.
    """
    rank = comm.get_rank()
    logs = [
        setup_logger(folder, distributed_rank=rank, name="retinanet_plugin"),
        setup_logger(folder, distributed_rank=rank, name="fvcore"),
        setup_logger(folder, distributed_rank=rank),  # as default_setup calls it, or it adds more
    ]
    if not on_terminal():
        return
    for handler in {handler for log in logs for handler in log.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
            handler.addFilter(_is_for_people)
            handler.setStream(DummyTqdmFile(handler.stream))


def _is_for_people(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING or record.name.startswith("retinanet_plugin"):
        return True
    is_evaluation = record.name.startswith("detectron2.evaluation")
    return is_evaluation and record.getMessage().startswith(("Evaluation results", "Per-category"))


class ProgressLine(HookBase):
    """Steps, how fast, the time left, and losses: medians of 20 steps, as in the log."""

    def before_train(self) -> None:
        trainer = self.trainer
        self._bar = _bar(
            initial=trainer.start_iter, total=trainer.max_iter, unit=" step", smoothing=0
        )

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % _PERIOD == 0 or done - self.trainer.start_iter <= _PERIOD:
            self._bar.set_postfix_str(_losses(self.trainer.storage), refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()


def _losses(storage: Any) -> str:
    latest = storage.latest_with_smoothing_hint(_PERIOD)
    if "total_loss" not in latest:
        return ""
    losses = {x: latest[x][0] for x in latest if x.startswith("loss_") and "/" not in x}
    parts = ", ".join(f"{name.removeprefix('loss_')} {x:.3g}" for name, x in losses.items())
    return f"loss {latest['total_loss'][0]:.3g}" + (f" ({parts})" if parts else "")


@contextmanager
def evaluation_progress(pictures: Iterable[Any], name: str) -> Iterator[Iterable[Any]]:
    """On a terminal: a line that counts the batches of ``pictures``, for it to be evaluated on.

    What evaluators print there goes into the log.
    """
    if not on_terminal():
        yield pictures
        return
    printed = io.StringIO()
    bar = _bar(pictures, desc=f"{name}: ", unit=" picture", leave=False)
    with bar, redirect_stdout(printed):
        yield bar
    logging.getLogger("detectron2.evaluation").info(f"Printed:\n{printed.getvalue()}")


def _bar(*args: Any, **kwargs: Any) -> Any:
    try:
        known = min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except OSError:
        known = False
    # On a terminal of no size tqdm would show nothing.
    size = {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
    # All in the same place: only one is renewed at a time.
    return tqdm(*args, bar_format=_FORMAT, position=0, miniters=1, **size, **kwargs)
