import json
from pathlib import Path

import pytest
from retinanet_plugin.tools.report.command.run import Run, read_config, read_run

from retinanet_plugin import UserError, get_config

LOG = """\
[11/24 21:50:58] detectron2 INFO: Environment info:
-------------------------------  -----------------------------------------
sys.platform                     linux
Python                           3.11.7 (main, May  9 2026) [GCC 12.2.0]
detectron2                       0.6 @/somewhere/detectron2
PyTorch                          2.14.1+cu130 @/somewhere/torch
GPU available                    Yes
GPU 0,1                          NVIDIA H100 80GB HBM3 (arch=9.0)
-------------------------------  -----------------------------------------
[11/24 21:56:14] d2.engine.hooks INFO: Total training time: 0:05:15 (0:00:00 on hooks)
[11/24 21:56:17] d2.evaluation.evaluator INFO: Total inference time: 0:00:02.6 (0.5 s / iter per device, on 1 devices)
[11/25 21:50:58] detectron2 INFO: Environment info:
detectron2                       0.7.2 @/somewhere/detectron2
[11/25 21:56:14] d2.engine.hooks INFO: Total training time: 1 day, 0:00:05 (0:00:00 on hooks)
[11/25 21:56:17] d2.evaluation.evaluator INFO: Total inference time: 0:00:02.635537 (0.018176 s / iter per device, on 1 devices)
[11/25 21:56:17] d2.evaluation.evaluator INFO: Total inference pure compute time: 0:00:02 (0.016160 s / iter per device, on 1 devices)
"""  # noqa: E501


def _run(folder: Path, *lines: dict | str, log: str = "", overrides: tuple = ()) -> Run:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.json").write_text("\n".join(texts))
    (folder / "log.txt").write_text(log)
    (folder / "config.yaml").write_text(get_config(overrides=overrides).dump())
    cfg = read_config(folder)
    return read_run(folder, cfg, cfg.DATASETS.TEST)


def _step(iteration: int, loss: float, **more: float) -> dict:
    return {"iteration": iteration, "total_loss": loss, "time": 0.5, **more}


def _ap(iteration: int, ap: float, **more: float) -> dict:
    return {"iteration": iteration, "bbox/AP": ap, **more}


def test_series_and_evaluations_are_told_apart(tmp_path: Path) -> None:
    run = _run(
        tmp_path,
        _step(19, 3.0, lr=0.1),
        _step(39, 2.0, lr=0.2),
        {"iteration": 39, "validation/total_loss": 4.0},
        _ap(39, 30.0),
        _step(59, float("nan"), lr=0.1),
        _ap(60, 20.0, **{"bbox/AP-cat": float("nan")}),
    )
    assert run.series["total_loss"].steps == [19, 39, 59]
    assert run.series["total_loss"].values == [3.0, 2.0, None]
    assert run.series["validation/total_loss"].steps == [39]
    assert [(e.step, e.metrics) for e in run.evaluations] == [
        (39, {"bbox/AP": 30.0}),
        (60, {"bbox/AP": 20.0, "bbox/AP-cat": None}),
    ]
    assert (run.best, run.last) == (run.evaluations[0], run.evaluations[1])
    assert not any(key.startswith("bbox") for key in run.series)
    assert (run.steps, run.max_steps) == (60, 90000)


def test_a_run_that_went_on_counts_from_its_checkpoint(tmp_path: Path) -> None:
    run = _run(
        tmp_path,
        *(_step(19, 3.0), _step(39, 2.0), _ap(39, 30.0), _step(59, 1.0), _ap(59, 99.0)),
        '{"iteration": 79, "total_lo',  # killed
        *(_step(39, 2.5), _step(49, 2.2)),
    )
    assert run.series["total_loss"].steps == [19, 39, 49]
    assert run.series["total_loss"].values == [3.0, 2.5, 2.2]
    assert [e.step for e in run.evaluations] == [39]


def test_evaluating_an_old_checkpoint_forgets_no_training(tmp_path: Path) -> None:
    run = _run(tmp_path, _step(19, 3.0), _step(39, 2.0), _ap(40, 30.0), _ap(19, 10.0))
    assert run.series["total_loss"].steps == [19, 39]
    assert [e.step for e in run.evaluations] == [19, 40]
    assert run.last == run.evaluations[0]
    assert run.best == run.evaluations[1]


def test_of_several_test_sets_the_first_says_which_was_best(tmp_path: Path) -> None:
    lines = [
        {"iteration": i, "zoo/bbox/AP": zoo, "ant/bbox/AP": ant}
        for i, zoo, ant in ((1, 50.0, 1.0), (2, 40.0, 90.0))
    ]
    run = _run(tmp_path, *lines, overrides=("DATASETS.TEST", "('zoo', 'ant')"))
    assert run.best is not None and run.best.step == 1


def test_the_log_tells_speed_and_versions(tmp_path: Path) -> None:
    run = _run(tmp_path, _step(19, 3.0), _step(39, 2.0, time=0.7), log=LOG)
    assert run.speed.device == "NVIDIA H100 80GB HBM3"
    assert run.speed.seconds_per_step == pytest.approx(0.6)
    assert run.speed.pictures_per_second == pytest.approx(16 / 0.6)
    assert run.speed.training_seconds == 5 * 60 + 15 + 86400 + 5
    assert run.speed.seconds_per_picture == 0.018176
    assert run.speed.network_seconds_per_picture == 0.01616
    told = {key: run.versions[key] for key in ("Python", "PyTorch", "detectron2")}
    assert told == {"Python": "3.11.7", "PyTorch": "2.14.1+cu130", "detectron2": "0.7.2"}


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(get_config(overrides=["MODEL.DEVICE", "cpu"]).dump())
    (tmp_path / "metrics.json").touch()
    run = read_run(tmp_path, read_config(tmp_path), ("somewhere",))
    assert (run.best, run.last, run.series, run.steps) == (None, None, {}, 0)
    assert run.speed.device == "cpu"
    assert run.speed.training_seconds is run.speed.seconds_per_step is None


def test_settings_are_what_differs_from_the_defaults(tmp_path: Path) -> None:
    run = _run(tmp_path, overrides=("SOLVER.MAX_ITER", "7", "SEED", "3"))
    assert run.settings["SOLVER.MAX_ITER"] == "7"
    assert run.settings["SEED"] == "3"
    assert "SOLVER.MOMENTUM" not in run.settings
    assert "MAX_ITER: 7" in run.config


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml.*give the OUTPUT_DIR"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_text(f"OUTPUT_DIR: {tmp_path}/output\n")
    with pytest.raises(UserError, match=rf"holds a config, but .* no run; .* {tmp_path}/output\)"):
        read_config(tmp_path)


def test_the_folder_may_have_been_moved(tmp_path: Path) -> None:
    _run(tmp_path, overrides=("OUTPUT_DIR", "elsewhere"))
    assert read_config(tmp_path).OUTPUT_DIR == str(tmp_path)
