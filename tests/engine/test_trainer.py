"""The trainer as a base class, and what follows training."""

import argparse
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from coco_sets import forget_new_sets, write_set
from conftest import small_config
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader

from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.engine import Trainer, launch


class HostLoaders(Trainer):
    """Loads data as detectron2 does."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name)


def test_loaders_of_a_subclass(tmp_path: Path) -> None:
    write_set(tmp_path)
    cfg = small_config(
        *("DATASETS.OWN.ROOT", tmp_path, "DATASETS.OWN.TRAIN_JSON", "train.json"),
        *("DATASETS.OWN.TRAIN_IMAGES", "images", "DATASETS.OWN.TEST_JSON", "train.json"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SOLVER.MAX_ITER", 2),
        *("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, "TEST.DRAW_PICTURES", 0),
        *("MODEL.RETINANET.NUM_CLASSES", 2, "OUTPUT_DIR", tmp_path / "out"),
    )
    (tmp_path / "out").mkdir()
    with forget_new_sets():
        register_own_datasets(cfg)
        for resume, end in ((False, 2), (True, 3)):
            cfg.SOLVER.MAX_ITER = end
            trainer = HostLoaders(cfg)
            trainer.resume_or_load(resume=resume)
            assert trainer.start_iter == (2 if resume else 0)
            trainer.train()
            assert trainer.storage.latest()["total_loss"][1] == end - 1
        assert "bbox" in trainer._last_eval_results
        assert "validation" not in trainer._last_eval_results  # no ground truth from that loader


@pytest.mark.parametrize("fails", [False, True])
def test_failing_after_training_is_a_warning(
    fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Finished:
        def __init__(self, cfg: CfgNode) -> None: ...
        def resume_or_load(self, resume: bool) -> None: ...
        def train(self) -> str:
            return "results"

    folders: list[str] = []

    def report(folder: str) -> None:
        folders.append(folder)
        if fails:
            raise KeyError("bbox/AP")

    monkeypatch.setattr(launch, "prepare", lambda args: small_config("OUTPUT_DIR", "out"))
    monkeypatch.setattr(launch, "Trainer", Finished)
    monkeypatch.setattr(launch, "stop_by_signal", nullcontext)
    args = argparse.Namespace(imports=[], eval_only=False, resume=False)
    assert launch.main(args, report) == "results" and folders == ["out"]
    warnings = [x for x in caplog.records if x.levelno == logging.WARNING]
    assert len(warnings) == fails
