"""Keys, shipped files, and what is said about mistakes in either."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

from retinanet_plugin import UserError, add_retinanet_config, get_config
from retinanet_plugin.config import shipped_configs
from retinanet_plugin.config_keys import check_ranges, may_change_on_resume
from retinanet_plugin.utils import flatten

SHIPPED = sorted(p.relative_to(shipped_configs()) for p in shipped_configs().rglob("*.yaml"))
PAPER = {
    "retinanet_R50_FPN_1x.yaml": (50, 90_000, (60_000, 80_000), (800,)),
    "retinanet_R101_FPN_1x.yaml": (101, 90_000, (60_000, 80_000), (800,)),
    "retinanet_R101_FPN_1.5x.yaml": (101, 135_000, (90_000, 120_000), None),
    "retinanet_R50_FPN_3x.yaml": (50, 270_000, (210_000, 250_000), None),
    "retinanet_R101_FPN_3x.yaml": (101, 270_000, (210_000, 250_000), None),
    "retinanet_X101_32x8d_FPN_1x.yaml": (101, 90_000, (60_000, 80_000), (800,)),
}


@pytest.mark.parametrize("name", SHIPPED, ids=str)
def test_shipped_files_load(name: Path) -> None:
    cfg = get_config(name)
    assert cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet"
    check_ranges(cfg, training=True)
    assert "!!" not in (shipped_configs() / name).read_text()


@pytest.mark.parametrize("name", PAPER)
def test_schedules(name: str) -> None:
    cfg = get_config(name)
    depth, steps, drops, sizes = PAPER[name]
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (depth, steps, drops)
    jitter = cfg.INPUT.MIN_SIZE_TRAIN
    assert (min(jitter), max(jitter)) == ((640, 800) if sizes is None else (800, 800))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.01)
    assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY) == (0.9, 1e-4)


def test_keys_of_others_stay() -> None:
    cfg = get_cfg()
    before = cfg.clone()
    add_retinanet_config(cfg)
    cfg.MODEL.RETINANET.CLS_LOSS = "cross_entropy"
    add_retinanet_config(cfg)  # a second plugin may add them too
    assert cfg.MODEL.RETINANET.CLS_LOSS == "cross_entropy"
    assert all(cfg.MODEL.RETINANET[k] == v for k, v in before.MODEL.RETINANET.items())


def test_importing_has_no_other_effect(tmp_path: Path) -> None:
    """Run apart, since the module is imported here already; a second import is harmless too."""
    code = """
import os, sys, threading, torch, random
state, seeds = torch.get_rng_state(), random.getstate()
threads, variables = torch.get_num_threads(), dict(os.environ)
import detectron2.modeling, detectron2.data
mark = len(detectron2.modeling.META_ARCH_REGISTRY._obj_map)
import retinanet_plugin
assert torch.equal(state, torch.get_rng_state()) and random.getstate() == seeds
assert torch.get_num_threads() == threads
assert len(detectron2.modeling.META_ARCH_REGISTRY._obj_map) == mark + 1
assert not torch.cuda.is_initialized()
assert "retinanet_plugin.engine" not in sys.modules  # it comes with Predictor
for name in [m for m in sys.modules if m.startswith("retinanet_plugin")]:
    del sys.modules[name]
