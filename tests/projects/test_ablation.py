"""What is planned for a table's rows, and what is told of their results."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.solver import build_lr_scheduler

from projects.focal_loss_paper.ablation import Options, make_plans
from projects.focal_loss_paper.ablation.measured import Measured, measure
from projects.focal_loss_paper.ablation.plan import Plan, Run
from projects.focal_loss_paper.ablation.report import kendall_tau, markdown, write_report
from projects.focal_loss_paper.ablation.results import (
    Result,
    changes,
    last_sentence,
    prepare_folder,
    result_of,
    versions,
    write_result,
)
from projects.focal_loss_paper.tables import TABLES
from retinanet_plugin import UserError, get_config
from retinanet_plugin.config import shipped_configs
from retinanet_plugin.engine.scaling import scale_to_batch

DATA = ("quickstart", "bccd_R18_FPN.yaml", "coco")


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in content.items():
        nested = flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else None
        leaves.update({f"{prefix}{key}": value} if nested is None else nested)
    return leaves


def only(name: str, **options: Any) -> Plan:
    (plan,) = make_plans([name], Options(**options))
    return plan


def run_of(plan: Plan, row: str) -> Run:
    (run,) = (r.runs[0] for r in plan.rows if r.row.name == row)
    return run


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("name", [name for name in TABLES if name != "e_speed"])
@pytest.mark.parametrize("data", DATA[:2])
def test_a_row_differs_from_the_data_in_its_own_lines_alone(name: str, data: str) -> None:
    base = flat(get_config(data if data.endswith(".yaml") else f"{data}.yaml"))
    for planned in only(name, data=data).rows:
        path = shipped_configs() / planned.row.config
        own = flat(yaml.safe_load(path.read_text()))
        if own.pop("_BASE_") == "cross_entropy.yaml":  # no_prior has its lines too
            own |= flat(yaml.safe_load((path.parent / "cross_entropy.yaml").read_text()))
        own = {k: v for k, v in own.items() if k not in ("_BASE_", "OUTPUT_DIR")}
        cfg = flat(planned.runs[0].cfg)
        differing = {key for key in cfg if cfg[key] != base[key]}
        assert differing <= own.keys()
        scale = base["MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE"] / 4  # 2 strides, not 4: half as large
        if sizes := own.pop("MODEL.ANCHOR_GENERATOR.SIZES", None):
            assert cfg["MODEL.ANCHOR_GENERATOR.SIZES"] == [[x * scale for x in sizes[0]]]
        assert all(cfg[key] == value for key, value in own.items())


@pytest.mark.parametrize(
    "data, largest, depths", [(DATA[0], 128, (50, 101)), (DATA[1], 240, (18, 34))]
)
def test_sizes_and_depths_of_table_e(data: str, largest: int, depths: tuple[int, int]) -> None:
    for planned in only("e_speed", data=data).rows:
        depth, pixels = planned.row.name.removeprefix("R").split("_")
        cfg = planned.runs[0].cfg
        assert cfg.MODEL.RESNETS.DEPTH == depths[depth == "101"]
        size = largest * int(pixels) // 800
        assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((size,), size)
        assert cfg.INPUT.MAX_SIZE_TEST == pytest.approx(size * 5 / 3, abs=1)
    plan = only("e_speed", data=data, scale=0.5, depths={50: 34, 101: 34})
    cfg = run_of(plan, "R101_700").cfg
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.RESNETS.DEPTH) == (350, 34)


def test_time_grows_with_pixels_and_depth() -> None:
    """detectron2's zoo: a step takes 0.200 s with ResNet-50, 0.280 s with ResNet-101."""
    plan = only("e_speed", data="quickstart")
    small, large, deep = (run_of(plan, row).cost for row in ("R50_400", "R50_800", "R101_400"))
    assert large / small == 4
    assert deep / small == pytest.approx(0.280 / 0.200, rel=0.05)


