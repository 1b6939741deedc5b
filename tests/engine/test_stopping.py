"""What signals do where several processes train: the first stops, the others follow it."""

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException

from retinanet_plugin.engine import SafeCheckpointer, launch
from retinanet_plugin.engine.resuming import Checkpoints
from retinanet_plugin.engine.stopping import stop_by_signal
from retinanet_plugin.errors import TO_BE_RESUMED, UserError

TRAINER = cast(Any, None)  # of which another worker than the first asks nothing


def test_a_worker_follows_the_first_where_a_signal_has_ended_that(monkeypatch) -> None:
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    with pytest.raises(SystemExit) as ended, stop_by_signal(TRAINER):
        signal.raise_signal(signal.SIGUSR1)
        raise RuntimeError("Connection closed by peer")
    assert ended.value.code == TO_BE_RESUMED


class Full(TrainerBase):
    """A trainer whose checkpoints after the first find the disk full."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(OUTPUT_DIR=folder)
        self.checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(folder))
        self.register_hooks([Checkpoints(self.checkpointer, period=1)])

    def run_step(self) -> None:
        if self.iter == 1:
            self.checkpointer.save = full
            signal.raise_signal(signal.SIGUSR1)


def full(name: str, **data: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_step_that_cannot_be_kept_is_said_so(tmp_path, capsys) -> None:
    trainer = cast(Any, Full(tmp_path))
    with pytest.raises(SystemExit) as ended, stop_by_signal(trainer):
        trainer.train(0, 9)
    assert ended.value.code == TO_BE_RESUMED
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"stopped: model_0000001.pth cannot be written to {tmp_path} (No space left on device); "
        f"2 of 9 steps were done; go on from model_0000000.pth in {tmp_path} by the same command "
        "with --resume."
    )


class Broken(Full):
    """A trainer whose second step needs a process that the signal has ended."""

    def run_step(self) -> None:
        if self.iter == 1:
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("DataLoader worker is gone")


def test_a_step_that_a_signal_has_broken_leaves_the_one_before_it(tmp_path, capsys) -> None:
    trainer = cast(Any, Broken(tmp_path))
    with pytest.raises(SystemExit) as ended, stop_by_signal(trainer):
        trainer.train(0, 9)
    assert ended.value.code == TO_BE_RESUMED
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("stopped: within a step (RuntimeError: DataLoader worker is gone); ")
    assert "go on from model_0000000.pth" in said


def test_without_a_signal_its_error_is_one(monkeypatch) -> None:
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    with pytest.raises(RuntimeError, match="closed"), stop_by_signal(TRAINER):
        raise RuntimeError("Connection closed by peer")


def test_sigterm_ends_no_worker_before_its_step(monkeypatch) -> None:
    """To them it is another signal: by SIGTERM launch ends them."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(
        launch.multiprocessing, "active_children", lambda: [SimpleNamespace(pid=x) for x in (7, 8)]
    )
    monkeypatch.setattr(os, "kill", lambda *words: sent.append(words))
    with launch._workers_stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert sent == [(7, signal.SIGUSR1), (8, signal.SIGUSR1)]


def test_a_worker_that_waits_for_one_that_has_died_ends_in_time(monkeypatch) -> None:
    """launch sends SIGTERM then."""
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(SystemExit), stop_by_signal(TRAINER):
        signal.raise_signal(signal.SIGTERM)
        assert 0 < signal.alarm(0) <= 60
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("is_told", [True, False])
def test_workers_that_a_signal_ends_before_they_train(is_told: bool, monkeypatch, capsys) -> None:
    monkeypatch.setattr(launch.multiprocessing, "active_children", list)
    with pytest.raises((SystemExit, UserError)) as ended, launch._workers_stoppable():
        if is_told:
            signal.raise_signal(signal.SIGTERM)
        raise ProcessExitedException(
            "process 1 terminated", error_index=1, error_pid=7, exit_code=-10
        )
    if is_told:
        assert cast(SystemExit, ended.value).code == TO_BE_RESUMED
        assert capsys.readouterr().err.startswith("stopped: checkpoints are as they were")
    else:
        assert "worker process 1 ended by itself" in str(ended.value)
