"""What is planned for a table's rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.solver import build_lr_scheduler

from projects.focal_loss_paper.ablation_plan import (
    Options,
    Plan,
    Run,
    check_unchanged,
    make_plans,
)
from projects.focal_loss_paper.common import CONFIGS
from projects.focal_loss_paper.tables import TABLES
from retinanet_plugin import UserError, get_config
from retinanet_plugin.utils import flatten

DATA = ("quickstart.yaml", "bccd_R18_FPN.yaml", "coco")


def plan_of(name: str, **options: Any) -> Plan:
    (plan,) = make_plans([name], Options(**options))
    return plan


def run_of(plan: Plan, name: str) -> Run:
    (run,) = (runs[0] for row, runs in plan.runs.items() if row.name == name)
    return run


def write_row(run: Run) -> None:
    """As the command does before it starts a run."""
    run.folder.mkdir(parents=True)
    run.config_file.write_text(run.cfg.dump())


@pytest.mark.parametrize("name", [name for name in TABLES if name != "e_speed"])
@pytest.mark.parametrize("data", DATA[:2])
def test_a_row_differs_from_the_data_in_its_own_keys_alone(name: str, data: str) -> None:
    base = dict(flatten(get_config(data)))
    for row, (run,) in plan_of(name, data=data).runs.items():
        own = dict(flatten(yaml.safe_load(row.path.read_text())))
        if own.pop("_BASE_") == "cross_entropy.yaml":  # no_prior has its keys too
            own |= dict(flatten(yaml.safe_load((CONFIGS / "cross_entropy.yaml").read_text())))
        own = {k: v for k, v in own.items() if k not in ("_BASE_", "OUTPUT_DIR")}
        cfg = dict(flatten(run.cfg))
        differing = {key for key in cfg if cfg[key] != base[key]} - {"OUTPUT_DIR", "SEED"}
        assert differing <= own.keys()
        scale = base["MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE"] / 4  # 2 strides, not 4: half as large
        if sizes := own.pop("MODEL.ANCHOR_GENERATOR.SIZES", None):
            assert cfg["MODEL.ANCHOR_GENERATOR.SIZES"] == [[x * scale for x in sizes[0]]]
        assert all(cfg[key] == value for key, value in own.items())


@pytest.mark.parametrize("name", TABLES)
def test_rows_on_the_papers_data_are_their_own_configs(name: str) -> None:
    for row, (run,) in plan_of(name).runs.items():
        cfg, own = dict(flatten(run.cfg)), dict(flatten(get_config(row.path)))
        assert {key for key in cfg if cfg[key] != own[key]} == {"OUTPUT_DIR", "SEED"}


@pytest.mark.parametrize(
    "data, largest, depths",
    [
        (DATA[0], 128, (50, 101)),
        (DATA[1], 240, (18, 34)),
        ("retinanet_R50_FPN_1x.yaml", 800, (50, 101)),
    ],
)
def test_sizes_and_depths_of_table_e(data: str, largest: int, depths: tuple[int, int]) -> None:
    for row, (run,) in plan_of("e_speed", data=data).runs.items():
        depth, pixels = row.name.removeprefix("R").split("_")
        assert run.cfg.MODEL.RESNETS.DEPTH == depths[depth == "101"]
        size = largest * int(pixels) // 800
        assert (run.cfg.INPUT.MIN_SIZE_TRAIN, run.cfg.INPUT.MIN_SIZE_TEST) == ((size,), size)
        assert run.cfg.INPUT.MAX_SIZE_TEST == pytest.approx(size * 5 / 3, abs=1)
        if run.cfg.MODEL.WEIGHTS:
            assert f"R-{depth}.pkl" in run.cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("data", DATA)
def test_the_yaml_of_a_run_is_its_config(data: str, tmp_path: Path) -> None:
    overrides = ("SOLVER.BASE_LR", "0.5", "INPUT.CROP.SIZE", "[0.7, 0.6]")
    options = {"data": data, "output": tmp_path, "steps": 70, "seeds": (3, 4)}
    runs = plan_of("e_speed", overrides=overrides, **options).chosen
    assert len(runs) == 2 * len(TABLES["e_speed"].rows)
    for run in runs[:2]:
        write_row(run)
        by_hand = dict(flatten(get_config(run.config_file)))
        assert json.dumps(by_hand) == json.dumps(dict(flatten(run.cfg)))
        cfg = run.cfg
        assert (cfg.SOLVER.BASE_LR, cfg.INPUT.CROP.SIZE) == (0.5, [0.7, 0.6])
        assert cfg.OUTPUT_DIR == str(run.folder) and f"seed_{cfg.SEED}" in cfg.OUTPUT_DIR


@pytest.mark.parametrize("steps, milestones", [(1, ()), (5, (4,)), (300, (210, 270))])
def test_what_counts_steps_follows_them(steps: int, milestones: tuple[int, ...]) -> None:
    cfg = run_of(plan_of("a_alpha", data=DATA[1], steps=steps), "alpha_0.50").cfg
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (steps, milestones)
    assert cfg.SOLVER.WARMUP_ITERS == max(round(steps / 6), 1)
    assert cfg.SOLVER.CHECKPOINT_PERIOD == max(round(steps / 3), 1)
    build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))
    # Already for this batch size, so that training does not scale them again.
    batch = ("SOLVER.BASE_BATCH_SIZE", "16", "SOLVER.IMS_PER_BATCH", "4")
    solver = run_of(plan_of("a_alpha", steps=steps, overrides=batch), "alpha_0.50").cfg.SOLVER
    assert (solver.MAX_ITER, solver.BASE_LR, solver.BASE_BATCH_SIZE) == (steps, 0.01 / 4, 0)


def test_own_rows(tmp_path: Path) -> None:
    """A user's files count, except for the output; so does what a row of the paper varies."""
    text = "MODEL: {RETINANET: {PRIOR_PROB: 0.02}}\nSOLVER: {BASE_LR: 0.123}\n"
    (tmp_path / "base.yaml").write_text(f'_BASE_: "{CONFIGS}/no_fpn.yaml"\n{text}')
    text = 'INPUT: {MIN_SIZE_TEST: 96}\nOUTPUT_DIR: "mine"\n'
    (tmp_path / "own_row.yaml").write_text(f'_BASE_: "base.yaml"\n{text}')
    for data, steps, size in (("quickstart", 1400, 128), ("coco", 90_000, 600)):
        plan = plan_of("b_gamma", data=data, own_rows=[tmp_path / "own_row.yaml"])
        assert [row.label for row in plan.runs][-2:] == ["gamma 5, alpha 0.25", "own row"]
        run = run_of(plan, "own_row")
        model, solver, image = run.cfg.MODEL, run.cfg.SOLVER, run.cfg.INPUT
        assert (model.RETINANET.PRIOR_PROB, solver.BASE_LR, solver.MAX_ITER) == (0.02, 0.123, steps)
        assert (image.MIN_SIZE_TRAIN, image.MIN_SIZE_TEST) == ((size,), 96)
        no_fpn = run_of(plan_of("variants", data=data), "no_fpn").cfg
        assert model.ANCHOR_GENERATOR == no_fpn.MODEL.ANCHOR_GENERATOR
        assert run.folder.parent.name == "own_row"


