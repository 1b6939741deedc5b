"""Runs that go on: after kills, with damaged checkpoints, on disks that are full."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage, JSONWriter

from retinanet_plugin import get_config
from retinanet_plugin.engine import SafeCheckpointer
from retinanet_plugin.engine import atomic_io as durable
from retinanet_plugin.engine.best_effort_io import LastingWriter
from retinanet_plugin.engine.resuming import (
    Checkpoints,
    EventHistory,
    check_state,
    complete,
    settings_of,
    warn_of_changes,
)
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


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content[: len(content) * 3 // 4])


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, caplog) -> None:
    Counting(tmp_path).go_on(7)
    for name in ("model_final.pth", "model_0000005.pth"):
        damage(tmp_path / name)
    run = Counting(tmp_path)
    run.go_on(9)
    assert run.start_iter == 4  # from model_0000003.pth
    assert run.model.weight.item() == 9
    assert "model_final.pth is damaged" in caplog.text
    assert "model_0000005.pth is damaged" in caplog.text


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


def test_a_full_disk_does_not_end_the_run(tmp_path, caplog, monkeypatch) -> None:
    def fsync(number: int) -> None:
        if run.iter == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "fsync", fsync)
    run = Counting(tmp_path)
    run.go_on(7)
    assert "model_0000003.pth cannot be written" in caplog.text
    assert "No space left" in caplog.text
    assert names(tmp_path) == [
        *("last_checkpoint", "model_0000001.pth", "model_0000005.pth", "model_final.pth")
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_a_full_disk_at_the_end_is_a_sentence(tmp_path, monkeypatch) -> None:
    def full(path: Path, mode: str):
        return open("/dev/full", "wb") if "final" in path.name else open(path, mode)

    monkeypatch.setattr(durable, "open", full, raising=False)
    with pytest.raises(UserError, match=r"model_final\.pth cannot be written .*No space left"):
        Counting(tmp_path).go_on(3)
    assert Counting(tmp_path).checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="and begin again: no checkpoint was written before"):
        Counting(tmp_path / "empty", period=9).go_on(3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_metrics_on_a_full_disk_do_not_end_the_run(tmp_path, caplog) -> None:
    run = Counting(tmp_path)
    run.register_hooks([PeriodicWriter([LastingWriter(JSONWriter("/dev/full"))], period=1)])
    assert run.go_on(7).model.weight.item() == 7
    assert caplog.text.count("metrics cannot be written (No space left on device)") == 1


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


def altered(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Counting:
    """A run whose checkpoint has been changed, and is about to be gone on with as a whole."""
    Counting(folder).go_on(3)
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / "model_final.pth")
    return Counting(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("trainer"), "holds weights alone"),
        (lambda c: c.update(trainer=5), "TypeError"),
        (lambda c: c["trainer"].pop("iteration"), "KeyError: 'iteration'"),
        (lambda c: c["model"].update(weight=torch.zeros(2, 2)), "of the model's 1 parameters"),
        (lambda c: c["model"].clear(), "it holds"),
    ],
)
def test_a_checkpoint_of_another_make_is_refused(tmp_path, change, sentence: str) -> None:
    run = altered(tmp_path, change)
    refused = pytest.raises(UserError, match=f"--resume: .*cannot go on .*({sentence})")
    with refused, complete(run.checkpointer):
        run.checkpointer.resume_or_load("", resume=True)
    assert not run.checkpointer.complete


def test_a_whole_checkpoint_is_gone_on_with(tmp_path) -> None:
    run = altered(tmp_path, lambda c: None)
    with complete(run.checkpointer):
        run.checkpointer.resume_or_load("", resume=True)
    assert run.iter == 2 and run.model.weight.item() == 3


@pytest.mark.parametrize("iteration", [-1, "3", 2.5, True, 2**63])
def test_no_step_comes_after_such_an_iteration(iteration: object) -> None:
    with pytest.raises(ValueError, match="iteration is"):
        check_state({"iteration": iteration}, torch.optim.SGD(torch.nn.Linear(1, 1).parameters()))


def test_momenta_of_another_shape_are_seen() -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    check_state({}, optimizer)
    optimizer.state[layer.weight]["momentum_buffer"] = torch.zeros(3)
    with pytest.raises(ValueError, match="momenta"):
        check_state({}, optimizer)


def test_another_batch_rate_or_data_set_is_said(caplog) -> None:
    begun = settings_of(get_config(), "7 pictures (0)")
    same = get_config(overrides=["DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", "x"])
    warn_of_changes(begun, settings_of(same, "7 pictures (0)"))
    warn_of_changes(None, settings_of(same, "7 pictures (0)"))  # of an older version
    assert caplog.text == ""
    other = get_config(overrides=["SOLVER.IMS_PER_BATCH", "7", "SOLVER.BASE_LR", "0.5"])
    warn_of_changes(begun, settings_of(other, "8 pictures (0)"))
    assert "SOLVER.IMS_PER_BATCH 16 -> 7" in caplog.text and "-> 0.5" in caplog.text
    assert "the training set 7 pictures (0) -> 8 pictures (0)" in caplog.text


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
