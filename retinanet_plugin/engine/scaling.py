"""Rate and steps for another batch than a configuration's: linear scaling (arXiv 1706.02677).

Twice the pictures a step train at twice the rate for half as many steps. Which batch a key is meant
for follows from the layers of a configuration: detectron2's defaults, each ``_BASE_`` file, the
file itself, the command line. A key given together with a batch, or after it, is taken as given.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..config_file import load_yaml
from ..errors import UserError

BATCH = "SOLVER.IMS_PER_BATCH"
_RATES = ("SOLVER.BASE_LR", "SOLVER.BASE_LR_END")
_MILESTONES = "SOLVER.STEPS"
# Milestones come last: they must end up below MAX_ITER.
_COUNTS = (
    *("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
    _MILESTONES,
)
SCHEDULE = (*_RATES, *_COUNTS)


def scale_to_batch(cfg: CfgNode, path: Path, overrides: Sequence[str]) -> list[str]:
    """Scales ``cfg`` in place to its batch, if ``SOLVER.SCALE_TO_BATCH`` is set.

    Args:
        cfg: what :func:`get_config` made of ``path`` and ``overrides``.

    Returns:
        lines for the log: each key from what to what.

    Raises:
        UserError: for a batch of no picture.
    """
    if not cfg.SOLVER.get("SCALE_TO_BATCH", True):
        return []
    lines = []
    batch = cfg.SOLVER.IMS_PER_BATCH
    given = dict(zip(overrides[::2], overrides[1::2], strict=True))
    meant = _meant_for([*_layers(path), given])
    for other in sorted(set(meant.values()) - {batch}):
        if changed := _scale(cfg, [key for key in SCHEDULE if meant[key] == other], batch, other):
            lines.append(
                f"Schedule for a batch of {batch} instead of {other}: {', '.join(changed)} "
                "(SOLVER.SCALE_TO_BATCH)"
            )
    return lines


def scale_to_workers(cfg: CfgNode, workers: int) -> list[str]:
    """Scales ``cfg`` in place, its batch too, from ``SOLVER.REFERENCE_WORLD_SIZE``, unless 0.

    As detectron2's ``auto_scale_workers`` does in its trainer, which finds nothing left to do; but
    no period becomes 0, and milestones stay apart and below the end.

    Args:
        workers: processes.

    Returns:
        lines for the log: each key from what to what.

    Raises:
        UserError: where the reference workers cannot share out the batch.
    """
    reference, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference in (0, workers):
        return []
    if reference < 0 or batch % reference:
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE: {reference} workers cannot share out "
            f"SOLVER.IMS_PER_BATCH {batch}; give a divisor of it, or 0 to leave all as it is."
        )
    cfg.SOLVER.REFERENCE_WORLD_SIZE = workers
    cfg.SOLVER.IMS_PER_BATCH = batch * workers // reference
    changed = [f"{BATCH} {batch} -> {cfg.SOLVER.IMS_PER_BATCH}"]
    changed += _scale(cfg, SCHEDULE, workers, reference)
    number = f"{workers} worker{'s' if workers > 1 else ''}"
    return [
        f"Schedule for {number} instead of {reference}: {', '.join(changed)} "
        "(SOLVER.REFERENCE_WORLD_SIZE)"
    ]


def _layers(path: Path) -> list[dict[str, Any]]:
    """The keys that a file and the files below it set, one by one; later ones win."""
    bases = []

    def is_base(file: Path) -> bool:
        if file != path:
            bases.append(file)
        return file != path

    own = _of_two_words(load_yaml(path, leave_out=is_base))
    return [*(layer for base in bases for layer in _layers(base)), own]


def _of_two_words(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of groups, such as ``SOLVER.STEPS``."""
    groups = ((name, group) for name, group in content.items() if isinstance(group, Mapping))
    return {f"{name}.{key}": value for name, group in groups for key, value in group.items()}


def _meant_for(layers: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The batch that each key is meant for: what held after the last layer that sets the key."""
    batch = get_cfg().SOLVER.IMS_PER_BATCH
    meant = dict.fromkeys(SCHEDULE, batch)
    for layer in layers:
        batch = int(layer.get(BATCH, batch))
        if batch < 1:
            raise UserError(f"{BATCH}: {batch} given; give at least 1.")
        meant |= {key: batch for key in SCHEDULE if key in layer}
    return meant


def _scale(cfg: CfgNode, keys: Sequence[str], to: int, of: int) -> list[str]:
    """Scales the keys by ``to / of``, counts of steps by its inverse; names those that changed."""

    def steps(count: int) -> int:
        return max(round(count * of / to), 1) if count else 0

    changed = []
    for key in keys:
        group, name = key.split(".")
        old = cfg[group][name]
        if key in _RATES:
            new: Any = old * to / of
        elif key != _MILESTONES:
            new = steps(old)
        elif cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
            new = old  # which has no milestones
        else:  # rounded, two may fall together or on the end, which no schedule allows
            new = tuple(sorted({steps(x) for x in old} - {cfg.SOLVER.MAX_ITER}))
        if new != old:
            cfg[group][name] = new
            changed.append(f"{key} {_shown(old)} -> {_shown(new)}")
    return changed


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
