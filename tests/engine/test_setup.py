"""Keys that do not fit together are named before a run starts."""

from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from retinanet_plugin import UserError, get_config
from retinanet_plugin.engine import setup
from retinanet_plugin.engine.setup import check_output, check_training, choose_device

PATIENCE, PERIOD = "SOLVER.EARLY_STOPPING.PATIENCE", "TEST.EVAL_PERIOD"
BEST_LOSS = ("TEST.BEST_METRIC", "validation/total_loss")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ((PATIENCE, "3"), f"{PATIENCE}.*{PERIOD}"),
        ((*BEST_LOSS, "TEST.LOSS", "False"), "TEST.BEST_METRIC.*TEST.LOSS"),
        (("SOLVER.REFERENCE_WORLD_SIZE", "3"), "SOLVER.REFERENCE_WORLD_SIZE"),
        (("SOLVER.REFERENCE_WORLD_SIZE", "-1"), "SOLVER.REFERENCE_WORLD_SIZE"),
    ],
)
def test_keys_that_do_not_fit(keys: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_training(get_config("Base-RetinaNet.yaml", keys))


def test_batch_that_processes_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    check_training(get_config("Base-RetinaNet.yaml", [PATIENCE, "3", PERIOD, "100", *BEST_LOSS]))
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH"):
        check_training(get_config("Base-RetinaNet.yaml"))


@pytest.mark.parametrize("given", ["cpu", "cuda:1", "cuda"])
def test_several_processes_use_a_gpu_each(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = get_config("Base-RetinaNet.yaml", ["MODEL.DEVICE", given])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    choose_device(cfg)  # one process may use any device
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    if given == "cuda":
        choose_device(cfg)
    else:
        with pytest.raises(UserError, match=f"MODEL.DEVICE: {given}.*CUDA_VISIBLE_DEVICES"):
            choose_device(cfg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choose_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"


def test_only_training_locks_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[str] = []
    monkeypatch.setattr(setup, "lock_folder", locked.append)
    cfg = get_config("Base-RetinaNet.yaml", ["OUTPUT_DIR", str(tmp_path / "out")])
    check_output(cfg, training=False, resume=False)
    assert locked == []
    check_output(cfg, training=True, resume=False)
    assert locked == [str(tmp_path / "out")]
