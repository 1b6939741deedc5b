"""Resumed runs: after kills, and with other settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.engine import TrainerBase

from retinanet_plugin import get_config
from retinanet_plugin.engine import SafeCheckpointer
from retinanet_plugin.engine.resuming import CheckpointHook, settings_of, warn_of_changes


class Counting(TrainerBase):
    """A trainer that only counts its steps."""

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__()
        self.checkpointer = SafeCheckpointer(torch.nn.Linear(1, 1), str(folder), trainer=self)
        self.register_hooks([CheckpointHook(self.checkpointer, 2, keep)])

    def resume(self, until: int) -> None:
        loaded = self.checkpointer.resume_or_load("", resume=True)
        self.train(loaded.get("iteration", -1) + 1, until)

    def run_step(self) -> None:
        pass


def test_old_checkpoints_are_removed_also_after_a_resume(tmp_path: Path) -> None:
    Counting(tmp_path, keep=2).resume(5)
    Counting(tmp_path, keep=2).resume(9)
    assert sorted(os.listdir(tmp_path)) == [
        *("last_checkpoint", "model_0000005.pth", "model_0000007.pth", "model_final.pth")
    ]


def test_run_killed_before_its_final_checkpoint(tmp_path: Path) -> None:
    Counting(tmp_path, keep=0).resume(6)
    whole = torch.load(tmp_path / "model_final.pth", weights_only=True)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    Counting(tmp_path, keep=0).resume(6)
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert (final["iteration"], final["trainer"]) == (5, whole["trainer"])


def test_changed_settings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    before = settings_of(get_config(), "7 images (0)")
    same = get_config(overrides=["DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", "x"])
    warn_of_changes(before, settings_of(same, "7 images (0)"))
    warn_of_changes(None, settings_of(same, "7 images (0)"))  # a checkpoint of detectron2
    assert caplog.text == ""
    other = get_config(overrides=["SOLVER.IMS_PER_BATCH", "7", "SOLVER.BASE_LR", "0.5"])
    warn_of_changes(before, settings_of(other, "8 images (0)"))
    assert "SOLVER.IMS_PER_BATCH 16 -> 7" in caplog.text and "-> 0.5" in caplog.text
    assert "7 images (0) -> 8 images (0)" in caplog.text


def test_killed_runs_end_like_an_uninterrupted_one() -> None:
    """By the script that docs/operations.md names, with a kill of each kind."""
    script = Path(__file__).parents[1] / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--loader-workers", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 of 3" in done.stdout
