"""The findings as a table for the terminal, and as JSON."""

from collections.abc import Sequence
from typing import Any

from ...data.findings import SEVERITIES
from ...errors import printable
from .boxes import count_boxes
from .check import Checked
from .rules import grouped

_EXAMPLE_WIDTH = 110  # characters


def table(checked: Checked) -> str:
    """What was checked, a line for each rule that is broken, and a summary."""
    lines = [
        f"{one.source.name}: {one.count('images'):,} images, {one.count('annotations'):,} boxes, "
        f"{one.count('categories')} classes, {one.source.file}"
        for one in checked.sets
    ]
    rows = [
        [severity, rule, f"{len(findings):,}", findings[0].message]
        for (severity, rule), findings in grouped(checked.findings).items()
    ]
    if rows:
        lines += ["", *_columns([["", "rule", "count", "first example"], *rows]), ""]
    return "\n".join([*map(printable, lines), summary(checked)])


def summary(checked: Checked) -> str:
    """Counts by severity: "2 errors, 1 warning, 3 infos"."""
    counts = [(checked.count(severity), severity) for severity in SEVERITIES]
    named = [f"{count:,} {severity}{'s' * (count != 1)}" for count, severity in counts if count]
    return ", ".join(named) or "no problems found"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{severity:{widths[0]}}  {rule:{widths[1]}}  {count:>{widths[2]}}  "
        + printable(text, _EXAMPLE_WIDTH)
        for severity, rule, count, text in rows
    ]


def as_json(checked: Checked) -> dict[str, Any]:
    """All findings, and the number of boxes of each class."""
    return {
        "datasets": [
            {
                "name": one.source.name,
                "json": str(one.source.file),
                "folder": str(one.source.folder),
                "training": one.source.training,
                "images": one.count("images"),
                "boxes": one.count("annotations"),
                "classes": [
                    {"id": number, "name": name, "boxes": count_boxes(one.dataset)[number]}
                    for number, name in one.dataset.categories.items()
                ],
            }
            for one in checked.sets
        ],
        "counts": {severity: checked.count(severity) for severity in SEVERITIES},
        "findings": [
            {
                "severity": finding.severity,
                "rule": finding.rule,
                "file": str(finding.file),
                "entry": "{}[{}]".format(*finding.entry) if finding.entry else None,
                "image": finding.image and str(checked.path_of(finding)),
                "message": finding.message,
            }
            for findings in grouped(checked.findings).values()
            for finding in findings
        ],
    }
