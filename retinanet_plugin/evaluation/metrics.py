"""Reading what a run wrote line by line: its log, and detectron2's ``metrics.json``."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = ("AP", "AP50", "AP75")


def short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as long as needed to tell them apart: ``gamma_2.0/seed_1``."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({p[-length:] for p in parts}) < len(set(parts)):
        length += 1
    return [str(Path(*p[-length:])) for p in parts]


def read_lines(path: Path, *, last: int | None = None, since: int = 0) -> list[str]:
    """The lines from byte ``since`` on, at most the ``last`` bytes; none if there is no file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, 0 if last is None else size - last))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def read_scalars(path: Path, *, last: int | None = None, since: int = 0) -> list[dict[str, Any]]:
    """The complete lines of a ``metrics.json``, as :func:`read_lines` reads them."""
    scalars = []
    for line in read_lines(path, last=last, since=since):
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
    """The box metrics of the last evaluation in a ``metrics.json``, in percent.

    AP is NaN there if nothing was detected, and 0 here.

    Args:
        datasets: the test sets of the run; the metrics are those of the first.
        steps: of training of the evaluated checkpoint; default: any. Its evaluation is logged with
            this number, or with that of the last step, which is one less.
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