import retinanet_plugin as again
assert again.DENSE_HEAD_REGISTRY.get("FocalLossHead") is again.FocalLossHead
found = detectron2.modeling.META_ARCH_REGISTRY.get("FocalRetinaNet")
assert found is again.FocalRetinaNet
"""
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path, env=path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides, key",
    [
        (["MODEL.RETINANET.CLS_LOS", "focal"], "MODEL.RETINANET.CLS_LOSS"),  # did you mean
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR"),
        (["SOLVER.MAX_ITER", "2.5"], "SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER"),
        (["SOLVER", "3"], "SOLVER"),
    ],
)
def test_mistakes_in_overrides(overrides: list[str], key: str) -> None:
    with pytest.raises(UserError, match=key):
        get_config("Base-RetinaNet.yaml", overrides)


def _aliases_of_aliases() -> str:
    """A billion values in a few lines."""
    lines = ["A: &a0 [1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"B{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "content, culprit",
    [
        ("MODEL: {RETINANET: {PRIOR: 0.1}}", "MODEL.RETINANET.PRIOR"),
        ("MODEL: {RETINANET: {PRIOR_PROB: [1]}}", "MODEL.RETINANET.PRIOR_PROB"),
        ("MODEL: 3", "MODEL"),
        ("MODEL: [", "line"),
        ("- a\n- b", "mapping"),
        ("", "mapping"),
        ("_BASE_: absent.yaml", "absent.yaml"),
        ("_BASE_: mine.yaml", "mine.yaml"),
        (_aliases_of_aliases(), "line"),
        ("A: &a [*a]", "line"),
        ("SOLVER: !!python/object/apply:os.system ['touch pwned']", "line"),
        ("SOLVER: !!python/name:os.system", "line"),
        ("_BASE_: evil.yaml", "evil.yaml"),
    ],
)
def test_mistakes_in_files(content: str, culprit: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text("A: !!python/object/apply:os.system ['touch pwned']")
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=culprit) as caught:
        get_config("mine.yaml")
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_absent_file_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="retinanet_R50_FPN_1x"):
        get_config("retinanet_R50_FPN_1.yaml")


def test_own_file_on_a_shipped_base(tmp_path: Path) -> None:
    base = "retinanet_R50_FPN_1x.yaml"
    mine = tmp_path / "mine.yaml"  # the base is not beside it
    mine.write_text(yaml.safe_dump({"_BASE_": base, "SOLVER": {"MAX_ITER": 7}}))
    cfg = get_config(mine, ["SOLVER.BASE_LR", "1e-3"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.MODEL.RESNETS.DEPTH) == (7, 1e-3, 50)


def test_number_of_classes_is_left_to_the_data() -> None:
    own = ["DATASETS.OWN.TRAIN_JSON", "a.json"]
    key = "MODEL.RETINANET.NUM_CLASSES"
    assert get_config("Base-RetinaNet.yaml").MODEL.RETINANET.NUM_CLASSES == 80
    assert get_config("Base-RetinaNet.yaml", own).MODEL.RETINANET.NUM_CLASSES == -1
    assert get_config("Base-RetinaNet.yaml", [*own, key, "80"]).MODEL.RETINANET.NUM_CLASSES == 80


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.RETINANET.OHEM.NMS_THRESH", "1.5"),
        ("SOLVER.BASE_LR", "-0.1"),
        ("SOLVER.IMS_PER_BATCH", "0"),
        ("SOLVER.AMP.DTYPE", "half"),
        ("DATALOADER.NUM_WORKERS", "-1"),
    ],
)
def test_values_out_of_range(key: str, value: str) -> None:
    cfg = get_config("Base-RetinaNet.yaml", [key, value])
    with pytest.raises(UserError, match=key):
        check_ranges(cfg, training=True)


def test_which_keys_may_change_on_resume() -> None:
    names = [name for name, _ in flatten(get_config())]
    deciding = {name for name in names if not may_change_on_resume(name)}
    assert {"SOLVER.BASE_LR", "MODEL.RETINANET.CLS_LOSS", "INPUT.MIN_SIZE_TRAIN"} <= deciding
    assert deciding.isdisjoint(
        {"OUTPUT_DIR", "MODEL.DEVICE", "TEST.EVAL_PERIOD", "MODEL.RETINANET.SCORE_THRESH_TEST"}
        | {"SOLVER.KEEP_CHECKPOINTS", "DATASETS.OWN.ROOT", "INPUT.MIN_SIZE_TEST", "SEED"}
    )
