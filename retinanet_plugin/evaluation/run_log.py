"""Reads what a run wrote line by line: its log, and detectron2's ``metrics.json``."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = ("AP", "AP50", "AP75")


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the ends of paths that tell them apart, such as ``gamma_2.0/seed_1``."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({p[-length:] for p in parts}) < len(set(parts)):
        length += 1
    return [str(Path(*p[-length:])) for p in parts]


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file; none if there is no file."""
    try:
        return path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a ``metrics.json``."""
    scalars = []
    for line in read_lines(path):
        try:
            content = json.loads(line)
        except ValueError:  # the last line of a killed run
            continue
        if isinstance(content, dict):
            scalars.append(content)
    return scalars


def last_metrics(
    path: Path, datasets: Sequence[str], steps: int | None = None
) -> dict[str, float] | None:
    """Returns the box metrics of the last evaluation in a ``metrics.json``, in percent.

    AP is NaN there if nothing was detected, and 0 here.

    Args:
        datasets: the test sets of the run; the metrics are those of the first.
        steps: only evaluations of the checkpoint after so many steps count, which are logged with
            this number or, by ``--eval-only``, with that of the last step, which is one less.
    """
    # detectron2 names the test set if there are several.
    prefix = f"{datasets[0]}/bbox/" if len(datasets) > 1 else "bbox/"
    for scalars in reversed(read_scalars(path)):
        if f"{prefix}AP" in scalars and (
            steps is None or scalars.get("iteration") in (steps, steps - 1)
        ):
            own = {k.removeprefix(prefix): v for k, v in scalars.items() if k.startswith(prefix)}
            own |= {k: 0.0 for k in METRICS if math.isnan(own.get(k, 0.0))}
            return {k: v for k, v in own.items() if not math.isnan(v)}
    return None
