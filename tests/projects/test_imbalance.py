"""The numbers read from training logs, which test_loss_shares checks, and the command."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from projects.focal_loss_paper import imbalance as command
from projects.focal_loss_paper.imbalance import read_run
from retinanet_plugin import UserError


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


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        write_log(tmp_path / f"run{i}", logged(19, 0.75 - i / 4), logged(39, 0.5, positive=5.0))
        for i in range(2)
    ]
    command.main([*map(str, folders)])
    shown = capsys.readouterr().out
    assert "| run0 | 39 | 4.5 | 9.0 | 986.5 | 75.0% | 50.0% |" in shown
    assert (tmp_path / "run0/imbalance/imbalance.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "run0/imbalance/imbalance.csv").read_text().splitlines()
    rows = list(csv.reader(lines))
    assert [row[0] for row in rows] == ["run", "run0", "run0", "run1", "run1"]
    assert rows[2] == ["run0", "39", "5", "10", "985", "0.5", "0.5"]
    with pytest.raises(UserError, match="--overwrite"):
        command.main([*map(str, folders)])


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent/metrics\.json"):
        command.main([str(tmp_path / "absent")])
    folder = write_log(tmp_path / "run", {"iteration": 19, "total_loss": 1.0})
    with pytest.raises(UserError, match=r"MODEL\.RETINANET\.LOG_LOSS_SHARES"):
        command.main([str(folder)])
    assert not (folder / "imbalance").exists()
