"""Signals where several processes train; tests/engine/test_parallel.py has some that do."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from detectron2.engine import TrainerBase
from torch.multiprocessing import ProcessExitedException

from retinanet_plugin import get_config
from retinanet_plugin.engine import SafeCheckpointer, launch
from retinanet_plugin.engine.evaluation_hook import BestCheckpointer, EvaluationHook
from retinanet_plugin.engine.stopping import stop_by_signal
from retinanet_plugin.errors import TO_BE_RESUMED, UserError


class Steps(TrainerBase):
    """A trainer whose second step gets a signal and fails."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(OUTPUT_DIR=str(folder))
        self.model = torch.nn.Linear(1, 1)
        self.checkpointer = SafeCheckpointer(self.model, str(folder), trainer=self)
        best = BestCheckpointer(self.model, str(folder))
        self.register_hooks([EvaluationHook(get_config(), dict, best)])

    def run_step(self) -> None:
        if self.iter == 1:
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("Connection closed by peer")


def test_step_that_cannot_end_after_a_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a signal ends another process first."""
    trainer: Any = Steps(tmp_path)
    with pytest.raises(SystemExit) as ended, stop_by_signal(trainer):
        trainer.train(0, 100)
    assert ended.value.code == TO_BE_RESUMED and not list(tmp_path.glob("*.pth"))
    assert "stopped: " in capsys.readouterr().err


@pytest.mark.parametrize("is_told", [True, False])
def test_worker_that_ends_before_it_trains(is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.multiprocessing, "active_children", list)
    with pytest.raises((SystemExit, UserError)) as ended, launch._signals_to_workers():
        if is_told:
            signal.raise_signal(signal.SIGTERM)
        raise ProcessExitedException("terminated", error_index=1, error_pid=7, exit_code=-10)
    if is_told:
        assert cast(SystemExit, ended.value).code == TO_BE_RESUMED
    else:
        assert "--resume" in str(ended.value)


@pytest.mark.parametrize("error", [RuntimeError("Connection reset"), UserError("MODEL.X: wrong")])
def test_worker_lets_another_that_died_end_first(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise error

    slept: list[float] = []
    monkeypatch.setattr(launch, "main", fail)
    monkeypatch.setattr(launch.time, "sleep", slept.append)
    with pytest.raises(type(error)):
        launch._work(cast(Any, None), None)
    assert bool(slept) == isinstance(error, RuntimeError)