def test_a_given_depth_and_scale_are_those_of_all_tables(tmp_path: Path) -> None:
    """Of the data's own depth and sizes, where the rows do not differ in them."""
    (tmp_path / "mine.yaml").write_text("MODEL: {RETINANET: {PRIOR_PROB: 0.02}}\n")
    options = {"data": DATA[1], "scale": 0.5, "depths": {18: 34, 101: 50}}
    given = Options(own_rows=[tmp_path / "mine.yaml"], **options)
    base = get_config(DATA[1])
    assert (base.MODEL.RESNETS.DEPTH, base.INPUT.MIN_SIZE_TEST) == (18, 240)
    b_gamma, e_speed = make_plans(["b_gamma", "e_speed"], given)
    for row in ("gamma_2.0", "mine"):
        cfg = run_of(b_gamma, row).cfg
        assert (cfg.MODEL.RESNETS.DEPTH, cfg.INPUT.MIN_SIZE_TEST) == (34, 120)
        assert cfg.INPUT.MIN_SIZE_TRAIN == tuple(x // 2 for x in base.INPUT.MIN_SIZE_TRAIN)
    cfg = run_of(e_speed, "R101_700").cfg
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.INPUT.MIN_SIZE_TEST) == (50, 350)


def test_rows_on_the_papers_data_are_their_own_configurations() -> None:
    for name in TABLES:
        for planned in only(name).rows:
            cfg, own = planned.runs[0].cfg, get_config(planned.row.config)
            assert {**flat(cfg), "SEED": 0} == {**flat(own), "SEED": 0}


def test_trained_weights_follow_the_depth(tmp_path: Path) -> None:
    """A data set of one's own, from ImageNet weights."""
    (tmp_path / "mine.yaml").write_text('_BASE_: "retinanet_R50_FPN_1x.yaml"\n')
    plan = only("e_speed", data=str(tmp_path / "mine.yaml"))
    for row, depth in (("R50_400", 50), ("R101_400", 101)):
        cfg = run_of(plan, row).cfg
        assert cfg.MODEL.RESNETS.DEPTH == depth and f"R-{depth}.pkl" in cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("data", DATA)
def test_the_yaml_of_a_run_can_be_run_by_hand(data: str, tmp_path: Path) -> None:
    options = {"data": data, "output": tmp_path, "steps": 70, "seeds": (3, 4)}
    for name in ("c_anchors", "e_speed", "variants"):
        overrides = ("SOLVER.BASE_LR", "0.5", "INPUT.CROP.SIZE", "[0.7, 0.6]")
        for run in only(name, overrides=overrides, **options).runs:
            prepare_folder(run)
            by_hand = get_config(run.config_file)
            assert by_hand.OUTPUT_DIR == str(run.folder)
            assert {**flat(by_hand), "OUTPUT_DIR": ""} == {**flat(run.cfg), "OUTPUT_DIR": ""}
            assert (by_hand.SEED, by_hand.SOLVER.MAX_ITER) == (run.seed, 70)
            assert (by_hand.SOLVER.BASE_LR, by_hand.INPUT.CROP.SIZE) == (0.5, [0.7, 0.6])


def test_a_schedule_scaled_to_the_batch_is_not_scaled_again(tmp_path: Path) -> None:
    """A row trains as the data's configuration does, which says nothing but its batch.

    It lies where no ``_BASE_`` of the row's may lead to.
    """
    (tmp_path / "elsewhere").mkdir()
    data = tmp_path / "elsewhere" / "mine.yaml"
    data.write_text('_BASE_: "Base-Scratch-R18.yaml"\nSOLVER: {IMS_PER_BATCH: 4}\n')
    for steps, max_iter in ((None, 360_000), (900, 900)):
        options = {"data": str(data), "steps": steps, "output": tmp_path / "out"}
        run = run_of(only("a_alpha", **options), "alpha_0.50")
        solver = run.cfg.SOLVER
        assert (solver.IMS_PER_BATCH, solver.BASE_LR, run.max_iter) == (4, 0.0025, max_iter)
        assert (max_iter / solver.STEPS[0], max_iter / solver.WARMUP_ITERS) == (1.5, 90)
        prepare_folder(run)
        by_hand = get_config(run.config_file)
        assert scale_to_batch(by_hand, run.config_file, []) == []
        assert by_hand.SOLVER == solver


def test_what_counts_steps_follows_them() -> None:
    solver = run_of(only("a_alpha", data=DATA[1], steps=300), "alpha_0.50").cfg.SOLVER
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (300, (210, 270), 50)
    assert solver.CHECKPOINT_PERIOD == 100


@pytest.mark.parametrize("steps, milestones", [(1, ()), (2, (1,)), (5, (4,)), (20, (14, 18))])
def test_few_steps_have_a_schedule(steps: int, milestones: tuple[int, ...]) -> None:
    cfg = run_of(only("a_alpha", data=DATA[1], steps=steps), "alpha_0.50").cfg
    assert cfg.SOLVER.STEPS == milestones
    build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))


