"""Schedules for another batch size: as many images, rates in proportion."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from torch import nn, optim

from retinanet_plugin import get_config
from retinanet_plugin.config_file import shipped_configs
from retinanet_plugin.engine.scaling import scale_to_batch

MODELS = sorted(p.name for p in shipped_configs().glob("*.yaml"))


def scaled(name: str, *overrides: object) -> tuple[CfgNode, str | None]:
    """Returns the config after scaling, with the line for the log."""
    cfg = get_config(name, [str(x) for x in overrides])
    return cfg, scale_to_batch(cfg)


def test_batch_of_2_instead_of_16() -> None:
    cfg, line = scaled("Base-RetinaNet.yaml", "SOLVER.IMS_PER_BATCH", 2)
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.01 / 8)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (720_000, (480_000, 640_000))
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD) == (8_000, 40_000)
    assert cfg.TEST.EVAL_PERIOD == 0
    assert line is not None and "SOLVER.MAX_ITER 90000 -> 720000" in line


@pytest.mark.parametrize("name", MODELS)
def test_shipped_configs_are_written_for_their_batch(name: str) -> None:
    cfg, line = scaled(name)
    assert line is None and cfg == get_config(name)
    assert cfg.SOLVER.BASE_BATCH_SIZE == cfg.SOLVER.IMS_PER_BATCH


def test_given_keys_keep_their_values() -> None:
    keys = ("SOLVER.BASE_LR", "0.02", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "70000")
    cfg = get_config("Base-RetinaNet.yaml", keys)
    line = scale_to_batch(cfg, given=keys[::2])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.02, 70_000)
    assert cfg.SOLVER.WARMUP_ITERS == 4000
    assert cfg.SOLVER.STEPS == ()  # 240,000 and 320,000 lie behind the end
    assert line is not None and "BASE_LR" not in line


def test_saved_config_is_not_scaled_again(tmp_path: Path) -> None:
    first, _ = scaled("quickstart.yaml", "SOLVER.IMS_PER_BATCH", 2)
    (tmp_path / "config.yaml").write_text(first.dump())
    again, line = scaled(str(tmp_path / "config.yaml"))
    assert line is None and again.SOLVER == first.SOLVER


@pytest.mark.parametrize("batch", [1, 3, 500, 100_000])
def test_as_many_images_and_a_schedule_that_can_be_built(batch: int) -> None:
    keys = ("SOLVER.MAX_ITER", 6000, "SOLVER.STEPS", "(4000, 5990, 5999)")
    cfg, _ = scaled("Base-RetinaNet.yaml", *keys, "SOLVER.IMS_PER_BATCH", batch)
    solver = cfg.SOLVER
    assert solver.BASE_LR / batch == pytest.approx(0.01 / 16)
    assert solver.MAX_ITER == max(round(6000 * 16 / batch), 1)
    assert solver.CHECKPOINT_PERIOD >= 1
    assert list(solver.STEPS) == sorted(set(solver.STEPS))
    assert all(0 < x < solver.MAX_ITER for x in solver.STEPS)
    build_lr_scheduler(cfg, optim.SGD(nn.Linear(1, 1).parameters(), lr=solver.BASE_LR))