def test_a_row_of_several_tables_is_one_run() -> None:
    plans = make_plans(["b_gamma", "fl_star", "variants"], Options())
    folders = {run_of(plan, "gamma_2.0").folder for plan in plans}
    assert folders == {Path("output/ablations/b_gamma/gamma_2.0/seed_1")}


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    options = {"data": "quickstart", "output": tmp_path}
    run = run_of(plan_of("a_alpha", **options), "alpha_0.50")
    write_row(run)
    elsewhere = plan_of("a_alpha", overrides=["DATALOADER.NUM_WORKERS", "3"], **options)
    check_unchanged([run, *elsewhere.chosen])
    with pytest.raises(UserError, match=r"alpha_0.50/seed_1: .*SOLVER.MAX_ITER 1400 -> 7"):
        check_unchanged(plan_of("a_alpha", steps=7, **options).chosen)


@pytest.mark.parametrize(
    "names, options, named",
    [
        (["b_gama"], {}, 'TABLE.*"b_gamma"'),
        ([], {}, "TABLE"),
        (["b_gamma"], {"rows": ["gamma_2"]}, "--rows.*gamma_2"),
        (["b_gamma"], {"data": "quikstart"}, "quikstart.yaml"),
        (["b_gamma"], {"own_rows": [Path("absent.yaml")]}, "absent.yaml"),
        (["b_gamma"], {"own_rows": [CONFIGS / "b_gamma/gamma_2.0.yaml"]}, r"--add-row.*gamma_2\.0"),
        (["b_gamma"], {"overrides": ["SOLVER.BASE_LRR", "1"]}, "SOLVER.BASE_LRR"),
        (["b_gamma"], {"overrides": ["OUTPUT_DIR", "x"]}, "OUTPUT_DIR.*--output"),
        (["b_gamma"], {"overrides": ["SEED", "2"]}, "SEED.*--seeds"),
        (["b_gamma"], {"overrides": ["DATASETS.TEST", "()"]}, "DATASETS.TEST"),
    ],
)
def test_mistakes(names: list[str], options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_plans(names, Options(**options))
