"""The drawn losses against the paper's formulas, read from the files that the command writes."""

import csv
from pathlib import Path

import numpy as np
import pytest

from projects.focal_loss_paper import loss_curves as command
from retinanet_plugin import UserError


def columns_of(path: Path) -> dict[str, np.ndarray]:
    names, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    return dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_papers_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--output", str(tmp_path)])
    assert len(capsys.readouterr().out.splitlines()) == 5
    for name in ("focal_loss", "focal_loss_star"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    columns = columns_of(tmp_path / "focal_loss.csv")
    p_t = columns.pop("p_t")
    assert (p_t[0], p_t[-1], len(p_t)) == (0.001, 1, 1000)
    assert list(columns) == [f"FL gamma={g}" for g in ("0", "0.5", "1", "2", "5")]
    for g, loss in zip((0, 0.5, 1, 2, 5), columns.values(), strict=True):
        np.testing.assert_allclose(loss, -((1 - p_t) ** g) * np.log(p_t), rtol=1e-7, atol=1e-15)

    values = columns_of(tmp_path / "focal_loss_star.csv")
    derivatives = columns_of(tmp_path / "focal_loss_star_derivatives.csv")
    x_t = values.pop("x_t")
    np.testing.assert_array_equal(x_t, derivatives.pop("x_t"))
    assert (x_t[0], x_t[-1]) == (-5, 5)
    p = sigmoid(x_t)
    expected = {
        "CE": (-np.log(p), p - 1),
        "FL gamma=2": (
            -((1 - p) ** 2) * np.log(p),
            (1 - p) ** 2 * (2 * p * np.log(p) + p - 1),
        ),
    }
    for gamma, beta in ((2, 1), (4, 0)):
        star = sigmoid(gamma * x_t + beta)
        expected[f"FL* gamma={gamma} beta={beta}"] = (-np.log(star) / gamma, star - 1)
    assert list(values) == list(derivatives) == list(expected)
    for name, (value, derivative) in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-7, err_msg=name)
        np.testing.assert_allclose(derivatives[name], derivative, rtol=1e-7, err_msg=name)


def test_other_settings(tmp_path: Path) -> None:
    command.main(["--output", str(tmp_path), "--star", "3", "0.5", "--gammas", "0,3"])
    assert list(columns_of(tmp_path / "focal_loss.csv")) == ["p_t", "FL gamma=0", "FL gamma=3"]
    columns = columns_of(tmp_path / "focal_loss_star.csv")
    assert list(columns) == ["x_t", "CE", "FL gamma=2", "FL* gamma=3 beta=0.5"]
    assert columns["FL* gamma=3 beta=0.5"][500] == pytest.approx(np.log1p(np.exp(-0.5)) / 3)
    with pytest.raises(UserError, match="--overwrite"):
        command.main(["--output", str(tmp_path)])


@pytest.mark.parametrize("args", [["--gammas", "-1"], ["--star", "0", "1"]])
def test_mistakes(args: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--gammas.*--star"):
        command.main([*args, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_not_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--gammas", "two"])
    assert "--gammas" in capsys.readouterr().err
