"""Rate and steps for another batch: as many pictures, rates in proportion; what is given stays."""

from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.solver import build_lr_scheduler
from torch import nn, optim

from retinanet_plugin import UserError, get_config
from retinanet_plugin.config import find_config
from retinanet_plugin.config_file import shipped_configs
from retinanet_plugin.engine.scaling import scale_to_batch, scale_to_workers

MODELS = sorted(p.name for p in shipped_configs().glob("*.yaml"))
CONFIGS = Path(__file__).parents[2] / "projects/focal_loss_paper/configs"
ROWS = [f"{CONFIGS}/{name}.yaml" for name in ("no_fpn", "a_alpha/alpha_0.50", "e_speed/R50_400")]


def scaled(path: Path, *overrides: object) -> tuple[CfgNode, list[str]]:
    words = [str(x) for x in overrides]
    cfg = get_config(path, words)
    return cfg, scale_to_batch(cfg, path, words)


def write(folder: Path, name: str, base: object, **solver: object) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({"_BASE_": base, "SOLVER": solver}))
    return path


def test_a_batch_of_2_instead_of_16() -> None:
    cfg, (line,) = scaled(find_config("Base-RetinaNet.yaml"), "SOLVER.IMS_PER_BATCH", 2)
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.01 / 8)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (720_000, (480_000, 640_000))
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD) == (8_000, 40_000)
    assert cfg.TEST.EVAL_PERIOD == 0
    assert line == (
        "Schedule for a batch of 2 instead of 16: SOLVER.BASE_LR 0.01 -> 0.00125, SOLVER.MAX_ITER "
        "90000 -> 720000, SOLVER.WARMUP_ITERS 1000 -> 8000, SOLVER.CHECKPOINT_PERIOD 5000 -> "
        "40000, SOLVER.STEPS (60000, 80000) -> (480000, 640000) (SOLVER.SCALE_TO_BATCH)"
    )


@pytest.mark.parametrize("name", [*MODELS, *ROWS])
def test_shipped_configurations_are_as_they_say(name: str) -> None:
    path = find_config(name)
    assert scaled(path) == (get_config(path), [])


def test_what_is_given_with_the_batch_or_after_it_stays() -> None:
    keys = ("SOLVER.BASE_LR", 0.02, "SOLVER.IMS_PER_BATCH", 4, "TEST.EVAL_PERIOD", 50)
    cfg, (line,) = scaled(find_config("Base-RetinaNet.yaml"), *keys)
    assert (cfg.SOLVER.BASE_LR, cfg.TEST.EVAL_PERIOD) == (0.02, 50)
    assert cfg.SOLVER.MAX_ITER == 360_000 and "BASE_LR" not in line


def test_each_layer_counts_with_its_own_batch(tmp_path: Path) -> None:
    middle = write(
        tmp_path, "middle.yaml", "Base-RetinaNet.yaml", IMS_PER_BATCH=8, BASE_LR=0.02, STEPS=[100]
    )
    top = write(tmp_path, "top.yaml", middle.name, MAX_ITER=1000)
    cfg, lines = scaled(top, "SOLVER.IMS_PER_BATCH", 4)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (0.01, 2000, (200,))
    assert cfg.SOLVER.WARMUP_ITERS == 4000  # detectron2's, for 16
    assert [x.split(": ")[0] for x in lines] == [
        "Schedule for a batch of 4 instead of 8",
        "Schedule for a batch of 4 instead of 16",
    ]
    cfg, _ = scaled(top)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.02, 1000)


def test_of_several_bases_the_last_counts(tmp_path: Path) -> None:
    write(tmp_path, "one.yaml", "Base-RetinaNet.yaml", IMS_PER_BATCH=2, BASE_LR=0.1)
    write(tmp_path, "two.yaml", "Base-RetinaNet.yaml", IMS_PER_BATCH=32, MAX_ITER=10)
    mine = write(tmp_path, "mine.yaml", ["one.yaml", "two.yaml"], WARMUP_ITERS=5)
    cfg, _ = scaled(mine)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.WARMUP_ITERS) == (32, 10, 5)
    assert solver.BASE_LR == pytest.approx(0.02)  # the base of two.yaml set 0.01 for 16 after it


def test_a_whole_configuration_is_one_layer(tmp_path: Path) -> None:
    whole, _ = scaled(find_config("quickstart.yaml"), "SOLVER.IMS_PER_BATCH", 2)
    (tmp_path / "config.yaml").write_text(whole.dump())
    again, lines = scaled(tmp_path / "config.yaml")
    assert lines == [] and again.SOLVER == whole.SOLVER


def test_it_can_be_switched_off() -> None:
    keys = ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.SCALE_TO_BATCH", False)
    cfg, lines = scaled(find_config("Base-RetinaNet.yaml"), *keys)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, lines) == (0.01, 90_000, [])


@pytest.mark.parametrize("batch", [1, 3, 16, 500, 100_000])
def test_as_many_pictures_and_a_schedule_that_can_be_built(tmp_path: Path, batch: int) -> None:
    path = write(
        tmp_path, "mine.yaml", "Base-RetinaNet.yaml", MAX_ITER=6000, STEPS=[4000, 5990, 5999]
    )
    cfg, _ = scaled(path, "SOLVER.IMS_PER_BATCH", batch, "SOLVER.WARMUP_FACTOR", 0.5)
    solver = cfg.SOLVER
    assert solver.BASE_LR / batch == pytest.approx(0.01 / 16)
    assert solver.MAX_ITER == max(round(6000 * 16 / batch), 1)
    assert solver.CHECKPOINT_PERIOD >= 1
    assert list(solver.STEPS) == sorted(set(solver.STEPS))
    assert all(0 < x < solver.MAX_ITER for x in solver.STEPS)
    layer = nn.Linear(1, 1)
    build_lr_scheduler(cfg, optim.SGD(layer.parameters(), lr=solver.BASE_LR))


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_another_number_of_workers_is_as_in_detectron2(workers: int) -> None:
    keys = ["SOLVER.REFERENCE_WORLD_SIZE", "8", "TEST.EVAL_PERIOD", "2000"]
    cfg = get_config("Base-RetinaNet.yaml", keys)
    theirs = DefaultTrainer.auto_scale_workers(cfg, workers)
    (line,) = scale_to_workers(cfg, workers)
    assert cfg == theirs
    assert cfg.SOLVER.IMS_PER_BATCH == 2 * workers
    assert f"{workers} worker" in line and "SOLVER.IMS_PER_BATCH 16 -> " in line
    assert DefaultTrainer.auto_scale_workers(cfg, workers) is cfg  # not twice
    assert scale_to_workers(cfg, workers) == []


def test_batch_and_workers_compose() -> None:
    """Two pictures a worker: on one worker the schedule is that of a batch of 2."""
    path = find_config("Base-RetinaNet.yaml")
    expected, _ = scaled(path, "SOLVER.IMS_PER_BATCH", 2)
    cfg, _ = scaled(path, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.REFERENCE_WORLD_SIZE", 4)
    scale_to_workers(cfg, 1)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    assert cfg == expected


def test_mistakes() -> None:
    path = find_config("Base-RetinaNet.yaml")
    with pytest.raises(UserError, match="IMS_PER_BATCH: 0 given"):
        scaled(path, "SOLVER.IMS_PER_BATCH", 0)
    cfg, _ = scaled(path, "SOLVER.REFERENCE_WORLD_SIZE", 3)
    with pytest.raises(UserError, match=r"3 workers cannot share out .*16"):
        scale_to_workers(cfg, 1)
