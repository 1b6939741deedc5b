"""speed-accuracy: which runs are measured, and what is drawn and written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import forget_new_sets
from small_run import write_run

from projects.focal_loss_paper import speed_accuracy as command
from projects.focal_loss_paper.speed_accuracy import Model, draw, markdown
from retinanet_plugin import UserError, get_config
from retinanet_plugin.evaluation.timing import summarize

MACHINE = {"device": "abacus", "threads": 1, "torch": "9"}
# Table 1e of the paper.
PAPER = {
    "ResNet-50": [[64, 30.5], [72, 32.5], [98, 34.3], [121, 35.1], [153, 35.7]],
    "ResNet-101": [[81, 31.9], [90, 34.4], [122, 36.0], [154, 37.1], [198, 37.8]],
}


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(command, "keep_freed_memory", lambda cfg: None)  # of the whole process
    with forget_new_sets():
        yield


def model(name: str, milliseconds: list[float], ap: float, side: int = 64) -> Model:
    metrics = {"AP": ap, "AP50": ap + 20, "AP75": ap + 5}
    times = summarize([x / 1000 for x in milliseconds])
    return Model(name, get_config("Base-Scratch-R18.yaml"), metrics, (side, 80), times)


def test_the_table_has_median_and_quartiles() -> None:
    models = [model("a", [10, 20, 90, 40, 30], 12.3), model("b", [12345.6], 1.0)]
    text = markdown(models, MACHINE)
    assert "| 64 x 80, float32 | 30 (20 to 40) | 12.3 | 32.3 | 17.3 |" in text
    assert "| 12,346 (12,346 to 12,346) |" in text


@pytest.mark.parametrize("sides, line", [((64, 128), "-"), ((64, 64), "None")])
def test_the_figure_has_the_papers_curves_and_ours(sides: tuple[int, int], line: str) -> None:
    models = [
        model(name, [10 * i, 12 * i], 10.0 + i, side)
        for i, (name, side) in enumerate(zip("ab", sides, strict=True), start=1)
    ]
    left, right = draw(models, MACHINE).axes
    curves = {bars.get_label(): bars[0].get_xydata().tolist() for bars in right.containers}
    assert curves == PAPER
    (ours,) = left.containers
    np.testing.assert_allclose(ours[0].get_xydata(), [[11, 11], [22, 12]])
    assert ours[0].get_linestyle() == line


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    cfg = write_run(tmp_path)
    folder = tmp_path / "out"
    args = [str(folder), "--num-images", "2", "--rounds", "2", "--output", str(tmp_path)]
    line = {"bbox/AP": 12.5, "bbox/AP50": 32.5, "bbox/AP75": 17.5, "iteration": 5}
    (folder / "metrics.json").write_text(json.dumps(line))
    with pytest.raises(UserError, match=r"metrics\.json"):  # of an earlier checkpoint
        command.main(args)
    (folder / "metrics.json").write_text(json.dumps(line | {"iteration": cfg.SOLVER.MAX_ITER}))
    command.main([*args, "--device", "cpu"])
    assert capsys.readouterr().out.startswith("| model |")
    assert (tmp_path / "speed_accuracy.png").read_bytes().startswith(b"\x89PNG")
    (result,) = json.loads((tmp_path / "speed_accuracy.json").read_text())["models"]
    assert (result["name"], result["backbone"]) == ("out", "ResNet-18")
    assert result["metrics"] == {"AP": 12.5, "AP50": 32.5, "AP75": 17.5}
    times = result["milliseconds"]
    assert len(times["all"]) == 4 and times["median"] == pytest.approx(np.median(times["all"]))
    with pytest.raises(UserError, match=r"speed_accuracy\.png"):
        command.main(args)
    command.main([*args, "--overwrite", "INPUT.MIN_SIZE_TEST", "32"])
    (smaller,) = json.loads((tmp_path / "speed_accuracy.json").read_text())["models"]
    assert smaller["height"] < result["height"]
    with pytest.raises(UserError, match=r"absent/config\.yaml"):
        command.main(["absent"])
    with pytest.raises(UserError, match="FOLDER"):
        command.main([])
