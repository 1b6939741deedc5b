"""Everything that is checked and chosen before a run starts."""

import argparse
import errno
import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.registry import Registry

from ..acceleration.memory import keep_freed_memory
from ..config import find_config, get_config
from ..data import check_datasets, register_own_datasets
from ..errors import UserError
from ..modeling.registry import find, one_of
from .amp import DTYPES, HALF_DTYPES
from .atomic_io import has_run
from .best_effort_io import no_traceback_of_logs
from .checkpoint import local_file
from .lock import hold
from .progress import on_terminal, start_logs
from .scaling import scale_to_batch, scale_to_workers

_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
_ALWAYS = ("DATALOADER.NUM_WORKERS", "SEED")  # also to evaluate
_ANY = 2**62
_MOST_PIXELS = 20_000
_LIMITS: dict[str, tuple[int, int]] = {
    "DATALOADER.NUM_WORKERS": (0, 1000),
    "DATALOADER.SKIP_UNREADABLE": (0, _ANY),
    "MODEL.FPN.OUT_CHANNELS": (1, 2**16),
    "SEED": (-1, 2**32 - 1),  # of numpy; -1: drawn
    "SOLVER.BASE_LR": (0, 10**38),  # of float32
    "SOLVER.CHECKPOINT_PERIOD": (1, _ANY),
    "SOLVER.IMS_PER_BATCH": (1, 2**20),
    "SOLVER.KEEP_CHECKPOINTS": (0, _ANY),
    "SOLVER.MAX_ITER": (1, _ANY),
    "SOLVER.SKIP_NOT_FINITE": (0, _ANY),
    "SOLVER.WARMUP_ITERS": (0, _ANY),
}

# In OUTPUT_DIR, by detectron2 and us, in place; all else is written anew beside its place.
_WRITTEN = ("config.yaml", "metrics.json", "inference", "datasets", "not_finite", "report.html")


def prepare(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration of a run, after all that can be wrong with it was looked at.

    Registers a person's own data sets, chooses the device, and starts the log.

    Args:
        args: of detectron2's ``default_argument_parser``.

    Raises:
        UserError: for a mistake in the configuration, the data or the command line.
    """
    if not args.config_file:
        raise UserError(
            "--config-file: none given; give a YAML file or the name of one that the plugin ships, "
            "such as retinanet_R50_FPN_1x.yaml."
        )
    path = find_config(args.config_file)
    args.config_file = str(path)  # default_setup copies it into the log
    cfg = get_config(path, args.opts)
    training = not args.eval_only
    scaled = scale_to_batch(cfg, path, args.opts) + scale_to_workers(cfg, comm.get_world_size())
    choose_device(cfg)
    check_names(cfg)
    check_numbers(cfg, training=training)
    check_evaluation(cfg)
    check_output(cfg, training=training, resume=args.resume)
    start_logs(cfg.OUTPUT_DIR)
    no_traceback_of_logs()
    logger = logging.getLogger("retinanet_plugin")
    if on_terminal():
        logger.info(f"Everything is logged in {os.path.join(cfg.OUTPUT_DIR, 'log.txt')}")
    for line in scaled if training else []:
        logger.info(line)
    check_weights(cfg, training=training, resume=args.resume)
    register_own_datasets(cfg, training=training)
    check_datasets(cfg, training=training)
    cfg.freeze()
    default_setup(cfg, args)
    keep_freed_memory(cfg)
    return cfg


def choose_device(cfg: CfgNode) -> None:
    """Turns ``MODEL.DEVICE`` from cuda, its default, to cpu where there is no GPU.

    Several processes have been started for GPUs, if there are any, before the config is read.
    """
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise UserError(
            f'MODEL.DEVICE: "{cfg.MODEL.DEVICE}" is no device; give cuda, cuda:0, ... or cpu.'
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    workers = comm.get_world_size()
    if (
        workers > 1
        and torch.cuda.is_available()
        and (device.type == "cpu" or device.index is not None)
    ):
        raise UserError(
            f"MODEL.DEVICE: {cfg.MODEL.DEVICE} given for {workers} processes, which take a GPU "
            "each; leave it at cuda and choose GPUs by the environment variable "
            "CUDA_VISIBLE_DEVICES=0,1,..., or none of them, for the CPU, by CUDA_VISIBLE_DEVICES= "
            "before the command."
        )


def check_names(cfg: CfgNode) -> None:
    """Looks up what detectron2's registries build by name, and how the batch is shared out."""
    named: dict[str, tuple[Registry, str]] = {
        "MODEL.META_ARCHITECTURE": (META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE),
        "MODEL.BACKBONE.NAME": (BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME),
        "MODEL.ANCHOR_GENERATOR.NAME": (
            ANCHOR_GENERATOR_REGISTRY,
            cfg.MODEL.ANCHOR_GENERATOR.NAME,
        ),
    }
    for key, (registry, name) in named.items():
        find(registry, name, key)
    one_of(cfg.SOLVER.AMP.DTYPE, HALF_DTYPES, "SOLVER.AMP.DTYPE")
    one_of(cfg.TEST.DTYPE, DTYPES, "TEST.DTYPE")
    workers = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % workers:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH: {cfg.SOLVER.IMS_PER_BATCH} given for {workers} workers; give a "
            "multiple of their number."
        )