def test_rows_of_ones_own(tmp_path: Path) -> None:
    base = 'MODEL: {RETINANET: {PRIOR_PROB: 0.02}}\n_BASE_: "quickstart.yaml"\n'
    (tmp_path / "base.yaml").write_text(base)
    text = "MODEL: {RETINANET: {FOCAL_LOSS_GAMMA: 3.0}}\nSOLVER: {BASE_LR: 0.123}\n"
    (tmp_path / "steeper.yaml").write_text(f'_BASE_: "base.yaml"\n{text}OUTPUT_DIR: "mine"\n')
    for data, steps in (("bccd_R18_FPN.yaml", 600), ("coco", 90_000)):
        plan = only("b_gamma", data=data, own_rows=[tmp_path / "steeper.yaml"])
        assert [row.row.label for row in plan.rows[-2:]] == ["gamma 5, alpha 0.25", "steeper"]
        run = run_of(plan, "steeper")
        retinanet, solver = run.cfg.MODEL.RETINANET, run.cfg.SOLVER
        assert (retinanet.FOCAL_LOSS_GAMMA, retinanet.PRIOR_PROB) == (3.0, 0.02)
        assert (solver.BASE_LR, solver.MAX_ITER) == (0.123, steps)
        assert run.folder.parent.name == "steeper"


def test_a_row_of_ones_own_on_a_shipped_row(tmp_path: Path) -> None:
    """On other data, what the shipped row says of its own data counts for nothing."""
    text = (
        '_BASE_: "projects/focal_loss_paper/configs/%s"\nMODEL: {RETINANET: {PRIOR_PROB: 0.02}}\n'
    )
    (tmp_path / "mine.yaml").write_text(text % "Base-R50-600.yaml")
    (tmp_path / "sized.yaml").write_text(text % "no_fpn.yaml" + "INPUT: {MIN_SIZE_TEST: 96}\n")
    files = [tmp_path / "mine.yaml", tmp_path / "sized.yaml"]
    plan = only("b_gamma", data="quickstart", own_rows=files)
    mine, sized = (run_of(plan, name).cfg for name in ("mine", "sized"))
    assert mine.INPUT == run_of(plan, "gamma_2.0").cfg.INPUT
    assert mine.MODEL.RETINANET.PRIOR_PROB == sized.MODEL.RETINANET.PRIOR_PROB == 0.02
    assert (sized.INPUT.MIN_SIZE_TRAIN, sized.INPUT.MIN_SIZE_TEST) == ((128,), 96)
    shipped = run_of(only("variants", data="quickstart"), "no_fpn").cfg
    assert sized.MODEL.ANCHOR_GENERATOR == shipped.MODEL.ANCHOR_GENERATOR
    assert run_of(only("b_gamma", own_rows=files), "mine").cfg.INPUT.MIN_SIZE_TEST == 600


