"""The numbers read from training logs, and the command that draws them."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import random_picture, small_config
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage, JSONWriter

from projects.focal_loss_paper import imbalance as command
from projects.focal_loss_paper.imbalance import read_run
from retinanet_plugin import UserError
from retinanet_plugin.engine.loss_shares import LossShares


def logged(iteration: int, share: float, positive: float = 4.0) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "total_loss": 1.0,
        "anchors/positive": positive,
        "anchors/ignored": 2 * positive,
        "anchors/negative": 1000 - 3 * positive,
        "loss_cls_share/positive": 1 - share,
        "loss_cls_share/negative": share,
    }


def write_log(folder: Path, *lines: dict[str, Any] | str) -> Path:
    folder.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.json").write_text("\n".join(texts) + "\n")
    return folder


def test_what_was_logged_last_counts(tmp_path: Path) -> None:
    folder = write_log(
        tmp_path / "run",
        # A run, and another one in the same folder.
        *(logged(19, 0.9), logged(39, 0.9), logged(59, 0.9), logged(79, 0.9)),
        *(logged(19, 0.8), {"iteration": 20, "total_loss": 2.0}, logged(39, 0.7), logged(59, 0.6)),
        '{"iteration": 79, "anchors/posit',  # killed while writing, and resumed
        *(logged(39, 0.5), logged(59, 0.4, positive=6.0)),
        {"iteration": 0, "bbox/AP": float("nan")},  # evaluations
        {"iteration": 59, "bbox/AP": 50.0},
        "3",
    )
    run = read_run(folder, "a name")
    assert run.name == "a name"
    assert run.iteration.tolist() == [19, 39, 59]
    assert run.columns["share_of_negatives"].tolist() == [0.8, 0.5, 0.4]
    assert run.columns["share_of_positives"] == pytest.approx([0.2, 0.5, 0.6])
    assert run.columns["positives"].tolist() == [4, 4, 6]
    assert run.columns["ignored"].tolist() == [8, 8, 12]
    assert run.columns["negatives"].tolist() == [988, 988, 982]


@pytest.mark.parametrize("count", [1, 2])
def test_the_command(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        write_log(tmp_path / f"run{i}", logged(19, 0.75 - i / 4), logged(39, 0.5, positive=5.0))
        for i in range(count)
    ]
    command.main([*map(str, folders)])
    shown = capsys.readouterr().out
    assert "| run0 | 39 | 4.5 | 9.0 | 986.5 | 75.0% | 50.0% |" in shown
    assert (tmp_path / "run0/imbalance/imbalance.png").read_bytes().startswith(b"\x89PNG")
    rows = list(
        csv.DictReader((tmp_path / "run0/imbalance/imbalance.csv").read_text().splitlines())
    )
    assert [row["run"] for row in rows] == [f"run{i}" for i in range(count) for _ in range(2)]
    assert list(rows[1].values()) == ["run0", "39", "5", "10", "985", "0.5", "0.5"]
    with pytest.raises(UserError, match="--overwrite"):
        command.main([*map(str, folders)])


def test_the_numbers_are_those_that_training_logs(tmp_path: Path) -> None:
    """Under these names and per image: against the labels of the assigner."""
    model = build_model(small_config())
    hook = LossShares(model)
    hook.before_train()
    images = [random_picture(64, 96, 4), random_picture(64, 64, 1)]
    with EventStorage() as storage:
        writer = JSONWriter(str(tmp_path / "metrics.json"))
        for _ in range(20):
            model(images)
            hook.trainer = SimpleNamespace(iter=storage.iter, storage=storage)
            hook.after_step()
            if (storage.iter + 1) % 20 == 0:
                writer.write()
            storage.step()
        writer.close()
        expected = storage.latest()["num_pos_anchors"][0]
    run = read_run(tmp_path, "run")
    assert run.iteration.tolist() == [19]
    (positives,) = run.columns["positives"]
    assert positives == expected
    # Of 64 x 96 pixels, to which the smaller image is padded, in five levels.
    total = sum(run.columns[name] for name in ("positives", "ignored", "negatives"))
    assert total == pytest.approx(9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1))
    shares = np.array([run.columns[f"share_of_{name}"] for name in ("positives", "negatives")])
    assert shares.sum() == pytest.approx(1) and (shares > 0).all()


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent/metrics\.json"):
        command.main([str(tmp_path / "absent")])
    folder = write_log(tmp_path / "run", {"iteration": 19, "total_loss": 1.0})
    with pytest.raises(UserError, match=r"MODEL\.RETINANET\.LOG_LOSS_SHARES"):
        command.main([str(folder)])
    assert not (folder / "imbalance").exists()
