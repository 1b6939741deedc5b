"""FocalRetinaNet under detectron2's own trainer, loaders and evaluator, without ours."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventStorage, get_event_storage
from pytest import approx

from retinanet_plugin import (
    FocalLossHead,
    FocalRetinaNet,
    RetinaNetAnchorGenerator,
    add_retinanet_config,
)
from retinanet_plugin.config import shipped_configs
from retinanet_plugin.data import synthetic

DATASET = "host_test_shapes"


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Four small images of shapes, registered as any detectron2 project registers its own."""
    folder = tmp_path_factory.mktemp("shapes")
    synthetic.draw_dataset(folder, num_train=4, num_test=1, size=96)
    register_coco_instances(
        DATASET, {}, str(folder / "annotations/train.json"), str(folder / "train")
    )


def small_cfg(output: Path) -> CfgNode:
    """The way into a detectron2 project: get_cfg, one call, merge_from_file, merge_from_list."""
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.merge_from_file(str(shipped_configs() / "quickstart.yaml"))
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (DATASET,), "DATASETS.TEST", (DATASET,)),
            *("SOLVER.MAX_ITER", 110, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS", 5),
            *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", (90,)),
            *("TEST.EVAL_PERIOD", 0, "INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96),
            *("OUTPUT_DIR", str(output)),
        ]
    )
    return cfg


class StockTrainer(DefaultTrainer):
    """What detectron2's manual asks of every user: an evaluator."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


def test_default_trainer_learns_evaluates_and_predicts(tmp_path: Path) -> None:
    cfg = small_cfg(tmp_path)
    trainer = StockTrainer(cfg)
    assert isinstance(trainer.model, FocalRetinaNet)
    trainer.resume_or_load(resume=False)
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    results = StockTrainer.test(cfg, trainer.model)["bbox"]
    assert results["AP50"] > 50  # of the images that it was trained on
    assert results == approx(trainer._last_eval_results["bbox"], nan_ok=True)
    # The checkpoint is detectron2's: its own checkpointer and predictor read it.
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    instances = DefaultPredictor(cfg)(torch.zeros(96, 96, 3).numpy())["instances"]
    assert {"pred_boxes", "scores", "pred_classes"} == set(instances.get_fields())


def test_plain_training_loop(tmp_path: Path) -> None:
    """detectron2's tools/plain_train_net.py in short: loaders, optimizer, schedule, evaluator."""
    cfg = small_cfg(tmp_path)
    cfg.SOLVER.MAX_ITER = 8
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    with EventStorage():
        totals = []
        loader = build_detection_train_loader(cfg)
        for data, _ in zip(loader, range(cfg.SOLVER.MAX_ITER), strict=False):
            losses = model(data)
            assert set(losses) == {"loss_cls", "loss_box_reg"}
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            scheduler.step()
            totals.append(sum(losses.values()).item())
            get_event_storage().step()
    assert totals[-1] < totals[0]
    checkpointer.save("plain")
    test_loader = build_detection_test_loader(cfg, DATASET)
    evaluator = COCOEvaluator(DATASET, output_dir=str(tmp_path))
    results = inference_on_dataset(model, test_loader, evaluator)["bbox"]
    again = build_model(cfg).eval()
    DetectionCheckpointer(again).load(str(tmp_path / "plain.pth"))
    loaded = inference_on_dataset(again, test_loader, evaluator)["bbox"]
    assert loaded == approx(results, nan_ok=True)


def test_lazy_config() -> None:
    """LazyConfig's instantiate builds the parts from explicit arguments."""
    backbone = build_model(small_cfg(Path("unused"))).backbone
    levels = ["p3", "p4", "p5", "p6"]
    shapes = [backbone.output_shape()[name] for name in levels]
    config = LazyCall(FocalRetinaNet)(
        backbone=backbone,
        head=LazyCall(FocalLossHead)(
            input_shape=shapes, num_classes=3, num_anchors=9, conv_dims=[64, 64]
        ),
        anchor_generator=LazyCall(RetinaNetAnchorGenerator)(strides=[x.stride for x in shapes]),
        head_in_features=levels,
    )
    model = instantiate(config).eval()
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 64, 64)}])
    assert isinstance(model, FocalRetinaNet) and result["instances"].image_size == (64, 64)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_give_the_same_detections(clone) -> None:
    cfg = small_cfg(Path("unused"))
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    model = build_model(cfg).eval()
    image = [{"image": torch.rand(3, 64, 80) * 255}]
    with torch.no_grad():
        before = model(image)[0]["instances"]
        after = clone(model)(image)[0]["instances"]
    assert len(before) > 50
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.pred_boxes.tensor, after.pred_boxes.tensor)
