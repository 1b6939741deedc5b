"""One model in several forms, checkpoint and exported files: accuracy on a data set, and speed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation.metrics import METRICS

_COLUMNS = (*METRICS, "APs", "APm", "APl")


@dataclass
class Form:
    """What is evaluated.

    Args:
        name: of its checkpoint or exported file.
        file: which that is.
        runtime: what runs it.
        metrics: of each test set in percent, as its evaluator gives them.
        times: seconds of each run, a picture each.
    """

    name: str
    file: Path
    runtime: str
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    times: Sequence[float] = ()

    def milliseconds(self, fraction: float) -> float:
        """A quantile of the times."""
        return float(np.quantile(self.times, fraction)) * 1000


def report(forms: Sequence[Form], about: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers, as JSON; what is not a number is null."""
    return {**about, "models": [_one(form) for form in forms]}


def _one(form: Form) -> dict[str, Any]:
    return {
        "file": form.name,
        "bytes": form.file.stat().st_size,
        "runtime": form.runtime,
        "metrics": {
            name: {key: x if math.isfinite(x) else None for key, x in metrics.items()}
            for name, metrics in form.metrics.items()
        },
        "milliseconds": {
            "median": form.milliseconds(0.5),
            "quartiles": [form.milliseconds(0.25), form.milliseconds(0.75)],
            "all": [time * 1000 for time in form.times],
        },
    }


def markdown(forms: Sequence[Form], about: Mapping[str, Any]) -> str:
    """A table, with a line a model and test set, and what is to be known about it.

    Args:
        about: "machine", of the benchmark; "data", the number of pictures of each test set;
            "shape", height and width of the pictures that were timed.
    """
    head = ["model", "runtime", "data", "MB", *_COLUMNS, "ms a picture: median (quartiles)"]
    rows = [
        [
            form.name,
            form.runtime,
            dataset,
            f"{form.file.stat().st_size / 1e6:.1f}",
            *(f"{metrics.get(key, math.nan):.2f}".replace("nan", "") for key in _COLUMNS),
            "{:.3g} ({:.3g} to {:.3g})".format(*map(form.milliseconds, (0.5, 0.25, 0.75))),
        ]
        for form in forms
        for dataset, metrics in form.metrics.items()
    ]
    machine, (height, width) = about["machine"], about["shape"]
    data = ", ".join(f"{name} ({count} pictures)" for name, count in about["data"].items())
    lines = [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]]
    note = (
        f"{data}. {machine['device']}, {machine['threads']} threads of the CPU, torch "
        f"{machine['torch']}; {len(forms[0].times)} runs of each, in turn, of one picture of about "
        f"{height} x {width} pixels.\n"
    )
    return "\n".join([*lines, "", note])
