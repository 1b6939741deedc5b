"""Runs that go on: after kills, with damaged checkpoints, on disks that are full."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage, JSONWriter

from retinanet_plugin.engine import SafeCheckpointer, durable
from retinanet_plugin.engine.lasting import LastingWriter
from retinanet_plugin.engine.resuming import Checkpoints, EventHistory
from retinanet_plugin.errors import UserError


class Counting(TrainerBase):
    """A trainer whose one weight counts its steps."""

    def __init__(self, folder: Path, period: int = 2, keep: int = 0) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.model.weight.data.zero_()
        self.checkpointer = SafeCheckpointer(self.model, str(folder), trainer=self)
        self.register_hooks([EventHistory(), Checkpoints(self.checkpointer, period, keep)])
        self.start_iter = 0

    def go_on(self, until: int) -> "Counting":
        found = self.checkpointer.resume_or_load("", resume=True)
        self.start_iter = found.get("iteration", -1) + 1
        self.train(self.start_iter, until)
        return self

    def run_step(self) -> None:
        self.storage.put_scalar("loss", float(self.iter**2))
        self.model.weight.data += 1


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def said(caplog, monkeypatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logging.getLogger("retinanet_plugin"), "propagate", True)
    yield caplog


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content[: len(content) * 3 // 4])


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, said) -> None:
    Counting(tmp_path).go_on(7)
    for name in ("model_final.pth", "model_0000005.pth"):
        damage(tmp_path / name)
    run = Counting(tmp_path)
    run.go_on(9)
    assert run.start_iter == 4  # from model_0000003.pth
    assert run.model.weight.item() == 9
    assert "model_final.pth is damaged" in said.text
    assert "model_0000005.pth is damaged" in said.text


def test_only_damaged_checkpoints_end_it(tmp_path) -> None:
    Counting(tmp_path).go_on(2)
    damage(tmp_path / "model_final.pth")
    with pytest.raises(UserError, match=r"no checkpoint is whole: .*model_final\.pth"):
        Counting(tmp_path).go_on(4)


def test_a_torn_or_false_last_checkpoint_file_is_not_needed(tmp_path) -> None:
    Counting(tmp_path).go_on(3)
    for content in ("", "../../etc/passwd", "model_9999999.pth"):
        (tmp_path / "last_checkpoint").write_text(content)
        assert Counting(tmp_path).go_on(3).start_iter == 3


def test_a_full_disk_does_not_end_the_run(tmp_path, said, monkeypatch) -> None:
    def fsync(number: int) -> None:
        if run.iter == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "fsync", fsync)
    run = Counting(tmp_path)
    run.go_on(7)
    assert "model_0000003.pth cannot be written" in said.text
    assert "No space left" in said.text
    assert names(tmp_path) == [
        *("last_checkpoint", "model_0000001.pth", "model_0000005.pth", "model_final.pth")
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_a_full_disk_at_the_end_is_a_sentence(tmp_path, monkeypatch) -> None:
    def full(path: Path, mode: str):
        return open("/dev/full" if "final" in path.name else path, mode)

    monkeypatch.setattr(durable, "open", full, raising=False)
    with pytest.raises(UserError, match=r"model_final\.pth cannot be written .*No space left"):
        Counting(tmp_path).go_on(3)
    assert Counting(tmp_path).checkpointer.get_checkpoint_file().endswith("model_0000001.pth")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_metrics_on_a_full_disk_do_not_end_the_run(tmp_path, said) -> None:
    run = Counting(tmp_path)
    run.register_hooks([PeriodicWriter([LastingWriter(JSONWriter("/dev/full"))], period=1)])
    assert run.go_on(7).model.weight.item() == 7
    assert said.text.count("metrics cannot be written (No space left on device)") == 1


def test_as_many_checkpoints_stay_as_asked_for(tmp_path) -> None:
    Counting(tmp_path, keep=2).go_on(9)
    assert names(tmp_path) == [
        *("last_checkpoint", "model_0000005.pth", "model_0000007.pth", "model_final.pth")
    ]


def test_medians_of_the_log_go_on(tmp_path) -> None:
    def medians(run: Counting) -> dict[str, float]:
        return {k: v[0] for k, v in run.storage.latest_with_smoothing_hint(20).items()}

    whole = medians(Counting(tmp_path / "whole").go_on(30)) if make(tmp_path / "whole") else {}
    make(tmp_path / "parts")
    for until in (9, 25, 30):
        run = Counting(tmp_path / "parts").go_on(until)
    assert medians(run) == whole == {"loss": 19.5**2 + 0.25}


def make(folder: Path) -> bool:
    folder.mkdir()
    return True


def test_history_is_of_losses_not_of_metrics(tmp_path) -> None:
    hook = EventHistory()
    with EventStorage() as storage:
        hook.trainer = type("T", (), {"storage": storage})()
        storage.put_scalar("loss", 1.0)
        storage.put_scalar("bbox/AP", 1.0, smoothing_hint=False)
        assert list(hook.state_dict()) == ["loss"]


def test_killed_runs_end_as_the_whole_one() -> None:
    """By the script that docs/operations.md names, with a kill of each kind."""
    script = Path(__file__).parents[1] / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--loader-workers", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 of 3 killed runs ended as the whole one" in done.stdout
