"""Progress on a terminal: one line with the time left.

detectron2's log goes to ``OUTPUT_DIR/log.txt``, and is printed only if stderr is no terminal.
"""

import io
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

_PERIOD = 20  # steps between two updates of the losses, which are medians of as many
_FORMAT = "{desc}{n_fmt}/{total_fmt}{unit}s |{bar:16}| {rate_fmt}, {remaining} left{postfix}"


def on_terminal() -> bool:
    """Returns whether this process shows progress: the main one, if stderr is a terminal."""
    return comm.is_main_process() and sys.stderr.isatty()


def start_logs(folder: str) -> None:
    """Opens ``folder/log.txt`` as detectron2's ``default_setup`` does; prints less on a terminal.

    Of detectron2's lines, a terminal shows only warnings and AP tables.
    """
    rank = comm.get_rank()
    logs = [
        setup_logger(folder, distributed_rank=rank, name="retinanet_plugin"),
        setup_logger(folder, distributed_rank=rank, name="fvcore"),
        setup_logger(folder, distributed_rank=rank),  # same arguments as default_setup's: cached
    ]
    if not on_terminal():
        return
    for handler in {handler for log in logs for handler in log.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
            handler.addFilter(_is_shown)
            handler.setStream(DummyTqdmFile(handler.stream))


def _is_shown(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING or record.name.startswith("retinanet_plugin"):
        return True
    is_evaluation = record.name.startswith("detectron2.evaluation")
    return is_evaluation and record.getMessage().startswith(("Evaluation results", "Per-category"))


class ProgressLine(HookBase):
    """Shows steps, speed, time left, and losses."""

    def before_train(self) -> None:
        start, total = self.trainer.start_iter, self.trainer.max_iter
        self._bar = _bar(initial=start, total=total, unit=" step", smoothing=0)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % _PERIOD == 0 or done - self.trainer.start_iter <= _PERIOD:
            latest = self.trainer.storage.latest_with_smoothing_hint(_PERIOD)
            names = [x for x in latest if x.startswith("loss_") and "/" not in x]
            losses = [f"{x.removeprefix('loss_')} {latest[x][0]:.3g}" for x in names]
            total = latest["total_loss"][0] if "total_loss" in latest else math.nan
            self._bar.set_postfix_str(f"loss {total:.3g} ({', '.join(losses)})", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()


@contextmanager
def evaluation_progress(loader: Iterable[Any], name: str) -> Iterator[Iterable[Any]]:
    """Yields the loader; on a terminal, iterating over it shows progress.

    There, what evaluators print goes to the log.
    """
    if not on_terminal():
        yield loader
        return
    printed = io.StringIO()
    with (
        _bar(loader, desc=f"{name}: ", unit=" image", leave=False) as bar,
        redirect_stdout(printed),
    ):
        yield bar
    logging.getLogger("detectron2.evaluation").info(f"Printed:\n{printed.getvalue()}")


def _bar(*args: Any, **kwargs: Any) -> Any:
    # At the same position: only one bar is updated at a time.
    options = {"bar_format": _FORMAT, "position": 0, "miniters": 1, "dynamic_ncols": True}
    return tqdm(*args, **options, **kwargs)
