"""What is checked before a run starts: keys that must fit together, and the output folder."""

import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from retinanet_plugin import UserError, get_config
from retinanet_plugin.engine import setup
from retinanet_plugin.engine.setup import check_output, check_training, choose_device, lock_folder

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


def output(folder: Path, *, training: bool = True) -> None:
    cfg = get_config("Base-RetinaNet.yaml", ["OUTPUT_DIR", str(folder)])
    check_output(cfg, training=training, resume=False)


@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml", "metrics.json", "log.txt", "log.txt.rank1", "report.html", ".lock"),
        *("model_0000001.pth", "last_checkpoint", "inference", "inference/own/detections.png"),
        *("datasets", "not_finite", "not_finite/step_0000001.json"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_links_that_lead_outside_are_refused(tmp_path: Path, name: str, exists: bool) -> None:
    link = tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    if exists:
        (tmp_path / "outside").write_text("unchanged")
    for training in (True, False):
        with pytest.raises(UserError, match=f"OUTPUT_DIR: {link} "):
            output(tmp_path / "out", training=training)
    assert (tmp_path / "outside").exists() == exists


def test_other_links_are_not(tmp_path: Path) -> None:
    """Those within the folder, those that no run writes to, and one that is the folder itself."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "out" / "model_final.pth").symlink_to("model_0000001.pth")
    (tmp_path / "out" / "notes").symlink_to(tmp_path)
    output(tmp_path / "out", training=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_one_training_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_PATIENCE_S", 0.2)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lock_folder(str(tmp_path))
        os.write(writer, b"y")
        signal.pause()
    assert os.read(reader, 1) == b"y"
    try:
        output(tmp_path, training=False)
        with pytest.raises(UserError, match=f"OUTPUT_DIR.*{tmp_path}"):
            output(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    output(tmp_path)  # a killed process holds nothing
    output(tmp_path)  # and this one may continue its own run
