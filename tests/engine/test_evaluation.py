"""Evaluation during training: the best checkpoint, early stopping, and both after a resume."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn

from retinanet_plugin import get_config
from retinanet_plugin.engine import evaluation_hook
from retinanet_plugin.engine.checkpoint import SafeCheckpointer
from retinanet_plugin.engine.evaluation_hook import BestCheckpointer, EvaluationHook, StoppedEarly

NAN = math.nan
PATIENCE, METRIC = "SOLVER.EARLY_STOPPING.PATIENCE", "TEST.BEST_METRIC"


class Metrics(EventWriter):
    """Remembers those of each evaluation."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def write(self) -> None:
        value, step = get_event_storage().latest()["bbox/AP"]
        self.seen.append((step, value))


class EachStep(HookBase):
    """Writes a checkpoint before the evaluation of each step, and ends the run in one."""

    def __init__(self, last: int) -> None:
        self.last = last

    def after_step(self) -> None:
        self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}")
        if self.trainer.iter == self.last:
            raise KeyboardInterrupt


class Steps(TrainerBase):
    """Sets a weight to the number of the step; evaluations take the next AP of ``values``."""

    def __init__(
        self, folder: Path, values: Sequence[float], *, period: int = 2, last: int = -1, **keys: Any
    ) -> None:
        super().__init__()
        overrides = [str(x) for pair in keys.items() for x in pair]
        cfg = get_config("Base-RetinaNet.yaml", ["TEST.EVAL_PERIOD", str(period), *overrides])
        self.model = nn.Linear(1, 1)
        self.values, self.steps = values, period
        self.writer = Metrics()
        self.checkpointer = SafeCheckpointer(self.model, str(folder), trainer=self)
        best = BestCheckpointer(self.model, str(folder))
        evaluation = EvaluationHook(cfg, self.evaluate, best, [self.writer])
        self.register_hooks([EachStep(last), evaluation])
        self.drawn = torch.empty(0)

    def run_step(self) -> None:
        nn.init.constant_(self.model.weight, self.iter)
        self.drawn = torch.cat([self.drawn, torch.rand(1)])

    def evaluate(self) -> dict[str, Any]:
        torch.rand(3)
        value = self.values[int(self.model.weight.item()) // self.steps]
        return {"bbox": {"AP": value}, "validation": {"total_loss": -value}}

    def run(self, *, resume: bool = False) -> str:
        """Returns why it ended."""
        self.checkpointer.resume_or_load("", resume=resume)
        start = self.iter + 1 if resume else 0
        try:
            self.train(start, len(self.values) * self.steps)
        except (StoppedEarly, KeyboardInterrupt) as reason:
            return str(reason)
        return ""


def best(folder: Path) -> tuple[int, float]:
    checkpoint = torch.load(folder / "model_best.pth", weights_only=True)
    assert checkpoint["model"]["weight"].item() == checkpoint["iteration"]
    (value,) = checkpoint["metrics"].values()
    return checkpoint["iteration"], value


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 30, 20], (3, 30)),
        ([NAN, 5, NAN, 5], (3, 5)),
        ([NAN, 0, NAN], (3, 0)),
        ([7, 8], (3, 8)),
    ],
)
def test_the_best_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    expected: tuple[int, float],
) -> None:
    run = Steps(tmp_path, values)
    shared: list[nn.Module] = []
    monkeypatch.setattr(evaluation_hook, "share_statistics", shared.append)
    assert run.run() == ""
    assert best(tmp_path) == expected
    assert shared == [run.model] * len(values)
    last = len(values) * 2  # the last evaluation comes after the last step
    assert [x for x, _ in run.writer.seen] == [*range(1, last - 1, 2), last]
    # Runs are not resumed from the best checkpoint.
    assert (tmp_path / "last_checkpoint").read_text() == f"model_{last - 1:07d}.pth"


def test_metric_that_is_not_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Steps(tmp_path, [10, 30], **{METRIC: "bbox/Ap"}).run()
    assert 'TEST.BEST_METRIC: "bbox/Ap"' in caplog.text and '"bbox/AP"?' in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_early_stopping_holds_after_a_resume(tmp_path: Path) -> None:
    values = [10, 30, 20, NAN, 40, 50]
    assert "step 8 of 12" in Steps(tmp_path, values, **{PATIENCE: 2}).run()
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 7 and final["model"]["weight"].item() == 7
    again = Steps(tmp_path, values, **{PATIENCE: 2})
    assert PATIENCE in again.run(resume=True)
    assert again.writer.seen == [] and best(tmp_path) == (3, 30)
    assert Steps(tmp_path, values, **{PATIENCE: 3}).run(resume=True) == ""
    assert best(tmp_path) == (11, 50)


@pytest.mark.parametrize("last", range(1, 9))
def test_resumed_after_any_step_it_ends_the_same(tmp_path: Path, last: int) -> None:
    """Step ``last`` is ended before its evaluation, if it has one, which follows on resume."""
    values = [10, 30, 20, 25, 28, 40]
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole = Steps(tmp_path / "whole", values, **{PATIENCE: 3})
    expected = whole.run()
    assert "step 10" in expected
    first = Steps(tmp_path / "parts", values, last=last, **{PATIENCE: 3})
    first.run()
    second = Steps(tmp_path / "parts", values, **{PATIENCE: 3})
    assert second.run(resume=True) == expected
    assert best(tmp_path / "parts") == best(tmp_path / "whole") == (3, 30)
    assert first.writer.seen + second.writer.seen == whole.writer.seen


def test_another_metric_starts_anew(tmp_path: Path) -> None:
    """Of a loss, the lowest is best."""
    Steps(tmp_path, [10, 30, 20, 25, 15], last=5).run()
    Steps(tmp_path, [10, 30, 20, 25, 15], **{METRIC: "validation/total_loss"}).run(resume=True)
    assert best(tmp_path) == (7, -25)


def test_training_has_the_same_random_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "retinanet_plugin")
    drawn = []
    for period in (1, 4):
        torch.manual_seed(3)
        run = Steps(tmp_path, [1.0] * (8 // period), period=period)
        run.run()
        drawn.append(run.drawn)
    assert len(drawn[0]) == 8 and torch.equal(*drawn)
    assert "model_best.pth" in caplog.text
