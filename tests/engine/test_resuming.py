"""Resumed runs: after kills, with damaged checkpoints, with other settings."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.utils.events import EventStorage
from small_training import SMALL, train

from retinanet_plugin import get_config
from retinanet_plugin.data import synthetic
from retinanet_plugin.engine import SafeCheckpointer
from retinanet_plugin.engine.resuming import (
    Checkpoints,
    EventHistory,
    settings_of,
    warn_of_changes,
)
from retinanet_plugin.errors import UserError


class Counting(TrainerBase):
    """A trainer whose one weight counts its steps."""

    def __init__(self, folder: Path, keep: int = 0) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.model.weight.data.zero_()
        self.checkpointer = SafeCheckpointer(self.model, str(folder), trainer=self)
        self.register_hooks([EventHistory(), Checkpoints(self.checkpointer, 2, keep)])
        self.start_iter = 0

    def resume(self, until: int) -> "Counting":
        loaded = self.checkpointer.resume_or_load("", resume=True)
        self.start_iter = loaded.get("iteration", -1) + 1
        self.train(self.start_iter, until)
        return self

    def run_step(self) -> None:
        self.storage.put_scalar("loss", float(self.iter**2))
        self.model.weight.data += 1


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content[: len(content) * 3 // 4])


def test_damaged_checkpoint_gives_way_to_the_one_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Counting(tmp_path).resume(7)
    for name in ("model_final.pth", "model_0000005.pth"):
        damage(tmp_path / name)
    run = Counting(tmp_path).resume(9)
    assert run.start_iter == 4 and run.model.weight.item() == 9
    assert "model_final.pth" in caplog.text and "model_0000005.pth" in caplog.text


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    Counting(tmp_path).resume(1)
    damage(tmp_path / "model_final.pth")
    with pytest.raises(UserError, match=r"model_final\.pth"):
        Counting(tmp_path).resume(4)


@pytest.mark.parametrize("content", ["", "../../etc/passwd", "model_9999999.pth"])
def test_last_checkpoint_file_is_not_needed(tmp_path: Path, content: str) -> None:
    Counting(tmp_path).resume(3)
    (tmp_path / "last_checkpoint").write_text(content)
    assert Counting(tmp_path).resume(3).start_iter == 3


def test_old_checkpoints_are_removed_also_after_a_resume(tmp_path: Path) -> None:
    Counting(tmp_path, keep=2).resume(5)
    Counting(tmp_path, keep=2).resume(9)
    assert sorted(os.listdir(tmp_path)) == [
        *("last_checkpoint", "model_0000005.pth", "model_0000007.pth", "model_final.pth")
    ]


def test_medians_in_the_log_continue(tmp_path: Path) -> None:
    def medians(run: Counting) -> dict[str, float]:
        return {k: v[0] for k, v in run.storage.latest_with_smoothing_hint(20).items()}

    for folder, ends in (("whole", (30,)), ("parts", (9, 25, 30))):
        (tmp_path / folder).mkdir()
        for end in ends:
            run = Counting(tmp_path / folder).resume(end)
        assert medians(run) == {"loss": 19.5**2 + 0.25}


def test_history_is_of_losses_not_of_metrics() -> None:
    hook = EventHistory()
    with EventStorage() as storage:
        hook.trainer = type("T", (), {"storage": storage})()
        storage.put_scalar("loss", 1.0)
        storage.put_scalar("bbox/AP", 1.0, smoothing_hint=False)
        assert list(hook.state_dict()) == ["loss"]


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset and a run of one step in ``out``."""
    folder = tmp_path_factory.mktemp("run")
    synthetic.draw_dataset(folder / "data", num_train=2, num_test=1, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(*SMALL, "OUTPUT_DIR", "out", "SOLVER.MAX_ITER", 1) == 0
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("trainer"),
        lambda c: c.update(trainer=5),
        lambda c: c["trainer"].pop("iteration"),
        lambda c: c["trainer"].update(iteration="3"),
        lambda c: c["trainer"].pop("_trainer"),
        lambda c: c["model"].update({"head.cls_score.bias": torch.zeros(9)}),
        lambda c: c["model"].clear(),
    ],
)
def test_checkpoint_of_another_program_is_refused(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], Any],
) -> None:
    monkeypatch.chdir(run)
    checkpoint = torch.load("out/model_final.pth", weights_only=True)
    change(checkpoint)
    Path("other").mkdir(exist_ok=True)
    torch.save(checkpoint, "other/model_final.pth")
    assert train("--resume", *SMALL, "OUTPUT_DIR", "other") == 2
    assert "error: --resume" in capsys.readouterr().err


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
