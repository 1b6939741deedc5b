"""Linear scaling of a schedule to another batch size (arXiv 1706.02677)."""

from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode

RATES = ("SOLVER.BASE_LR", "SOLVER.BASE_LR_END")
STEP_COUNTS = (
    *("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD"),
    "TEST.EVAL_PERIOD",
)


def scale_to_batch(cfg: CfgNode, given: Collection[str] = ()) -> str | None:
    """Scales the schedule in place from ``SOLVER.BASE_BATCH_SIZE`` to ``SOLVER.IMS_PER_BATCH``.

    Learning rates grow with the batch size, step counts shrink. ``BASE_BATCH_SIZE`` is set to the
    new batch size, so that a saved config is not scaled again.

    Args:
        given: keys that keep their values, such as those given on the command line.

    Returns:
        a line for the log, or None if nothing was scaled.
    """
    solver = cfg.SOLVER
    base, batch = solver.BASE_BATCH_SIZE, solver.IMS_PER_BATCH
    if base == 0 or base == batch:
        return None
    solver.BASE_BATCH_SIZE = batch

    def steps(count: int) -> int:
        return max(round(count * base / batch), 1) if count else 0

    changes = []
    for name in (*RATES, *STEP_COUNTS):
        group, key = name.split(".")
        old: Any = cfg[group][key]
        if name in given:
            continue
        if name in RATES:
            new: Any = old * batch / base
        elif name == "SOLVER.STEPS":  # WarmupMultiStepLR wants them to rise, below MAX_ITER
            new = tuple(x for x in sorted({steps(x) for x in old}) if x < solver.MAX_ITER)
        else:
            new = steps(old)
        if new != old:
            cfg[group][key] = new
            changes.append(f"{name} {_shown(old)} -> {_shown(new)}")
    return (
        f"Schedule scaled from batch size {base} (SOLVER.BASE_BATCH_SIZE) to {batch}: "
        f"{', '.join(changes)}"
    )


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
