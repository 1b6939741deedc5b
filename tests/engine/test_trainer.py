"""The trainer as a base class."""

from pathlib import Path
from typing import Any

from coco_sets import forget_new_sets, write_set
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine.hooks import PeriodicWriter
from small_run import network_on

from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.loss_shares import LossShares


class HostLoaders(Trainer):
    """Loads data as detectron2 does."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name)


def test_loaders_of_a_subclass(tmp_path: Path) -> None:
    """And the hook that MODEL.RETINANET.LOG_LOSS_SHARES adds."""
    write_set(tmp_path)
    cfg, _ = network_on(
        tmp_path,
        *("DATASETS.OWN.TRAIN_JSON", "train.json", "DATASETS.OWN.TRAIN_IMAGES", "images"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.IMS_PER_BATCH", 2),
        *("MODEL.RETINANET.NUM_CLASSES", 2),
    )
    (tmp_path / "out").mkdir()
    with forget_new_sets():
        register_own_datasets(cfg)
        for resume, end in ((False, 2), (True, 3)):
            cfg.SOLVER.MAX_ITER, cfg.MODEL.RETINANET.LOG_LOSS_SHARES = end, resume
            trainer = HostLoaders(cfg)
            trainer.resume_or_load(resume=resume)
            assert trainer.start_iter == (2 if resume else 0)
            trainer.train()
            hooks = [type(x) for x in trainer._hooks]
            assert (LossShares in hooks) == resume
            # Before the writers, which would otherwise write the record 20 steps later.
            assert not resume or hooks.index(LossShares) < hooks.index(PeriodicWriter)
            assert trainer.storage.latest()["total_loss"][1] == end - 1
        assert "bbox" in trainer._last_eval_results
        assert "validation" not in trainer._last_eval_results  # no ground truth from that loader
