"""detectron2's default trainer, with what RetinaNet's users look for after it."""

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
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter
from torch import nn

from ..acceleration.accelerate import speed_up, speed_up_inference
from ..data import ReadableDatasetMapper
from ..data.stream import TrainingLoader, build_training_loader, leave_signals, seed_step
from ..errors import UserError, sentence_of
from ..evaluation.draw_detections import draw_detections
from ..evaluation.scores import highest_of_workers, highest_score
from ..evaluation.validation_loss import mapper_with_truth, validation_loss
from .amp import DTYPES, autocast
from .best_effort_io import (
    LastingCOCOEvaluator,
    LastingLVISEvaluator,
    LastingWriter,
    cannot,
    remove,
)
from .checkpoint import SafeCheckpointer
from .evaluation_hook import BestCheckpointer, Evaluation, StoppedEarly
from .loss_shares import LossShares
from .parallel import data_parallel
from .progress import ProgressLine, evaluation_progress, on_terminal
from .resuming import (
    Checkpoints,
    EventHistory,
    check_state,
    complete,
    settings_of,
    warn_of_changes,
)
from .step import TrainingStep

logger = logging.getLogger("retinanet_plugin")


class Trainer(DefaultTrainer):
    """Trains on ``DATASETS.TRAIN``, evaluates on ``DATASETS.TEST``, draws what it found there."""

    _trainer: TrainingStep

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's own: its several processes, and its mixed precision, need GPUs.
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
            most_skipped=cfg.SOLVER.SKIP_NOT_FINITE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        model, folder, classes = self.model, self.cfg.OUTPUT_DIR, _classes(self.cfg.DATASETS.TRAIN)
        self.checkpointer = SafeCheckpointer(
            model, folder, classes=classes, trainer=weakref.proxy(self)
        )
        checkpoints = Checkpoints(
            self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.SOLVER.KEEP_CHECKPOINTS
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
        ours = {EvalHook: evaluation, PeriodicCheckpointer: checkpoints}
        shares = [LossShares(model)] if self.cfg.MODEL.RETINANET.LOG_LOSS_SHARES else []
        hooks = [EventHistory(), *shares, *(ours.get(type(h), h) for h in hooks)]
        return [ProgressLine(), *hooks] if on_terminal() else hooks

    def build_writers(self) -> list[EventWriter]:
        """As the base; files that cannot be written do not end the run."""
        return [
            x if isinstance(x, CommonMetricPrinter) else LastingWriter(x)
            for x in super().build_writers()
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """As the base; a run that does not go on as itself is refused, or said to be another.

        Raises:
            UserError: for a checkpoint of another model, optimizer or program.
        """
        if resume and self.checkpointer.has_checkpoint():
            with complete(self.checkpointer):
                super().resume_or_load(True)
        else:
            super().resume_or_load(False)
        self._trainer.data_loader.stream.first_batch = self.start_iter

    def state_dict(self) -> dict[str, Any]:
        loader = self._trainer.data_loader
        settings = settings_of(self.cfg, loader.content)
        return {**super().state_dict(), "seed": loader.seed, "settings": settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        check_state(state_dict, self._trainer.optimizer)
        loader = self._trainer.data_loader
        loader.seed = state_dict.get("seed", loader.seed)  # detectron2's own checkpoints have none
        warn_of_changes(state_dict.get("settings"), settings_of(self.cfg, loader.content))

    def run_step(self) -> None:
        seed_step(self._trainer.data_loader.seed, self.iter, comm.get_rank())
        super().run_step()

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
                f"training stopped at step {self.iter + 1}: the loss is not finite; lower "
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
    def build_train_loader(cls, cfg: CfgNode) -> TrainingLoader:
        seed = cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())
        return build_training_loader(cfg, ReadableDatasetMapper(cfg, is_train=True), seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str, *, with_truth: bool = False) -> Any:
        """With the ground truth if asked for, which a loss needs and a detector does not."""
        mapper = mapper_with_truth(cfg) if with_truth else ReadableDatasetMapper(cfg, False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = leave_signals
        return loader

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """By the data set's ``evaluator_type``: COCO's metrics, or LVIS's or Pascal VOC's."""
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
        folder = str(inference_folder(cfg, dataset_name))
        if kind in ("coco", "coco_panoptic_seg"):
            return LastingCOCOEvaluator(dataset_name, tasks=("bbox",), output_dir=folder)
        if kind == "lvis":
            return LastingLVISEvaluator(dataset_name, tasks=("bbox",), output_dir=folder)
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
                is_clear = remove([_results(cfg, name), _picture(cfg, name)])
                with validation_loss(cfg, model) as loss, highest_score(model) as highest:
                    evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
                    loader = cls.build_test_loader(cfg, name, with_truth=loss is not None)
                    both = DatasetEvaluators([evaluator, *([loss] if loss else [])])
                    with evaluation_progress(loader, name) as pictures:
                        results[name] = inference_on_dataset(model, pictures, both)
                most = highest_of_workers(highest())
                if comm.is_main_process():
                    logging.getLogger("detectron2").info(f"Metrics of {name} in csv format:")
                    print_csv_format(results[name])
                    if is_clear:
                        _show(cfg, name, most)
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
    """Their names, if there is a data set that tells."""
    names = (MetadataCatalog.get(name).get("thing_classes") for name in datasets)
    return next(filter(None, names), None)


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
        highest: score that has been seen, also below the threshold, if known.
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
        try:
            draw_detections(dataset_name, found, picture, count=cfg.TEST.DRAW_PICTURES)
            logger.info(f"Predictions beside ground truth: {picture}")
        except OSError as error:
            logger.error(cannot("written", picture, error))
            remove([picture])  # half of it


def _report(folder: Path) -> None:
    """A page about the run; what goes wrong with it is no fault of the run."""
    try:
        from ..tools.report import write_report  # it needs what only pages need

        logger.info(f"Report: {write_report(folder)}")
    except Exception as error:
        reason = sentence_of(error) or f"{type(error).__name__}: {error}"
        logger.warning(f"no report was written ({reason})")
