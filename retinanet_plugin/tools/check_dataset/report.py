"""The findings as a table for the terminal, and as JSON."""

from typing import Any

from tabulate import tabulate

from ...data.findings import SEVERITIES
from ...errors import printable
from .boxes import count_boxes
from .check import Checked
from .consequences import grouped

_EXAMPLE_WIDTH = 110  # characters


def table(checked: Checked) -> str:
    """What was checked, a line for each rule that is broken, and a summary."""
    lines = [
        f"{split.source.name}: {split.count('images'):,} images, "
        f"{split.count('annotations'):,} boxes, {split.count('categories')} classes, "
        f"{split.source.json_file}"
        for split in checked.sets
    ]
    rows = [
        [severity, rule, len(findings), _shortened(findings[0].message)]
        for (severity, rule), findings in grouped(checked.findings).items()
    ]
    if rows:
        header = ["", "rule", "count", "first example"]
        lines += ["", *tabulate(rows, header, tablefmt="plain").splitlines(), ""]
    return "\n".join([*map(printable, lines), summary(checked)])


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _EXAMPLE_WIDTH else f"{text[: _EXAMPLE_WIDTH - 3]}..."


def summary(checked: Checked) -> str:
    """Counts by severity: "2 errors, 1 warning, 3 infos"."""
    counts = [(checked.count(severity), severity) for severity in SEVERITIES]
    named = [f"{count:,} {severity}{'s' * (count != 1)}" for count, severity in counts if count]
    return ", ".join(named) or "no problems found"


def as_json(checked: Checked) -> dict[str, Any]:
    """All findings, and the number of boxes of each class."""
    return {
        "datasets": [
            {
                "name": split.source.name,
                "json": str(split.source.json_file),
                "folder": str(split.source.images),
                "training": split.source.training,
                "images": split.count("images"),
                "boxes": split.count("annotations"),
                "classes": [
                    {"id": number, "name": name, "boxes": count_boxes(split.dataset)[number]}
                    for number, name in split.dataset.categories.items()
                ],
            }
            for split in checked.sets
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
