"""Evaluation while training: its metrics, the best weights, drawn pictures, and early stopping."""

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..data.stream import random_numbers_of
from ..errors import did_you_mean
from .best_effort_io import cannot
from .checkpoint import SafeCheckpointer
from .parallel import share_statistics
from .resuming import save_final

_MOST_PICTURES = 20  # that a run keeps of each test set, evenly over its steps
BEST = "model_best"

logger = logging.getLogger(__name__)


class StoppedEarly(Exception):
    """Ends training before its last step; the text says why."""


class BestCheckpointer(SafeCheckpointer):
    """Writes the best weights, which are not what a run goes on from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class Evaluation(HookBase):
    """Evaluates every ``TEST.EVAL_PERIOD`` steps and at the end, as detectron2's ``EvalHook`` does.

    Each of several workers evaluates with the first one's statistics of norms. Training goes on
    with the random numbers that it would have had without. Of the periodic
    evaluations, the best by ``TEST.BEST_METRIC`` has its weights kept in ``model_best.pth``, and
    too many without a better one end training. All of that is in the hook's state: a run that is
    resumed goes on with it. A checkpoint is written before the evaluation of its step, so a run
    that was ended in between, and goes on from there, makes up for it first.

    Args:
        evaluate: gives nested metrics on the main process.
        writers: of metrics, which are on disk once an evaluation has ended.
        pictures: what an evaluation has drawn, a file for each test set.
        best: writes the best weights.
    """

    def __init__(
        self,
        cfg: CfgNode,
        evaluate: Callable[[], Mapping[str, Any]],
        writers: Sequence[EventWriter],
        pictures: Mapping[str, Path],
        best: BestCheckpointer,
    ) -> None:
        self._period = cfg.TEST.EVAL_PERIOD
        self._metric = cfg.TEST.BEST_METRIC
        self._patience = cfg.SOLVER.EARLY_STOPPING.PATIENCE
        self._evaluate, self._writers = evaluate, writers
        self._pictures, self._checkpointer = pictures, best
        self._evaluated_at = -1  # the step, from 0
        self._best, self._best_at = math.nan, -1
        self._without_better = 0
        self._stopped = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "metric": self._metric,
            "evaluated_at": self._evaluated_at,
            "best": self._best,
            "best_at": self._best_at,
            "without_better": self._without_better,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated_at = state_dict["evaluated_at"]
        if state_dict["metric"] == self._metric:  # else what was best by another is none
            self._best, self._best_at = state_dict["best"], state_dict["best_at"]
            self._without_better = state_dict["without_better"]

    def before_train(self) -> None:
        last = self.trainer.start_iter - 1
        if self._is_due(last) and self._evaluated_at != last:
            self.trainer.storage.iter = last
            self._run(last)
            self.trainer.storage.iter = self.trainer.start_iter
        if self._is_enough():
            self._stopped = True
            raise StoppedEarly(
                f"Not going on: {self._why()}; a larger SOLVER.EARLY_STOPPING.PATIENCE "
                f"({self._patience}), or 0, would."
            )

    def after_step(self) -> None:
        step = self.trainer.iter
        if not self._is_due(step):
            return
        self._run(step)
        if self._is_enough():
            self._stopped = True
            save_final(self.trainer.checkpointer, step)
            raise StoppedEarly(
                f"Stopping at step {step + 1} of {self.trainer.max_iter}: {self._why()} "
                f"(SOLVER.EARLY_STOPPING.PATIENCE); the last weights are in model_final.pth."
            )

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter and not self._stopped:
            self._run(self.trainer.max_iter - 1)
        del self._evaluate  # a closure, perhaps, over the trainer

    def _is_due(self, step: int) -> bool:
        """Whether it is one of those within training; the one at its end is another."""
        done = step + 1
        return 0 < done < self.trainer.max_iter and self._period > 0 and done % self._period == 0

    def _run(self, step: int) -> None:
        share_statistics(self.trainer.model)
        with random_numbers_of(0):
            metrics = {k: float(v) for k, v in flatten_results_dict(self._evaluate()).items()}
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
            if self._period > 0:
                self._keep_best(step, metrics)
            if comm.is_main_process():
                self._keep_pictures(step)
        self._evaluated_at = step
        for writer in self._writers:
            writer.write()
        comm.synchronize()  # evaluation may take longer in some workers

    def _keep_best(self, step: int, metrics: Mapping[str, float]) -> None:
        name, value = comm.all_gather(self._of_interest(metrics))[0]
        loss = metrics.get("validation/total_loss", math.nan)
        found = f"Step {step + 1}: {name} {value:.4g}, loss on the test pictures {loss:.4g}"
        sign = -1 if "loss" in name else 1
        is_better = math.isnan(self._best) or sign * value > sign * self._best
        if math.isfinite(value) and is_better:
            self._without_better = 0
            if self._save_best(step, {name: value}, found):
                self._best, self._best_at = value, step
        else:
            self._without_better += 1
            of = f" of {self._patience}" if self._patience else ""
            logger.info(
                f"{found}; {self._said()} (evaluations without a better one: "
                f"{self._without_better}{of})"
            )

    def _save_best(self, step: int, metric: dict[str, float], found: str) -> bool:
        """Whether it is in the file, in which each worker believes the first."""
        problem = ""
        try:
            self._checkpointer.save(BEST, iteration=step, metrics=metric)
        except OSError as error:  # as for other checkpoints, a full disk does not end the run
            problem = error.strerror or str(error)
        if problem:
            logger.error(f"{found}; the best so far, but not kept: {problem}")
        else:
            logger.info(f"{found}; the best so far: {BEST}.pth")
        return not comm.all_gather(problem)[0]

    def _of_interest(self, metrics: Mapping[str, float]) -> tuple[str, float]:
        """The metric by which weights are best, of the first test set if there are several."""
        for name in metrics:
            if name == self._metric or name.endswith(f"/{self._metric}"):
                return name, metrics[name]
        if metrics:
            near = did_you_mean(self._metric, metrics)
            logger.warning(
                f'TEST.BEST_METRIC: no "{self._metric}" was measured{near}; known: '
                f"{', '.join(metrics)}."
            )
        return self._metric, math.nan

    def _is_enough(self) -> bool:
        return 0 < self._patience <= self._without_better

    def _said(self) -> str:
        if self._best_at < 0:
            return "no number so far"
        return f"the best was {self._best:.4g} at step {self._best_at + 1}"

    def _why(self) -> str:
        kept = f" ({BEST}.pth)" if self._best_at >= 0 else ""
        count = f"{self._without_better} evaluation{'s' if self._without_better > 1 else ''}"
        return f"{self._metric} has not become better in {count}; {self._said()}{kept}"

    def _keep_pictures(self, step: int) -> None:
        """Those of at most ``_MOST_PICTURES`` evaluations and the last: files and TensorBoard."""
        number_of_evaluations = self.trainer.max_iter // max(self._period, 1)
        each = math.ceil(number_of_evaluations / _MOST_PICTURES)
        number, rest = divmod(step + 1, max(self._period, 1))
        if self._period > 0 and (rest or number % each) and step + 1 < self.trainer.max_iter:
            return
        for dataset, file in self._pictures.items():
            drawn = cv2.imread(str(file)) if file.is_file() else None
            if drawn is None:
                continue
            if self._period > 0:
                copy = file.with_name(f"{file.stem}_{step:07d}{file.suffix}")
                try:
                    shutil.copyfile(file, copy)
                except OSError as error:
                    logger.error(cannot("written", copy, error))
            half = cv2.resize(drawn, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            self.trainer.storage.put_image(
                f"{dataset}/pictures", half[:, :, ::-1].transpose(2, 0, 1)
            )
