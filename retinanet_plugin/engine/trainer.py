"""detectron2's ``DefaultTrainer``, with exact resume and data parallelism on CPUs."""

import json
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
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
from detectron2.utils.events import CommonMetricPrinter, get_event_storage, has_event_storage
from torch import nn

from ..acceleration.accelerate import accelerate, accelerate_inference
from ..data import ReadableDatasetMapper
from ..data.training_loader import (
    TrainingLoader,
    build_training_loader,
    ignore_signals,
    seed_step,
)
from ..errors import UserError, printable, sentence_of
from ..evaluation.draw_detections import draw_detections
from ..evaluation.validation_loss import mapper_with_truth, validation_loss
from .amp import DTYPES, autocast
from .checkpoint import SafeCheckpointer
from .evaluation_hook import BestCheckpointer, EvaluationHook, StoppedEarly
from .loss_shares import LossShares
from .parallel import data_parallel
from .progress import ProgressLine, evaluation_progress, on_terminal
from .resuming import CheckpointHook, settings_of, warn_of_changes
from .step import TrainingStep

_EVALUATORS: dict[str, Any] = {"coco": COCOEvaluator, "lvis": LVISEvaluator}

logger = logging.getLogger("retinanet_plugin")


class Trainer(DefaultTrainer):
    """Trains on ``DATASETS.TRAIN`` and evaluates on ``DATASETS.TEST``.

    Subclasses may override the ``build_*`` methods as with ``DefaultTrainer``. A training loader
    other than :class:`TrainingLoader` starts over when a run is resumed.
    """

    _trainer: TrainingStep

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer.__init__ needs GPUs for several processes and for mixed precision.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        device = torch.device(cfg.MODEL.DEVICE)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainingStep(
            data_parallel(model, device),
            self.build_train_loader(cfg),
            optimizer,
            device.type,
            DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else torch.float32,
            output=cfg.OUTPUT_DIR,
            max_skipped=cfg.SOLVER.SKIP_NOT_FINITE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self._loader = self.data_loader if isinstance(self.data_loader, TrainingLoader) else None
        self._seed = self._loader.seed if self._loader else int(comm.shared_random_seed())
        self._classes = _classes(cfg.DATASETS.TRAIN)
        self.checkpointer = SafeCheckpointer(
            self.model, cfg.OUTPUT_DIR, classes=self._classes, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Returns detectron2's hooks, with those for evaluation and checkpoints replaced."""
        cfg, hooks = self.cfg, super().build_hooks()
        writers = [w for h in hooks if isinstance(h, PeriodicWriter) for w in h._writers]
        writers = [w for w in writers if type(w) is not CommonMetricPrinter]
        best = BestCheckpointer(self.model, cfg.OUTPUT_DIR, classes=self._classes)
        for i, hook in enumerate(hooks):
            if isinstance(hook, EvalHook):
                hooks[i] = EvaluationHook(cfg, hook._func, best, writers)
            elif isinstance(hook, PeriodicCheckpointer):
                hooks[i] = CheckpointHook(
                    self.checkpointer, hook.period, cfg.SOLVER.KEEP_CHECKPOINTS
                )
        progress = [ProgressLine()] if on_terminal() else []
        shares = [LossShares(self.model)] if cfg.MODEL.RETINANET.LOG_LOSS_SHARES else []
        return [*progress, *shares, *hooks]

    def resume_or_load(self, resume: bool = True) -> None:
        """Loads the newest checkpoint if ``resume`` and there is one, else ``MODEL.WEIGHTS``.

        Raises:
            UserError: if the checkpoint does not fit the config, or lacks the trainer's state.
        """
        if not resume or not self.checkpointer.has_checkpoint():
            super().resume_or_load(False)
            return
        self.checkpointer.complete, self._has_state = True, False
        try:
            super().resume_or_load(True)
            if not self._has_state:
                raise ValueError("it holds only weights")
        except Exception as error:  # states of other programs fail in many ways
            reason = sentence_of(error) or f"{type(error).__name__}: {error}"
            raise UserError(
                f"--resume: the run in {self.cfg.OUTPUT_DIR} cannot continue with this config and "
                f"version ({printable(reason, 700).rstrip('.')}); use those it was started with, "
                "or give its checkpoint as MODEL.WEIGHTS of a run in another OUTPUT_DIR."
            ) from None
        self.checkpointer.complete = False
        if self._loader:
            self._loader.first_batch = self.start_iter

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self._seed, "settings": self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._seed = state_dict.get("seed", self._seed)  # detectron2's checkpoints have none
        if self._loader:
            self._loader.seed = self._seed
        warn_of_changes(state_dict.get("settings"), self._settings())
        self._has_state = True

    def _settings(self) -> dict[str, str]:
        return settings_of(self.cfg, self._loader.content if self._loader else "")

    def run_step(self) -> None:
        seed_step(self._seed, self.iter, comm.get_rank())
        super().run_step()

    def train(self) -> Any:
        """Trains until ``SOLVER.MAX_ITER`` or early stopping."""
        logging.getLogger("detectron2.engine.train_loop").addFilter(_is_shown)
        try:
            return super().train()
        except StoppedEarly as reason:
            logger.info(str(reason))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model: nn.Module = super().build_model(cfg)
        accelerate(model, cfg)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Returns a loader whose order and augmentation follow from the seed and the step."""
        seed = cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())
        return build_training_loader(cfg, ReadableDatasetMapper(cfg, is_train=True), seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Returns detectron2's loader; with ``TEST.LOSS`` its images have their ground truth."""
        mapper = mapper_with_truth(cfg) if cfg.TEST.LOSS else ReadableDatasetMapper(cfg, False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = ignore_signals
        return loader

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Returns detectron2's evaluator for the dataset's ``evaluator_type``; default: coco."""
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
        if evaluator_type == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        if evaluator_type not in _EVALUATORS:
            raise UserError(
                f'DATASETS.TEST: {dataset_name} has the evaluator_type "{evaluator_type}"; give a '
                f"dataset with one of {', '.join(_EVALUATORS)}, pascal_voc."
            )
        folder = str(inference_folder(cfg, dataset_name))
        return _EVALUATORS[evaluator_type](dataset_name, tasks=("bbox",), output_dir=folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict[str, Any]:
        """Evaluates as ``DefaultTrainer.test`` does, in ``TEST.DTYPE``.

        Adds the losses (``TEST.LOSS``), drawn detections, and a progress line on a terminal.
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results: OrderedDict[str, Any] = OrderedDict()
        with autocast(torch.device(cfg.MODEL.DEVICE).type, DTYPES[cfg.TEST.DTYPE]):
            for i, name in enumerate(cfg.DATASETS.TEST):
                evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
                loader = cls.build_test_loader(cfg, name)
                with (
                    validation_loss(cfg, model) as loss,
                    evaluation_progress(loader, name) as images,
                ):
                    both = DatasetEvaluators([evaluator, *([loss] if loss else [])])
                    results[name] = inference_on_dataset(model, images, both)
                if comm.is_main_process():
                    logging.getLogger("detectron2").info(f"Metrics of {name} in csv format:")
                    print_csv_format(results[name])
                    _draw(cfg, name)
        return results if len(results) != 1 else next(iter(results.values()))

    @classmethod
    def evaluate(cls, cfg: CfgNode, *, resume: bool) -> OrderedDict[str, Any]:
        """Evaluates ``MODEL.WEIGHTS``, or with ``resume`` the newest checkpoint.

        Appends a line with the metrics to ``metrics.json``.
        """
        model = cls.build_model(cfg)
        checkpointer = SafeCheckpointer(
            model, cfg.OUTPUT_DIR, complete=True, classes=_classes(cfg.DATASETS.TEST)
        )
        loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        logger.info(f"Evaluating in {accelerate_inference(model, cfg)}")
        results = cls.test(cfg, model)
        if comm.is_main_process():
            scalars = {"iteration": loaded.get("iteration", 0), **flatten_results_dict(results)}
            with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json"), "a") as file:
                file.write(json.dumps(scalars) + "\n")
        return results


def inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Returns the folder for the results of evaluating a dataset."""
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    return folder if len(cfg.DATASETS.TEST) == 1 else folder / dataset_name


def _is_shown(record: logging.LogRecord) -> bool:
    """Filters out tracebacks of errors that are reported elsewhere.

    Errors with a sentence are reported by it. If one of several processes fails, so do the others,
    for lack of it; ``launch`` reports the first.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return True
    is_known = sentence_of(error) is not None or isinstance(error, StoppedEarly)
    return not is_known and comm.get_world_size() == 1


def _classes(datasets: Sequence[str]) -> list[str] | None:
    """Returns the class names of the first dataset that has some."""
    names = (MetadataCatalog.get(name).get("thing_classes") for name in datasets)
    return next(filter(None, names), None)


def _draw(cfg: CfgNode, dataset_name: str) -> None:
    """Draws detections beside ground truth, and says so if there are none."""
    folder = inference_folder(cfg, dataset_name)
    detections, image = folder / "coco_instances_results.json", folder / "detections.png"
    if not detections.is_file():  # metrics other than COCO's
        return
    results = json.loads(detections.read_text())
    if not results:
        logger.info(
            f"{dataset_name}: no detection scores above MODEL.RETINANET.SCORE_THRESH_TEST "
            f"({cfg.MODEL.RETINANET.SCORE_THRESH_TEST}), so AP is nan."
        )
    if cfg.TEST.DRAW_IMAGES > 0:
        draw_detections(dataset_name, results, image, count=cfg.TEST.DRAW_IMAGES)
        logger.info(f"Detections beside ground truth: {image}")
        if has_event_storage():
            pixels = read_image(str(image), "RGB").transpose(2, 0, 1)
            get_event_storage().put_image(f"{dataset_name}/detections", pixels)
