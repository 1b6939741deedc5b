"""The findings as a table for the terminal, and as JSON."""

from collections.abc import Sequence
from typing import Any

from ...errors import printable
from .boxes import counts_of
from .check import Checked
from .findings import SEVERITIES, ordered

_EXAMPLE = 110  # characters


def terminal(checked: Checked) -> str:
    """What was looked at, a line for each kind of finding, and the sum of it."""
    lines = [
        f"{one.source.name}: {len(one.objects('images')):,} pictures, "
        f"{len(one.objects('annotations')):,} boxes, {len(one.objects('categories'))} classes, "
        f"{one.source.file}"
        for one in checked.sets
    ]
    groups = ordered(checked.findings)
    rows = [
        [severity, kind, f"{len(found):,}", printable(found[0].text)]
        for (severity, kind), found in groups.items()
    ]
    if rows:
        lines += ["", *_columns([["", "kind", "count", "first example"], *rows]), ""]
    return "\n".join([*map(printable, lines), summary(checked)])


def summary(checked: Checked) -> str:
    """``2 errors, 1 warning, 3 infos``, or that all is well."""
    counts = [(checked.count(severity), severity) for severity in SEVERITIES]
    said = [f"{count:,} {word}{'s' * (count != 1)}" for count, word in counts if count]
    return ", ".join(said) or "nothing found: the data set is in order"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns; the last is cut short."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{severity:{widths[0]}}  {kind:{widths[1]}}  {count:>{widths[2]}}  "
        + (text if len(text) <= _EXAMPLE else f"{text[: _EXAMPLE - 3]}...")
        for severity, kind, count, text in rows
    ]


def report(checked: Checked) -> dict[str, Any]:
    """All findings, and how many boxes each class has, as JSON can hold them."""
    return {
        "sets": [
            {
                "name": one.source.name,
                "json": str(one.source.file),
                "images": str(one.source.folder),
                "training": one.source.training,
                "pictures": len(one.objects("images")),
                "boxes": len(one.objects("annotations")),
                "boxes_of_classes": [
                    {"id": number, "name": name, "boxes": counts_of(one)[number]}
                    for number, name in one.categories.items()
                ],
            }
            for one in checked.sets
        ],
        "counts": {severity: checked.count(severity) for severity in SEVERITIES},
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "file": finding.file,
                "picture": finding.picture,
                "annotation": finding.annotation,
                "text": finding.text,
            }
            for group in ordered(checked.findings).values()
            for finding in group
        ],
    }
