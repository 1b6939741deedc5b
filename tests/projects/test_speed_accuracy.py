"""speed-accuracy: which models are meant, what is measured, and what is written."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from coco_sets import forget_new_sets
from small_run import write_run

from projects.focal_loss_paper import speed_accuracy as command
from projects.focal_loss_paper.speed_accuracy import Measured, Subject, draw, markdown
from retinanet_plugin import UserError, get_config
from retinanet_plugin.command_line import split_overrides
from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.engine import Trainer

CPU = ("MODEL.DEVICE", "cpu")
MACHINE = {"device": "abacus", "threads": 1, "torch": "9"}
# Table 1e of the paper.
PAPER = {
    "ResNet-50": [(64, 30.5), (72, 32.5), (98, 34.3), (121, 35.1), (153, 35.7)],
    "ResNet-101": [(81, 31.9), (90, 34.4), (122, 36.0), (154, 37.1), (198, 37.8)],
}


@pytest.fixture(autouse=True)
def _catalogs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(command, "keep_freed_memory", lambda cfg: None)  # of the whole process
    with forget_new_sets():
        yield


def log_evaluation(folder: Path, iteration: int) -> None:
    line = {"bbox/AP": 12.5, "bbox/AP50": 32.5, "bbox/AP75": 17.5, "iteration": iteration}
    (folder / "metrics.json").write_text(json.dumps(line))


def test_overrides_begin_at_the_first_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    args = ["RUN", "a.yaml=b.pth", "SEED", "3", "TEST.DTYPE", "bfloat16"]
    assert split_overrides(args) == (args[:2], args[2:])
    assert split_overrides(args[:2]) == (args[:2], [])


def test_which_models_are_meant(tmp_path: Path) -> None:
    cfg = write_run(tmp_path)
    folder = tmp_path / "out"
    log_evaluation(folder, cfg.SOLVER.MAX_ITER)
    both = [str(folder), f"{folder}/config.yaml={folder}/model_final.pth", str(folder)]
    run, pair = command.read_subjects(both, [])
    assert (run.name, run.backbone, run.metrics["AP"]) == ("out", "ResNet-18", 12.5)
    assert (pair.name, pair.metrics) == ("model_final.pth", None)
    assert run.cfg.MODEL.WEIGHTS == pair.cfg.MODEL.WEIGHTS == str(folder / "model_final.pth")
    (run,) = command.read_subjects([str(folder)], ["INPUT.MIN_SIZE_TEST", "80"])
    assert run.cfg.INPUT.MIN_SIZE_TEST == 80 and run.metrics is None
    log_evaluation(folder, 5)  # of an earlier checkpoint
    assert command.read_subject(str(folder), "x").metrics is None


def measured(name: str, times: list[float], ap: float | None, side: int = 64) -> Measured:
    metrics = None if ap is None else {"AP": ap, "AP50": ap + 20, "AP75": ap + 5}
    subject = Subject(name, get_config("Base-Scratch-R18.yaml"))
    return Measured(subject, (side, 80), times, metrics)


def test_the_table_has_median_and_quartiles() -> None:
    times = [0.010, 0.020, 0.090, 0.040, 0.030]
    result = measured("a", times, 12.3)
    assert result.quartiles() == pytest.approx([20, 1000 * median(times), 40])
    text = markdown([result, measured("b", times, None)], MACHINE)
    assert "| 64 x 80, float32 | 30 (20 to 40) | 12.3 | 32.3 | 17.3 |" in text
    assert "| 30 (20 to 40) |  |  |  |" in text
    assert "| 12,346 (12,346 to 12,346) |" in markdown([measured("c", [12.3456], 1.0)], MACHINE)


@pytest.mark.parametrize("aps", [(12.0, None), (12.0, 15.0)])
def test_the_figure_has_the_papers_curves_and_ours(aps: tuple[float | None, ...]) -> None:
    results = [
        measured(name, [0.01 * i, 0.012 * i], ap, 64 * i)
        for i, (name, ap) in enumerate(zip("ab", aps, strict=True), start=1)
    ]
    left, right = draw(results, MACHINE).axes
    curves = {bars.get_label(): bars[0].get_xydata().tolist() for bars in right.containers}
    assert curves == {name: [list(point) for point in curve] for name, curve in PAPER.items()}
    (ours,) = left.containers
    expected = [[11 * i, ap] for i, ap in enumerate(aps, start=1) if ap is not None]
    np.testing.assert_allclose(ours[0].get_xydata(), expected)
    assert (ours[0].get_linestyle() == "-") == (len(expected) > 1)


def test_the_command_evaluates_as_training_does(tmp_path: Path, capsys: Any) -> None:
    cfg = write_run(tmp_path)
    args = [str(tmp_path / "out"), "--images", "2", "--rounds", "2", "--output", str(tmp_path)]
    command.main([*args, "--evaluate", *CPU])
    assert capsys.readouterr().out.startswith("| model |")
    assert (tmp_path / "speed_accuracy.png").read_bytes().startswith(b"\x89PNG")
    (model,) = json.loads((tmp_path / "speed_accuracy.json").read_text())["models"]
    assert (model["name"], len(model["milliseconds"]["all"])) == ("out", 4)
    register_own_datasets(cfg, training=False)
    expected = Trainer.evaluate(cfg, resume=False)["bbox"]
    assert expected["AP50"] > 0
    assert model["metrics"] == pytest.approx({x: expected[x] for x in ("AP", "AP50", "AP75")})
    with pytest.raises(UserError, match=r"speed_accuracy\.png"):
        command.main([*args, *CPU])


@pytest.mark.parametrize(
    "args, named",
    [
        (["SEED", "3"], "MODEL"),
        (["quickstart.yaml"], "quickstart.yaml"),
        (["quickstart.yaml=absent.pth"], "absent.pth"),
        (["quickstrat.yaml=x.pth"], "quickstrat.yaml"),
        ([".", *CPU], r"config\.yaml"),
    ],
)
def test_mistakes(args: list[str], named: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=named):
        command.main(args)
