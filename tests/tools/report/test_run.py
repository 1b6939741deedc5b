"""What metrics.json, log.txt and config.yaml of a run say."""

import json
import math
from pathlib import Path

import pytest

from retinanet_plugin import UserError, get_config
from retinanet_plugin.tools.report.run import Run, read_config, read_run

LOG = """\
[11/24 21:50:58] detectron2 INFO: Environment info:
-------------------------------  -----------------------------------------
GPU available                    Yes
GPU 0,1                          NVIDIA H100 80GB HBM3 (arch=9.0)
-------------------------------  -----------------------------------------
[11/24 21:56:14] d2.engine.hooks INFO: Total training time: 0:05:15 (0:00:00 on hooks)
[11/24 21:56:17] d2.evaluation.evaluator INFO: Total inference time: 0:00:02.6 (0.5 s / iter per device, on 1 devices)
[11/25 21:50:58] detectron2 INFO: Environment info:
[11/25 21:56:14] d2.engine.hooks INFO: Total training time: 1 day, 0:00:05 (0:00:00 on hooks)
[11/25 21:56:17] d2.evaluation.evaluator INFO: Total inference time: 0:00:02.635537 (0.018176 s / iter per device, on 1 devices)
[11/25 21:56:17] d2.evaluation.evaluator INFO: Total inference pure compute time: 0:00:02 (0.016160 s / iter per device, on 1 devices)
"""  # noqa: E501


def run_of(folder: Path, *lines: dict | str, log: str = "", overrides: tuple = ()) -> Run:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.json").write_text("\n".join(texts))
    (folder / "log.txt").write_text(log)
    (folder / "config.yaml").write_text(get_config(overrides=overrides).dump())
    return read_run(folder, read_config(folder))


def step(iteration: int, loss: float, **more: float) -> dict:
    return {"iteration": iteration, "total_loss": loss, "time": 0.5, **more}


def ap(iteration: int, value: float, **more: float) -> dict:
    return {"iteration": iteration, "bbox/AP": value, **more}


def test_series_and_steps(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        step(19, 3.0, lr=0.1),
        step(39, 2.0, lr=0.2),
        {"iteration": 39, "validation/total_loss": 4.0},
        ap(39, 30.0),
        step(59, float("nan"), lr=0.1),
        ap(60, 20.0, **{"bbox/AP-cat": 10.0}),
    )
    assert list(run.series["total_loss"]) == [19, 39, 59]
    assert math.isnan(run.series["total_loss"][59])
    assert run.series["validation/total_loss"] == {39: 4.0}
    assert (run.series["bbox/AP"], run.series["bbox/AP-cat"]) == ({39: 30.0, 60: 20.0}, {60: 10.0})
    assert (run.last, run.steps, run.max_steps) == (60, 60, 90000)


def test_a_resumed_run_counts_from_its_checkpoint(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        *(step(19, 3.0), step(39, 2.0), ap(39, 30.0), step(59, 1.0), ap(59, 99.0)),
        '{"iteration": 79, "total_lo',  # killed
        *(step(39, 2.5), step(49, 2.2)),
    )
    assert run.series["total_loss"] == {19: 3.0, 39: 2.5, 49: 2.2}
    assert list(run.series["bbox/AP"]) == [39]


def test_evaluating_an_old_checkpoint_removes_no_training(tmp_path: Path) -> None:
    run = run_of(tmp_path, step(19, 3.0), step(39, 2.0), ap(40, 30.0), ap(19, 10.0))
    assert list(run.series["total_loss"]) == [19, 39]
    assert (list(run.series["bbox/AP"]), run.last) == ([19, 40], 19)


def test_the_log_tells_the_speed(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        step(19, 3.0),
        step(39, 2.0, time=0.7),
        log=LOG,
        overrides=("MODEL.DEVICE", "cuda"),
    )
    assert run.device == "NVIDIA H100 80GB HBM3"
    # 5 min 15 s, then a day and 5 s; 16 images a step; the times of the last evaluation.
    numbers = ["1 day, 0:05:20", "600.0 ms", f"{16 / 0.6:.1f}", "18.2 ms", "16.2 ms"]
    assert list(run.speed.values()) == numbers


def test_a_run_without_a_step_and_its_settings(tmp_path: Path) -> None:
    keys = ("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "7", "OUTPUT_DIR", "elsewhere")
    run = run_of(tmp_path, overrides=keys)
    assert (run.last, run.series, run.steps) == (None, {}, 0)
    assert (run.device, run.speed) == ("cpu", {})
    assert run.settings["SOLVER.MAX_ITER"] == "7" and "MAX_ITER: 7" in run.config
    assert "SOLVER.MOMENTUM" not in run.settings
    assert read_config(tmp_path).OUTPUT_DIR == str(tmp_path)  # the folder may have been moved
    assert read_config(tmp_path, ["DATASETS.OWN.ROOT", "new"]).DATASETS.OWN.ROOT == "new"


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_text(f"OUTPUT_DIR: {tmp_path}/output\n")
    with pytest.raises(UserError, match=f"{tmp_path}/output"):
        read_config(tmp_path)
