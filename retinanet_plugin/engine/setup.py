"""Checks the config and prepares the output folder, log and datasets before a run starts."""

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from filelock import FileLock, Timeout

from ..acceleration.memory import keep_freed_memory
from ..config import find_config, get_config
from ..config_keys import check_ranges
from ..data import check_registered_datasets, register_own_datasets
from ..errors import UserError
from ..modeling.registry import find
from .checkpoint import has_run, local_file
from .progress import on_terminal, start_logs
from .scaling import scale_to_batch

# In OUTPUT_DIR, besides logs and checkpoints.
_WRITTEN = (
    *("config.yaml", "metrics.json", "last_checkpoint", "report.html", ".lock"),
    *("inference", "not_finite", "datasets"),
)
# A killed run's loader workers notice within 5 s; until then they may still hold its lock.
_PATIENCE_S = 6.0
_lock: FileLock | None = None


def prepare(args: argparse.Namespace) -> CfgNode:
    """Returns the frozen config of a run after checking it.

    Registers your own datasets, chooses the device, and starts the log.

    Args:
        args: of detectron2's ``default_argument_parser``.

    Raises:
        UserError: for a mistake in the config, the data or the command line.
    """
    if not args.config_file:
        raise UserError(
            "--config-file: not given; give a YAML file or the name of a shipped one, such as "
            "retinanet_R50_FPN_1x.yaml."
        )
    path = find_config(args.config_file)
    args.config_file = str(path)  # default_setup copies it into the log
    cfg = get_config(path, args.opts)
    training = not args.eval_only
    check_ranges(cfg, training=training)
    scaled = scale_to_batch(cfg, given=args.opts[::2]) if training else None
    choose_device(cfg)
    check_names(cfg)
    if training:
        check_training(cfg)
    check_output(cfg, training=training, resume=args.resume)
    start_logs(cfg.OUTPUT_DIR)
    logger = logging.getLogger("retinanet_plugin")
    if on_terminal():
        logger.info(f"The log is in {os.path.join(cfg.OUTPUT_DIR, 'log.txt')}")
    if scaled:
        logger.info(scaled)
    check_weights(cfg, training=training, resume=args.resume)
    register_own_datasets(cfg, training=training)
    check_registered_datasets(cfg, training=training)
    cfg.freeze()
    default_setup(cfg, args)
    keep_freed_memory(cfg)
    return cfg


def prepare_evaluation(
    cfg: CfgNode,
    *,
    training: bool = False,
    choose: Callable[[], tuple[str, ...]] | None = None,
) -> None:
    """Chooses the device, and registers and checks the datasets in ``DATASETS.TEST``.

    Args:
        training: also register the own training set, so that ``choose`` may return it.
        choose: called with the own datasets registered; returns the new ``DATASETS.TEST``.

    Raises:
        UserError: for a mistake in the config or the data.
    """
    choose_device(cfg)
    check_names(cfg)
    register_own_datasets(cfg, training=training)
    if choose is not None:
        cfg.DATASETS.TEST = choose()
    check_registered_datasets(cfg, training=False)


def choose_device(cfg: CfgNode) -> None:
    """Changes ``MODEL.DEVICE`` from cuda, its default, to cpu if there is no GPU.

    Raises:
        UserError: if several processes, which use one GPU each, are given a single device.
    """
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise UserError(
            f'MODEL.DEVICE: unknown device "{cfg.MODEL.DEVICE}"; give cuda, cuda:0, ... or cpu.'
        ) from None
    if not torch.cuda.is_available():
        if device.type == "cuda":
            cfg.MODEL.DEVICE = "cpu"
    elif comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cuda":
        raise UserError(
            f"MODEL.DEVICE: {cfg.MODEL.DEVICE} for {comm.get_world_size()} processes, which use a "
            "GPU each; give cuda, and choose GPUs with the environment variable "
            "CUDA_VISIBLE_DEVICES (empty: none)."
        )


def check_names(cfg: CfgNode) -> None:
    """Checks the names that detectron2 looks up in its registries."""
    find(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    find(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    find(ANCHOR_GENERATOR_REGISTRY, cfg.MODEL.ANCHOR_GENERATOR.NAME, "MODEL.ANCHOR_GENERATOR.NAME")


def check_training(cfg: CfgNode) -> None:
    """Checks keys of training that depend on each other."""
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    workers = reference or comm.get_world_size()
    if workers < 0 or batch % workers:
        raise UserError(
            f"SOLVER.{'REFERENCE_WORLD_SIZE' if reference else 'IMS_PER_BATCH'}: {batch} images "
            f"per batch cannot be shared by {workers} processes; give a multiple of their number."
        )
    patience, metric = cfg.SOLVER.EARLY_STOPPING.PATIENCE, cfg.TEST.BEST_METRIC
    if patience and cfg.TEST.EVAL_PERIOD < 1:
        raise UserError(
            f"SOLVER.EARLY_STOPPING.PATIENCE: {patience}, but there are no evaluations before the "
            "end; give the steps between them as TEST.EVAL_PERIOD."
        )
    if metric.startswith("validation/") and not cfg.TEST.LOSS:
        raise UserError(f'TEST.BEST_METRIC: "{metric}" needs TEST.LOSS True; set that.')


def check_output(cfg: CfgNode, *, training: bool, resume: bool) -> None:
    """Creates ``OUTPUT_DIR``; for training, locks it and refuses to overwrite a run."""
    folder = cfg.OUTPUT_DIR
    if "://" in folder:
        raise UserError(f"OUTPUT_DIR: {folder} is not a folder on this machine; give one.")
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"OUTPUT_DIR: cannot create {folder!r} ({error}); give another.") from None
    check_links(Path(folder))
    if training and comm.is_main_process():
        if not resume and has_run(folder):
            raise UserError(
                f"OUTPUT_DIR: {folder} already holds a run; continue it with --resume, or give "
                "another OUTPUT_DIR."
            )
        lock_folder(folder)


def check_links(folder: Path) -> None:
    """Refuses links in a folder, perhaps from elsewhere, that would make a run write outside it."""
    written = [folder / name for name in _WRITTEN]
    written += [*folder.glob("log.txt*"), *folder.glob("model_*.pth")]
    for path in written:
        for inner in (path, *path.rglob("*")):
            target = Path(os.path.realpath(inner))
            if inner.is_symlink() and not target.is_relative_to(folder.resolve()):
                raise UserError(
                    f"OUTPUT_DIR: {inner} is a link to {target}, outside the folder; remove it, or "
                    "give another OUTPUT_DIR."
                )


def lock_folder(folder: str) -> None:
    """Locks ``folder`` for as long as this process lives or until it locks another."""
    global _lock
    if _lock is not None:
        _lock.release()
    _lock = FileLock(Path(folder) / ".lock", timeout=_PATIENCE_S)
    try:
        _lock.acquire()
    except Timeout:
        _lock = None
        raise UserError(
            f"OUTPUT_DIR: another process is training into {folder}; wait until it ends, or give "
            "another OUTPUT_DIR."
        ) from None


def check_weights(cfg: CfgNode, *, training: bool, resume: bool) -> None:
    """Finds or downloads ``MODEL.WEIGHTS`` if the run needs it."""
    if resume and has_run(cfg.OUTPUT_DIR):
        return
    if cfg.MODEL.WEIGHTS:
        local_file(cfg.MODEL.WEIGHTS)
    elif not training:
        raise UserError(
            "MODEL.WEIGHTS: empty, so there is nothing to evaluate; give a checkpoint, or --resume "
            f"for the newest one in OUTPUT_DIR ({cfg.OUTPUT_DIR})."
        )
