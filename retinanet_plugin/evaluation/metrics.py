"""What a run has written line by line: its log, and ``metrics.json`` of detectron2's JSONWriter."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = ("AP", "AP50", "AP75")


def short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as long as tells them apart: ``gamma_2.0/seed_1``; of the same, equal."""
    parts = [path.resolve().parts for path in paths]
    kinds, length = len(set(parts)), 1
    while len({p[-length:] for p in parts}) < kinds:
        length += 1
    return [str(Path(*p[-length:])) for p in parts]


def read_lines(path: Path, *, last: int | None = None, since: int = 0) -> list[str]:
    """The lines from byte ``since`` on, of the ``last`` bytes; none where there is no file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, 0 if last is None else size - last))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def read_scalars(path: Path, *, last: int | None = None, since: int = 0) -> list[dict[str, Any]]:
    """The lines of a ``metrics.json`` that are whole, as :func:`read_lines` finds them."""
    scalars = []
    for line in read_lines(path, last=last, since=since):
        try:
            content = json.loads(line)
        except ValueError:  # of a run that was killed
            continue
        if isinstance(content, dict):
            scalars.append(content)
    return scalars


def last_metrics(
    path: Path, datasets: Sequence[str], steps: int | None = None
) -> dict[str, float] | None:
    """The boxes' metrics of the last evaluation in a ``metrics.json``, in percent.

    Where nothing was detected, AP is not a number there, and 0 here.

    Args:
        datasets: that were evaluated on; of several, the first counts.
        steps: that the evaluated checkpoint was trained; default: any. Lines of its evaluation
            bear this number, or that of its last step, which is one less.
    """
    # detectron2 names the set where there are several, and sorts the keys.
    prefix = f"{datasets[0]}/bbox/" if len(datasets) > 1 else "bbox/"
    for scalars in reversed(read_scalars(path)):
        if f"{prefix}AP" in scalars and (
            steps is None or scalars.get("iteration") in (steps, steps - 1)
        ):
            own = {k.removeprefix(prefix): v for k, v in scalars.items() if k.startswith(prefix)}
            own |= {k: 0.0 for k in METRICS if math.isnan(own.get(k, 0.0))}
            return {k: v for k, v in own.items() if not math.isnan(v)}
    return None