@pytest.mark.parametrize(
    "names, options, sentence",
    [
        (["b_gama"], {}, 'unknown name "b_gama" .did you mean "b_gamma"'),
        ([], {}, "TABLE: none given"),
        (["b_gamma"], {"rows": ["gamma_2"]}, '--rows: unknown name "gamma_2"'),
        (["b_gamma"], {"data": "quikstart"}, "no file quikstart.yaml"),
        (["b_gamma"], {"own_rows": [Path("absent.yaml")]}, "no file absent.yaml"),
        (["b_gamma"], {"overrides": ["SOLVER.BASE_LRR", "1"]}, "unknown key SOLVER.BASE_LRR"),
        (["b_gamma"], {"overrides": ["OUTPUT_DIR", "x"]}, "give --output instead"),
        (["b_gamma"], {"overrides": ["SEED", "2"]}, "give --seeds instead"),
        (["b_gamma"], {"overrides": ["SOLVER.MAX_ITER", "2"], "steps": 2}, "beside --steps"),
        (["e_speed"], {"scale": 0.0}, "--scale: 0.0"),
        (["b_gamma"], {"data": "quickstart", "scale": 0.001}, "128 pixels ones of 0; .* 0.25"),
        (["e_speed"], {"scale": 0.07}, "400 pixels ones of 28; .* 0.08"),
        (["b_gamma"], {"seeds": [2**32]}, "--seeds: 4294967296 given"),
        (["e_speed"], {"depths": {50: 18}}, "--depth: .*give --data"),
        (["e_speed"], {"data": "quickstart", "depths": {34: 18}}, "none of 34"),
        (["e_speed"], {"data": "quickstart", "depths": {50: 19}}, "no ResNet of depth 19; .* 18"),
        (["b_gamma"], {"data": "quickstart", "depths": {101: 34}}, "b_gamma have .*none of 101"),
    ],
)
def test_mistakes(names: list[str], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_plans(names, Options(**options))


def test_a_row_of_ones_own_with_a_taken_name(tmp_path: Path) -> None:
    (tmp_path / "gamma_2.0.yaml").write_text("SOLVER: {BASE_LR: 0.1}\n")
    with pytest.raises(UserError, match=r"name of another row of b_gamma, gamma_2\.0"):
        only("b_gamma", own_rows=[tmp_path / "gamma_2.0.yaml"])


def test_ones_own_code_is_a_setting_where_it_is_used(tmp_path: Path) -> None:
    """A table's finished rows stay finished when a row of one's own joins them."""
    code = (
        "from retinanet_plugin import CLS_LOSS_REGISTRY\n"
        "from retinanet_plugin.losses import CrossEntropyLoss\n"
        "@CLS_LOSS_REGISTRY.register()\n"
        "def loss_of_this_test(cfg):\n    return CrossEntropyLoss()\n"
    )
    file = tmp_path / "code_of_this_test.py"
    file.write_text(code)
    (tmp_path / "mine.yaml").write_text("MODEL: {RETINANET: {CLS_LOSS: loss_of_this_test}}\n")
    options = {"data": "quickstart", "own_rows": [tmp_path / "mine.yaml"]}
    without = run_of(only("b_gamma", data="quickstart"), "gamma_2.0")
    plan = only("b_gamma", imports=[str(file)], **options)
    assert run_of(plan, "gamma_2.0").digest == without.digest
    mine = run_of(plan, "mine")
    file.write_text(f"{code}# changed\n")
    plan = only("b_gamma", imports=[str(file)], **options)
    assert run_of(plan, "mine").digest != mine.digest
    overrides = ("MODEL.RETINANET.CLS_LOSS", "loss_of_this_test")
    plan = only("b_gamma", imports=[str(file)], data="quickstart", overrides=overrides)
    assert f"--import {file.name}" in run_of(plan, "gamma_2.0").settings


def test_all_of_ones_own_code_is_a_setting(tmp_path: Path) -> None:
    """A package's other files, and what lies beside it."""
    package = tmp_path / "package_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("from . import losses\n")
    (package / "losses.py").write_text(
        "import helper_of_this_test\n"
        "from retinanet_plugin import CLS_LOSS_REGISTRY\n"
        "@CLS_LOSS_REGISTRY.register()\n"
        "def loss_in_a_package(cfg):\n    pass\n"
    )
    (tmp_path / "helper_of_this_test.py").write_text("import json, sys\n")
    (tmp_path / "outer_of_this_test.py").write_text("import package_of_this_test\n")

    def settings() -> Mapping[str, Any]:
        overrides = ("MODEL.RETINANET.CLS_LOSS", "loss_in_a_package")
        imports = [str(tmp_path / "outer_of_this_test.py")]
        options = {"data": "quickstart", "rows": ["alpha_0.50"], "imports": imports}
        return run_of(only("a_alpha", overrides=overrides, **options), "alpha_0.50").settings

    before = settings()
    files = list(tmp_path.glob("**/*.py"))
    names = {f"--import {path.relative_to(tmp_path).as_posix()}" for path in files}
    assert {key for key in before if key.startswith("--")} == names
    for path in files:
        path.write_text(f"{path.read_text()}# changed\n")
    after = settings()
    assert {key for key in before if before[key] != after[key]} == names


# ---------------------------------------------------------------- what a run left


def result(run: Run, ap: float | None, *, at: int | None = None, **more: Any) -> Result:
    half = None if ap is None else ap / 2
    return Result(ap, ap, half, {}, at, run.seed, 60.0, 1, run.digest, versions(), "cpu", **more)


def test_the_last_evaluation_counts_and_nothing_found_is_zero(tmp_path: Path) -> None:
    run = run_of(only("a_alpha", data="quickstart", output=tmp_path), "alpha_0.50")
    prepare_folder(run)
    lines = [
        {"iteration": 9, "bbox/AP": 12.0, "bbox/AP50": 30.0, "bbox/AP75": 5.0},
        {"iteration": 19, "bbox/AP": 14.0, "bbox/AP50": 33.0, "bbox/AP75": 6.0, "bbox/APl": 1.0},
        {"iteration": 20, "total_loss": 3.0},
    ]
    metrics = run.folder / "metrics.json"
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"cut sho')
    run.log.write_text("Total inference pure compute time: 0:01 (0.0125 s / iter per device, on 1)")
    found = result_of(run, 0, 0, seconds=7, attempts=2, device="cpu")
    assert found is not None and (found.ap, found.ap50, found.ap75) == (14.0, 33.0, 6.0)
    assert found.metrics["APl"] == 1.0 and found.milliseconds == 12.5

    nothing = {"bbox/AP": math.nan, "bbox/AP50": math.nan, "bbox/AP75": math.nan, "iteration": 30}
    metrics.write_text(json.dumps(nothing))
    found = result_of(run, 0, 0, seconds=7, attempts=2, device="cpu")
    assert found is not None and (found.ap, found.ap50, found.ap75) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("first, others", [("mine", "a_foreign"), ("a", "aa")])
def test_of_several_test_sets_the_first_counts(first: str, others: str, tmp_path: Path) -> None:
    """In whatever order: metrics.json has it sorted by name."""
    run = run_of(only("a_alpha", data="quickstart", output=tmp_path), "alpha_0.50")
    run.cfg.DATASETS.TEST = (first, others)
    prepare_folder(run)
    scores = {
        f"{name}/bbox/{metric}": value
        for name, value in ((first, 10.0), (others, 20.0))
        for metric in ("AP", "AP50", "AP75")
    }
    (run.folder / "metrics.json").write_text(json.dumps(scores, sort_keys=True))
    found = result_of(run, 0, 0, seconds=7, attempts=1, device="cpu")
    assert found is not None and found.metrics == {"AP": 10.0, "AP50": 10.0, "AP75": 10.0}


def test_what_an_earlier_attempt_said_is_not_this_ones(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("error: the first mistake.\n")
    start = log.stat().st_size
    log.write_text("error: the first mistake.\nloading\nKilled\n")
    assert last_sentence(log, start) == "Killed"
    assert last_sentence(log) == "error: the first mistake."
    assert last_sentence(tmp_path / "absent") == "it said nothing"


def test_changed_settings_are_named(tmp_path: Path) -> None:
    run = run_of(only("a_alpha", data="quickstart", output=tmp_path), "alpha_0.50")
    state = prepare_folder(run)
    other = run_of(only("a_alpha", data="quickstart", output=tmp_path, steps=7), "alpha_0.50")
    assert not changes(other)  # nothing came of it yet
    write_result(run.folder, result(run, 50.0))
    assert not changes(run)
    assert "SOLVER.MAX_ITER: 1400 -> 7" in changes(other)
    # An older version of the plugin, which had no such key and another one besides.
    del state.settings["MODEL.RETINANET.HEAD_NAME"]
    state.settings["MODEL.GONE"] = 1
    (run.folder / "state.json").write_text(json.dumps(vars(state)))
    assert not changes(run)


# ---------------------------------------------------------------- reports


def test_kendalls_tau() -> None:
    assert kendall_tau([1, 2, 3, 4], [2, 4, 7, 9]) == 1
    assert kendall_tau([1, 2, 3, 4], [9, 7, 4, 2]) == -1
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    # The example with ties of scipy.stats.kendalltau.
    assert kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.4714045208)
    assert kendall_tau([1, 1, 1], [1, 2, 3]) is None
    assert kendall_tau([1], [2]) is None


AP = {
    "alpha_0.25": (20.0, 22.0),
    "alpha_0.50": (61.0, 63.0),  # above alpha 0.75, unlike in the paper, but within the spread
    "alpha_0.75": (60.0, 62.0),
    "alpha_0.99": (50.0, 50.2),  # above alpha 0.90, far
    "alpha_0.90": (40.0, 40.2),
}


@pytest.fixture
def told(tmp_path: Path) -> Plan:
    """Two seeds: some rows have results, 0.10 diverged, 0.999 failed and has not ended."""
    plan = only("a_alpha", data="quickstart", output=tmp_path, seeds=(1, 2))
    for planned in plan.rows:
        for i, run in enumerate(planned.runs):
            prepare_folder(run)
            if planned.row.name in AP:
                write_result(run.folder, result(run, AP[planned.row.name][i]))
            elif planned.row.name == "alpha_0.10":
                write_result(run.folder, result(run, None, at=12))
    return plan


def failure(plan: Plan) -> dict[str, str]:
    return {str(run_of(plan, "alpha_0.999").folder): "error: no."}


def test_a_report(told: Plan) -> None:
    text = markdown(told, failure(told))
    rows = {x.split(" | ")[0].strip("| "): x for x in text.splitlines() if x.startswith("| alpha")}
    assert "| 21.0 ± 1.4 | 21.0 ± 1.4 | 10.5 ± 0.7 | 2 | 10.8 | 16.0 |" in rows["alpha 0.25"]
    assert "| diverged at step 12 |" in rows["alpha 0.10"]
    assert "| failed |" in rows["alpha 0.999"]
    # By AP: the paper's order is 0.10, 0.25, 0.99, 0.50, 0.90, 0.75; of its 15 pairs, two with
    # 0.90 and one with 0.75 are the other way round here.
    assert f"Kendall's tau is {(12 - 3) / 15:.2f}" in text
    assert "alpha 0.90 is 21.9 below alpha 0.50" in text
    swaps = text.split("swapped here: ")[1].split("\n")[0]
    assert "alpha 0.75 is" not in swaps  # its neighbour in the paper is 0.90, and it is above that
    assert "- alpha 0.999: 1 of its runs failed." in text
    assert "- alpha 0.999: 1 of its runs have not ended." in text


def test_a_report_of_rows_with_other_steps(tmp_path: Path) -> None:
    (tmp_path / "longer.yaml").write_text("SOLVER: {MAX_ITER: 2000, IMS_PER_BATCH: 2}\n")
    plan = only("b_gamma", data="quickstart", own_rows=[tmp_path / "longer.yaml"])
    assert "1,400 or 2,000 steps of 2 or 8 pictures" in markdown(plan, {})


def test_a_swap_within_the_spread_is_said_to_be_one(tmp_path: Path) -> None:
    plan = only(
        "a_alpha",
        data="quickstart",
        output=tmp_path,
        seeds=(1, 2),
        rows=["alpha_0.50", "alpha_0.75"],
    )
    for planned in plan.rows:
        if planned.chosen:
            for run, ap in zip(planned.runs, AP[planned.row.name], strict=True):
                prepare_folder(run)
                write_result(run.folder, result(run, ap))
    text = markdown(plan, {})
    assert "alpha 0.75 is 1.0 below alpha 0.50, in the paper 0.9 above it (within the" in text
    assert "alpha 0.25" not in text  # neither chosen nor run


def test_a_mean_leaves_out_the_seed_that_diverged(told: Plan) -> None:
    run = run_of(told, "alpha_0.50")
    write_result(run.folder, result(run, None, at=3))
    (m,) = (m for m in measure(told, {}) if m.row.name == "alpha_0.50")
    assert (m.mean(), m.spread(), len(m.results)) == (63.0, None, 2)
    assert "alpha 0.50: seed 1 diverged at step 3; the mean is that of the others" in markdown(
        told, {}
    )


@pytest.mark.parametrize("name", ["a_alpha", "e_speed", "variants"])
def test_files_of_a_report(name: str, tmp_path: Path) -> None:
    """Also of no result at all, of one, and of all."""
    plan = only(name, data="quickstart", output=tmp_path)
    for i in range(len(plan.runs) + 1):
        if i in (0, 1, len(plan.runs)):
            write_report(plan, {})
            lines = (plan.folder / "results.csv").read_text().splitlines()
            assert len(lines) == 1 + len(plan.rows)
            assert (plan.folder / "results.png").read_bytes()[1:4] == b"PNG"
        if i < len(plan.runs):
            prepare_folder(plan.runs[i])
            write_result(plan.runs[i].folder, result(plan.runs[i], 40.0 + i, milliseconds=3.0 + i))
    assert f",{40 + len(plan.runs) - 1}," in lines[-1]
    assert {p.name for p in plan.folder.iterdir() if p.is_file()} == {
        *("results.md", "results.csv", "results.png")
    }


def test_a_result_of_other_settings_is_not_shown(told: Plan, tmp_path: Path) -> None:
    plan = only("a_alpha", data="quickstart", output=tmp_path, seeds=(1, 2), steps=3)
    found: list[Measured] = measure(plan, {})
    assert not any(m.results for m in found)
