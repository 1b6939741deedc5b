"""Evaluation during training, with the best checkpoint and early stopping."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..data.training_loader import seeded_random
from ..errors import did_you_mean
from .checkpoint import SafeCheckpointer
from .parallel import share_statistics

BEST = "model_best"

logger = logging.getLogger(__name__)


class StoppedEarly(Exception):
    """Ends training before its last step; the message says why."""


class BestCheckpointer(SafeCheckpointer):
    """Saves the best weights, which a run is not resumed from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class EvaluationHook(EvalHook):
    """detectron2's ``EvalHook`` that keeps the best weights, stops early, and can be resumed.

    Of the periodic evaluations, the one with the best ``TEST.BEST_METRIC`` has its weights saved in
    ``model_best.pth``, and ``SOLVER.EARLY_STOPPING.PATIENCE`` of them without a better one end
    training. detectron2's ``BestCheckpointer`` forgets its best value when a run is resumed; this
    hook saves it in checkpoints. A checkpoint is written before the evaluation of its step, so a
    run that ended in between evaluates first when it is resumed. Training continues with the random
    numbers that it would have had without an evaluation.

    Args:
        evaluate: returns nested metrics on the main process.
        best: saves the best weights.
        writers: write the metrics right after each evaluation.
    """

    def __init__(
        self,
        cfg: CfgNode,
        evaluate: Callable[[], Mapping[str, Any]],
        best: BestCheckpointer,
        writers: Sequence[EventWriter] = (),
    ) -> None:
        super().__init__(cfg.TEST.EVAL_PERIOD, evaluate)
        self._metric = cfg.TEST.BEST_METRIC
        self._patience = cfg.SOLVER.EARLY_STOPPING.PATIENCE
        self._checkpointer, self._writers = best, writers
        self._evaluated_at = -1  # step, from 0
        self._best, self._best_at = math.nan, -1
        self._without_better = 0
        self.is_running = False

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
        if state_dict["metric"] == self._metric:
            self._best, self._best_at = state_dict["best"], state_dict["best_at"]
            self._without_better = state_dict["without_better"]

    def before_train(self) -> None:
        done = self.trainer.start_iter
        is_due = 0 < done < self.trainer.max_iter and self._period > 0 and done % self._period == 0
        if is_due and self._evaluated_at != done - 1:
            self.trainer.iter = self.trainer.storage.iter = done - 1
            self._do_eval()
            self.trainer.iter = self.trainer.storage.iter = done
        self._stop_if_enough("Training has stopped early before")

    def after_step(self) -> None:
        super().after_step()
        step = self.trainer.iter + 1
        self._stop_if_enough(f"Stopping early at step {step} of {self.trainer.max_iter}", save=True)

    def _do_eval(self) -> None:
        step = min(self.trainer.iter, self.trainer.max_iter - 1)
        share_statistics(self.trainer.model)
        self.is_running = True
        try:
            with seeded_random(0):
                results = flatten_results_dict(self._func())
        finally:
            self.is_running = False
        metrics = {name: float(value) for name, value in results.items()}
        self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
        if self._period > 0:
            self._keep_best(step, metrics)
        self._evaluated_at = step
        for writer in self._writers:
            writer.write()
        comm.synchronize()  # processes may need different times for their images

    def _keep_best(self, step: int, metrics: Mapping[str, float]) -> None:
        name, value = comm.all_gather(self._best_metric(metrics))[0]
        sign = -1 if "loss" in name else 1
        is_better = math.isnan(self._best) or sign * value > sign * self._best
        if math.isfinite(value) and is_better:
            self._without_better = 0
            self._best, self._best_at = value, step
            self._checkpointer.save(BEST, iteration=step, metrics={name: value})
            note = f"the best so far, saved in {BEST}.pth"
        else:
            self._without_better += 1
            note = f"evaluations without a better one: {self._without_better}"
        loss = metrics.get("validation/total_loss", math.nan)
        logger.info(f"Step {step + 1}: {name} {value:.4g}, validation loss {loss:.4g}; {note}")

    def _best_metric(self, metrics: Mapping[str, float]) -> tuple[str, float]:
        """Returns ``TEST.BEST_METRIC`` of the first test set."""
        for name in metrics:
            if name == self._metric or name.endswith(f"/{self._metric}"):
                return name, metrics[name]
        if metrics:
            logger.warning(
                f'TEST.BEST_METRIC: "{self._metric}" was not measured'
                f"{did_you_mean(self._metric, metrics)}; known: {', '.join(metrics)}."
            )
        return self._metric, math.nan

    def _stop_if_enough(self, how: str, *, save: bool = False) -> None:
        if not 0 < self._patience <= self._without_better:
            return
        if save:
            self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)
        self._eval_after_train = False
        raise StoppedEarly(
            f"{how}: {self._metric} has not improved in {self._without_better} evaluations "
            f"(SOLVER.EARLY_STOPPING.PATIENCE {self._patience}); the best was {self._best:.4g} at "
            f"step {self._best_at + 1}"
        )