def check_numbers(cfg: CfgNode, *, training: bool) -> None:
    """Looks at keys that detectron2 takes as they are, and fails by later."""
    for key, (least, most) in _LIMITS.items():
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        if not least <= value <= most and (training or key in _ALWAYS):  # nor is NaN
            upto = f"from {least} to {most}" if most < _ANY else f"of at least {least}"
            raise UserError(f"{key}: {value} given; give a number {upto}.")
    if not training:
        return
    one_of(cfg.SOLVER.LR_SCHEDULER_NAME, _SCHEDULERS, "SOLVER.LR_SCHEDULER_NAME")
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        kind = cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE
        one_of(kind, ("value", "norm"), "SOLVER.CLIP_GRADIENTS.CLIP_TYPE")
    sides, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    are_sides = all(isinstance(side, int) and 0 <= side <= _MOST_PIXELS for side in sides)
    if not sides or not are_sides or (sampling == "range" and len(sides) != 2):
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN: {sides} given; give whole numbers of pixels up to "
            f"{_MOST_PIXELS}, such as (640, 800), of which one is chosen, or two with "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING range."
        )


def check_evaluation(cfg: CfgNode) -> None:
    """Looks at the keys of early stopping and of the best checkpoint, which need evaluations."""
    patience, metric = cfg.SOLVER.EARLY_STOPPING.PATIENCE, cfg.TEST.BEST_METRIC
    if patience < 0:
        raise UserError(
            f"SOLVER.EARLY_STOPPING.PATIENCE: {patience} given; give a number of evaluations, or 0 "
            "to train to the end."
        )
    if patience and cfg.TEST.EVAL_PERIOD < 1:
        raise UserError(
            f"SOLVER.EARLY_STOPPING.PATIENCE: {patience} given, but TEST.EVAL_PERIOD is "
            f"{cfg.TEST.EVAL_PERIOD}, so nothing is evaluated before the end; give the steps from "
            "one evaluation to the next."
        )
    if metric.startswith("validation/") and not cfg.TEST.LOSS:
        raise UserError(
            f'TEST.BEST_METRIC: "{metric}" is not measured while TEST.LOSS is False; make it True.'
        )


def check_output(cfg: CfgNode, *, training: bool, resume: bool) -> None:
    """Refuses to train over a run that is, or is being, written to ``OUTPUT_DIR``."""
    if not cfg.OUTPUT_DIR or "\0" in cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR:
        raise UserError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR!r} cannot be a folder on this machine; give one that can "
            "be written."
        )
    if training and not resume and has_checkpoint(cfg) and comm.is_main_process():
        raise UserError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR} already holds a run; go on with it by --resume, or give "
            "another OUTPUT_DIR."
        )
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        if not os.access(cfg.OUTPUT_DIR, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a name for a file"
        raise UserError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR} cannot be made ({reason}); give a folder that "
            "can be written."
        ) from None
    check_links(Path(cfg.OUTPUT_DIR))
    if training and comm.is_main_process():
        hold(cfg.OUTPUT_DIR)


def check_links(folder: Path) -> None:
    """Refuses a folder, perhaps from elsewhere, by whose links a run would write outside it."""
    written = [folder / name for name in _WRITTEN] + list(folder.glob("log.txt*"))
    written += (folder / "inference").rglob("*")
    for path in written:
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"OUTPUT_DIR: {path} is a link to {path.resolve()}, outside the folder, where a "
                "run would write; remove it, or give another OUTPUT_DIR."
            )


def check_weights(cfg: CfgNode, *, training: bool, resume: bool) -> None:
    """Finds or fetches ``MODEL.WEIGHTS``, where the run will need it."""
    if resume and has_checkpoint(cfg):
        return
    if cfg.MODEL.WEIGHTS:
        local_file(cfg.MODEL.WEIGHTS)
    elif not training:
        raise UserError(
            "MODEL.WEIGHTS: empty, so there is nothing to evaluate; give a checkpoint, or --resume "
            f"for the newest one in OUTPUT_DIR ({cfg.OUTPUT_DIR})."
        )


def has_checkpoint(cfg: CfgNode) -> bool:
    """Whether ``OUTPUT_DIR`` holds a run's checkpoint."""
    return has_run(cfg.OUTPUT_DIR)
