"""detectron2's default trainer, with what RetinaNet's users look for after it."""

import json
import logging
import os
import warnings
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..data import ReadableDatasetMapper
from ..errors import UserError, sentence_of
from .amp import DTYPES, AutocastTrainer, autocast
from .checkpoint import SafeCheckpointer
from .fast import speed_up, speed_up_inference
from .pictures import draw_detections


class Trainer(DefaultTrainer):
    """Trains on ``DATASETS.TRAIN``, evaluates on ``DATASETS.TEST``, draws what it found there."""

    _trainer: SimpleTrainer

    def __init__(self, cfg: CfgNode) -> None:
        with warnings.catch_warnings():
            # detectron2 makes a loss scaler for CUDA even where there is none.
            warnings.filterwarnings("ignore", message=".*GradScaler")
            super().__init__(cfg)
        if cfg.SOLVER.AMP.ENABLED:
            self._trainer = AutocastTrainer(
                self._trainer.model,
                self._trainer.data_loader,
                self._trainer.optimizer,
                torch.device(cfg.MODEL.DEVICE).type,
                DTYPES[cfg.SOLVER.AMP.DTYPE],
            )

    def build_hooks(self) -> list[HookBase]:
        # DefaultTrainer made detectron2's checkpointer just before; the hooks are to use ours.
        self.checkpointer = SafeCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        return super().build_hooks()

    def train(self) -> Any:
        silence = _NoTracebackOfMistakes()
        log = logging.getLogger("detectron2.engine.train_loop")
        log.addFilter(silence)
        try:
            return super().train()
        except FloatingPointError as error:
            raise UserError(
                f"training stopped at step {self.iter}: the loss is not finite; lower "
                f"SOLVER.BASE_LR ({self.cfg.SOLVER.BASE_LR}), lengthen SOLVER.WARMUP_ITERS "
                f"({self.cfg.SOLVER.WARMUP_ITERS}) or enable SOLVER.CLIP_GRADIENTS "
                f"({str(error).splitlines()[0]})."
            ) from None
        finally:
            log.removeFilter(silence)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model: nn.Module = super().build_model(cfg)
        speed_up(model, cfg)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=ReadableDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        mapper = ReadableDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """By the data set's ``evaluator_type``: COCO's metrics, or LVIS's or Pascal VOC's."""
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
        folder = str(inference_folder(cfg, dataset_name))
        if kind in ("coco", "coco_panoptic_seg"):
            return COCOEvaluator(dataset_name, tasks=("bbox",), output_dir=folder)
        if kind == "lvis":
            return LVISEvaluator(dataset_name, tasks=("bbox",), output_dir=folder)
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        raise UserError(
            f'DATASETS.TEST: {dataset_name} is evaluated as "{kind}", which is no detection; '
            "name a data set whose evaluator_type is coco, lvis or pascal_voc."
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict[str, Any]:
        for name in cfg.DATASETS.TEST:  # what an earlier evaluation left is not this one's
            (inference_folder(cfg, name) / "coco_instances_results.json").unlink(missing_ok=True)
        with autocast(torch.device(cfg.MODEL.DEVICE).type, DTYPES[cfg.TEST.DTYPE]):
            results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            for name in cfg.DATASETS.TEST:
                _show(cfg, name)
        return results

    @classmethod
    def evaluate(cls, cfg: CfgNode, *, resume: bool) -> OrderedDict[str, Any]:
        """Evaluates ``MODEL.WEIGHTS``, or with ``resume`` the newest checkpoint, without training.

        The metrics are added to ``metrics.json`` as a line of their own.
        """
        model = cls.build_model(cfg)
        checkpointer = SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR, complete=True)
        loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        how = speed_up_inference(model, cfg)
        logging.getLogger("retinanet_plugin").info(f"Evaluating in {how}")
        results = cls.test(cfg, model)
        if comm.is_main_process():
            scalars = {"iteration": loaded.get("iteration", 0), **flatten_results_dict(results)}
            with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json"), "a") as file:
                file.write(json.dumps(scalars) + "\n")
        return results


class _NoTracebackOfMistakes(logging.Filter):
    """Keeps the training loop from logging the traceback of what ends as one sentence."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        is_mistake = error is not None and sentence_of(error) is not None
        return not (is_mistake or isinstance(error, FloatingPointError))


def inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Where the evaluation of a data set leaves its files."""
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    return folder if len(cfg.DATASETS.TEST) == 1 else folder / dataset_name


def _show(cfg: CfgNode, dataset_name: str) -> None:
    """Says if COCO's evaluation had nothing to judge, and draws what was found."""
    folder = inference_folder(cfg, dataset_name)
    found = folder / "coco_instances_results.json"
    if not found.is_file():  # another data set's metrics
        return
    if not json.loads(found.read_text()):
        print(
            f"{dataset_name}: no detection scores above MODEL.RETINANET.SCORE_THRESH_TEST "
            f"({cfg.MODEL.RETINANET.SCORE_THRESH_TEST}), so AP is not a number.",
            flush=True,
        )
    if cfg.TEST.DRAW_PICTURES > 0:
        picture = folder / "pictures.png"
        draw_detections(dataset_name, found, picture, count=cfg.TEST.DRAW_PICTURES)
        print(f"Predictions beside ground truth: {picture}", flush=True)
