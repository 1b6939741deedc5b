"""detectron2's default trainer, with what RetinaNet's users look for after it."""

import json
import logging
import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Sequence
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
from detectron2.engine.hooks import EvalHook, PeriodicWriter
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from torch import nn

from ..data import ReadableDatasetMapper
from ..errors import UserError, sentence_of
from .amp import DTYPES, AutocastTrainer, autocast
from .checkpoint import SafeCheckpointer
from .evaluation import BestCheckpointer, Evaluation, StoppedEarly
from .fast import speed_up, speed_up_inference
from .pictures import draw_detections
from .progress import ProgressLine, evaluation_progress, on_terminal
from .scores import highest_score
from .validation import mapper_with_truth, validation_loss

logger = logging.getLogger("retinanet_plugin")


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
        model, folder, classes = self.model, self.cfg.OUTPUT_DIR, _classes(self.cfg.DATASETS.TRAIN)
        self.checkpointer = SafeCheckpointer(
            model, folder, classes=classes, trainer=weakref.proxy(self)
        )
        hooks = super().build_hooks()
        writers = [w for h in hooks if isinstance(h, PeriodicWriter) for w in h._writers]
        evaluation = Evaluation(
            self.cfg,
            self._evaluate_now,
            [w for w in writers if not isinstance(w, CommonMetricPrinter)],
            {name: _picture(self.cfg, name) for name in self.cfg.DATASETS.TEST},
            BestCheckpointer(model, folder, classes=classes),
        )
        hooks = [evaluation if isinstance(h, EvalHook) else h for h in hooks]
        return [ProgressLine(), *hooks] if on_terminal() else hooks

    def _evaluate_now(self) -> OrderedDict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def train(self) -> Any:
        silence = _NoTracebackOfMistakes()
        log = logging.getLogger("detectron2.engine.train_loop")
        log.addFilter(silence)
        results = None
        try:
            results = super().train()
        except StoppedEarly as reason:
            logger.info(str(reason))
        except FloatingPointError as error:
            raise UserError(
                f"training stopped at step {self.iter}: the loss is not finite; lower "
                f"SOLVER.BASE_LR ({self.cfg.SOLVER.BASE_LR}), lengthen SOLVER.WARMUP_ITERS "
                f"({self.cfg.SOLVER.WARMUP_ITERS}) or enable SOLVER.CLIP_GRADIENTS "
                f"({str(error).splitlines()[0]})."
            ) from None
        finally:
            log.removeFilter(silence)
        if self.cfg.TEST.REPORT and comm.is_main_process():
            _report(Path(self.cfg.OUTPUT_DIR))
        return results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model: nn.Module = super().build_model(cfg)
        speed_up(model, cfg)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=ReadableDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str, *, with_truth: bool = False) -> Any:
        """With the ground truth if asked for, which a loss needs and a detector does not."""
        mapper = mapper_with_truth(cfg) if with_truth else ReadableDatasetMapper(cfg, False)
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
        """As the base; a test set's losses are among its metrics if ``TEST.LOSS`` says so."""
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results: OrderedDict[str, Any] = OrderedDict()
        with autocast(torch.device(cfg.MODEL.DEVICE).type, DTYPES[cfg.TEST.DTYPE]):
            for i, name in enumerate(cfg.DATASETS.TEST):
                for earlier in (_results(cfg, name), _picture(cfg, name)):
                    earlier.unlink(missing_ok=True)
                with validation_loss(cfg, model) as loss, highest_score(model) as highest:
                    evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
                    loader = cls.build_test_loader(cfg, name, with_truth=loss is not None)
                    both = DatasetEvaluators([evaluator, *([loss] if loss else [])])
                    with evaluation_progress(loader, name) as pictures:
                        results[name] = inference_on_dataset(model, pictures, both)
                if comm.is_main_process():
                    logging.getLogger("detectron2").info(f"Metrics of {name} in csv format:")
                    print_csv_format(results[name])
                    _show(cfg, name, highest())
        return results if len(results) != 1 else next(iter(results.values()))

    @classmethod
    def evaluate(cls, cfg: CfgNode, *, resume: bool) -> OrderedDict[str, Any]:
        """Evaluates ``MODEL.WEIGHTS``, or with ``resume`` the newest checkpoint, without training.

        The metrics are added to ``metrics.json`` as a line of their own.
        """
        model = cls.build_model(cfg)
        classes = _classes(cfg.DATASETS.TEST)
        checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, complete=True, classes=classes)
        loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        how = speed_up_inference(model, cfg)
        logger.info(f"Evaluating in {how}")
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
        return not (is_mistake or isinstance(error, FloatingPointError | StoppedEarly))


def _classes(datasets: Sequence[str]) -> list[str] | None:
    """Their names, if the data set tells."""
    names: list[str] | None = MetadataCatalog.get(datasets[0]).get("thing_classes")
    return names


def inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Where the evaluation of a data set leaves its files."""
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    return folder if len(cfg.DATASETS.TEST) == 1 else folder / dataset_name


def _results(cfg: CfgNode, dataset_name: str) -> Path:
    return inference_folder(cfg, dataset_name) / "coco_instances_results.json"


def _picture(cfg: CfgNode, dataset_name: str) -> Path:
    return inference_folder(cfg, dataset_name) / "pictures.png"


def _show(cfg: CfgNode, dataset_name: str, highest: float | None) -> None:
    """Says if COCO's evaluation had nothing to judge, and draws what was found.

    Args:
        highest: score that this worker has seen, also below the threshold, if known.
    """
    found = _results(cfg, dataset_name)
    if not found.is_file():  # another data set's metrics
        return
    if not json.loads(found.read_text()):
        most = "" if highest is None else f"; the highest score seen is {highest:.3g}"
        logger.info(
            f"{dataset_name}: no detection scores above MODEL.RETINANET.SCORE_THRESH_TEST "
            f"({cfg.MODEL.RETINANET.SCORE_THRESH_TEST}), so AP is not a number{most}."
        )
    if cfg.TEST.DRAW_PICTURES > 0:
        picture = _picture(cfg, dataset_name)
        draw_detections(dataset_name, found, picture, count=cfg.TEST.DRAW_PICTURES)
        logger.info(f"Predictions beside ground truth: {picture}")


def _report(folder: Path) -> None:
    """A page about the run; what goes wrong with it is no fault of the run."""
    try:
        from ..analysis.report import write_report  # it needs what only pages need

        logger.info(f"Report: {write_report(folder)}")
    except Exception as error:
        reason = sentence_of(error) or f"{type(error).__name__}: {error}"
        logger.warning(f"no report was written ({reason})")
