"""Evaluation while training: what is best, when it is enough, and going on after being stopped."""

import errno
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import EventWriter, get_event_storage
from PIL import Image
from torch import nn

from retinanet_plugin import UserError, get_config
from retinanet_plugin.engine import evaluation_hook as evaluation
from retinanet_plugin.engine.checkpoint import SafeCheckpointer
from retinanet_plugin.engine.evaluation_hook import BestCheckpointer, Evaluation, StoppedEarly

NAN = math.nan


class Metrics(EventWriter):
    """Remembers each evaluation's."""

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
    """Trains a number: the step it has come to. Its AP after that step is ``values``' next."""

    def __init__(
        self, folder: Path, values: Sequence[float], *, period: int = 2, last: int = -1, **keys: Any
    ) -> None:
        super().__init__()
        words = [str(x) for pair in keys.items() for x in pair]
        cfg = get_config("Base-RetinaNet.yaml", ["TEST.EVAL_PERIOD", str(period), *words])
        self.model = nn.Linear(1, 1)
        self.values, self.period = values, period
        self.writer = Metrics()
        self.checkpointer = SafeCheckpointer(self.model, str(folder), trainer=self)
        self.picture = folder / "pictures.png"
        self.evaluation = Evaluation(
            cfg,
            self.evaluate,
            [self.writer],
            {"mine": self.picture},
            BestCheckpointer(self.model, str(folder)),
        )
        self.register_hooks([EachStep(last), self.evaluation])
        self.drawn = torch.empty(0)

    def run_step(self) -> None:
        nn.init.constant_(self.model.weight, self.iter)
        self.drawn = torch.cat([self.drawn, torch.rand(1)])

    def evaluate(self) -> dict[str, Any]:
        torch.rand(3)
        step = int(self.model.weight.item())
        Image.fromarray(np.full((8, 10, 3), (200, 100, 0), np.uint8)).save(self.picture)
        value = self.values[step // self.period]
        return {"bbox": {"AP": value}, "validation": {"total_loss": -value}}

    def go(self, *, resume: bool = False) -> str:
        """Returns why it ended."""
        self.checkpointer.resume_or_load("", resume=resume)
        start = self.iter + 1 if resume else 0
        try:
            self.train(start, len(self.values) * self.period)
        except (StoppedEarly, KeyboardInterrupt) as reason:
            return str(reason)
        return ""


def best(folder: Path) -> tuple[int, float]:
    found = torch.load(folder / "model_best.pth", weights_only=True)
    assert found["model"]["weight"].item() == found["iteration"]
    (value,) = found["metrics"].values()
    return found["iteration"], value


@pytest.mark.parametrize(
    "values, expected",
    [
        ([10, 30, 20], (3, 30)),
        ([NAN, 5, NAN, 5], (3, 5)),
        ([NAN, 0, NAN], (3, 0)),
        ([7, 8], (3, 8)),
    ],
)
def test_the_best_is_kept(
    tmp_path: Path, values: list[float], expected: tuple[int, float], caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "retinanet_plugin")
    run = Steps(tmp_path, values)
    assert run.go() == ""
    assert best(tmp_path) == expected
    last = len(values) * 2  # the last evaluation comes after the last step
    steps = [*range(1, last - 1, 2), last]
    assert [x for x, _ in run.writer.seen] == steps
    newest = (tmp_path / "last_checkpoint").read_text()
    assert newest == f"model_{last - 1:07d}.pth"  # not the best one
    assert caplog.text.count("the best so far: model_best.pth") >= 1


def test_each_worker_evaluates_with_the_statistics_of_the_first(tmp_path, monkeypatch) -> None:
    shared: list[nn.Module] = []
    monkeypatch.setattr(evaluation, "share_statistics", shared.append)
    run = Steps(tmp_path, [10, 30])
    run.go()
    assert shared == [run.model] * 2


def test_a_loss_is_best_when_least(tmp_path: Path) -> None:
    Steps(tmp_path, [10, 30, 20], **{"TEST.BEST_METRIC": "validation/total_loss"}).go()
    assert best(tmp_path) == (3, -30)


def test_a_metric_that_is_not_measured(tmp_path: Path, caplog: Any) -> None:
    Steps(tmp_path, [10, 30], **{"TEST.BEST_METRIC": "bbox/Ap"}).go()
    assert 'no "bbox/Ap" was measured (did you mean "bbox/AP"?)' in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_without_a_period_only_the_end_is_evaluated(tmp_path: Path) -> None:
    run = Steps(tmp_path, [1.0, 2.0], period=3)
    run.evaluation._period = 0
    run.go()
    assert run.writer.seen == [(6, 2.0)]
    assert not (tmp_path / "model_best.pth").exists()
    assert not list(tmp_path.glob("pictures_*.png"))


PATIENCE = "SOLVER.EARLY_STOPPING.PATIENCE"


def test_stops_early_and_stays_stopped(tmp_path: Path) -> None:
    values = [10, 30, 20, NAN, 40, 50]
    said = Steps(tmp_path, values, **{PATIENCE: 2}).go()
    assert said == (
        "Stopping at step 8 of 12: bbox/AP has not become better in 2 evaluations; the best was 30 "
        "at step 4 (model_best.pth) (SOLVER.EARLY_STOPPING.PATIENCE); the last weights are in "
        "model_final.pth."
    )
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 7 and final["model"]["weight"].item() == 7
    again = Steps(tmp_path, values, **{PATIENCE: 2})
    said = again.go(resume=True)
    assert said.startswith("Not going on: bbox/AP has not become better in 2 evaluations")
    assert again.writer.seen == [] and best(tmp_path) == (3, 30)
    longer = Steps(tmp_path, values, **{PATIENCE: 3})
    assert longer.go(resume=True) == ""
    assert best(tmp_path) == (11, 50)


def test_last_weights_that_cannot_be_written_are_a_sentence(tmp_path, monkeypatch) -> None:
    run = Steps(tmp_path, [30, 20, 10], **{PATIENCE: 1})
    save = run.checkpointer.save

    def full(name: str, **data: Any) -> None:
        if name == "model_final":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(name, **data)

    monkeypatch.setattr(run.checkpointer, "save", full)
    with pytest.raises(UserError, match=r"model_final\.pth cannot be written .*No space left"):
        run.go()


def test_the_best_that_cannot_be_kept_leaves_it_to_the_next(tmp_path, monkeypatch, caplog) -> None:
    run = Steps(tmp_path, [10, 40, 30, 20], **{PATIENCE: 2})
    save = run.evaluation._checkpointer.save

    def full(name: str, **data: Any) -> None:
        if run.iter == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(name, **data)

    monkeypatch.setattr(run.evaluation._checkpointer, "save", full)
    assert run.go() == ""
    assert "the best so far, but not kept: No space left" in caplog.text
    assert best(tmp_path) == (5, 30)


def test_what_has_never_been_a_number_stops_too(tmp_path: Path) -> None:
    said = Steps(tmp_path, [NAN] * 5, **{PATIENCE: 3}).go()
    assert "Stopping at step 6 of 10" in said and "no number so far" in said
    assert not (tmp_path / "model_best.pth").exists()


@pytest.mark.parametrize("last", range(1, 9))
def test_ended_at_any_step_and_resumed_is_as_never_ended(tmp_path: Path, last: int) -> None:
    """``last`` is ended before its evaluation, if it has one, which is then made up for."""
    values = [10, 30, 20, 25, 28, 40]
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole = Steps(tmp_path / "whole", values, **{PATIENCE: 3})
    expected = whole.go()
    assert "Stopping at step 10" in expected
    first = Steps(tmp_path / "parts", values, last=last, **{PATIENCE: 3})
    first.go()
    second = Steps(tmp_path / "parts", values, **{PATIENCE: 3})
    assert second.go(resume=True) == expected
    assert best(tmp_path / "parts") == best(tmp_path / "whole") == (3, 30)
    assert first.writer.seen + second.writer.seen == whole.writer.seen


def test_another_metric_begins_anew(tmp_path: Path) -> None:
    Steps(tmp_path, [10, 30, 20, 25], last=5).go()
    keys = {"TEST.BEST_METRIC": "validation/total_loss"}
    Steps(tmp_path, [10, 30, 20, 25], **keys).go(resume=True)
    assert best(tmp_path) == (7, -25)


def test_training_draws_the_same_random_numbers(tmp_path: Path) -> None:
    drawn = []
    for period in (1, 4):
        torch.manual_seed(3)
        run = Steps(tmp_path, [1.0] * (8 // period), period=period)
        run.go()
        drawn.append(run.drawn)
    assert len(drawn[0]) == 8 and torch.equal(*drawn)


def test_pictures_on_a_full_disk_do_not_end_the_run(tmp_path, monkeypatch, caplog) -> None:
    def full(*words: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evaluation.shutil, "copyfile", full)
    assert Steps(tmp_path, [1.0, 2.0]).go() == ""
    assert "pictures_0000001.png cannot be written (No space left" in caplog.text


def test_pictures_are_kept_evenly_and_not_too_many(tmp_path: Path) -> None:
    run = Steps(tmp_path, [1.0] * 60, period=1)
    run.go()
    kept = sorted(int(p.stem[-7:]) for p in tmp_path.glob("pictures_*.png"))
    assert kept == [*range(2, 60, 3)]
    images = run.storage._vis_data  # what TensorBoard's writer takes
    assert {name for name, _, _ in images} == {"mine/pictures"} and len(images) == 20
    assert images[0][1].shape == (3, 4, 5) and images[0][1][:, 0, 0].tolist() == [200, 100, 0]
