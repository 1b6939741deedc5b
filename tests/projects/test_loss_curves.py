"""The drawn losses against the paper's formulas, from the files that the command writes."""

import csv
from pathlib import Path

import numpy as np
import pytest

from projects.focal_loss_paper.commands import loss_curves as command
from retinanet_plugin import UserError


def columns_of(path: Path) -> dict[str, np.ndarray]:
    names, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    return dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_paper_s_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--out", str(tmp_path)])
    assert len(capsys.readouterr().out.splitlines()) == 5
    for name in ("focal_loss", "focal_loss_star"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    found = columns_of(tmp_path / "focal_loss.csv")
    p_t = found.pop("p_t")
    assert (p_t[0], p_t[-1], len(p_t)) == (0.001, 1, 1000)
    assert list(found) == [f"FL gamma={g}" for g in ("0", "0.5", "1", "2", "5")]
    for g, loss in zip((0, 0.5, 1, 2, 5), found.values(), strict=True):
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
    words = ["--gammas", "0", "3", "--appendix-gammas", "1", "--star", "3", "0.5"]
    command.main(["--out", str(tmp_path), *words])
    assert list(columns_of(tmp_path / "focal_loss.csv")) == ["p_t", "FL gamma=0", "FL gamma=3"]
    found = columns_of(tmp_path / "focal_loss_star.csv")
    assert list(found) == ["x_t", "CE", "FL gamma=1", "FL* gamma=3 beta=0.5"]
    assert found["FL* gamma=3 beta=0.5"][500] == pytest.approx(np.log1p(np.exp(-0.5)) / 3)


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "new" / "folder"), "--gammas", "1"]
    command.main(words)
    before = (tmp_path / "new/folder/focal_loss.csv").read_bytes()
    with pytest.raises(UserError, match=r"already holds focal_loss.png, .*--overwrite"):
        command.main([*words, "2"])
    assert (tmp_path / "new/folder/focal_loss.csv").read_bytes() == before
    command.main([*words, "2", "--overwrite"])
    assert (tmp_path / "new/folder/focal_loss.csv").read_bytes() != before
    assert len(list((tmp_path / "new/folder").iterdir())) == 5


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--gammas", "-1"], "gamma must be at least 0"),
        (["--star", "0", "1"], "gamma must be above 0"),
        (["--out", "file/folder"], "file/folder cannot be made"),
    ],
)
def test_mistakes(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(UserError, match=sentence):
        command.main(words)
    assert not Path("output").exists()


def test_words_that_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--gammas", "two"])
    assert "give a number" in capsys.readouterr().err
