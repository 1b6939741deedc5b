"""The findings as a page: counts, the number of boxes of each class, and the worst cases drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...data.findings import Box, Finding
from ...errors import printable
from ...html_page import image_tag, render
from .boxes import count_boxes
from .check import Checked
from .checked_set import CheckedSet
from .consequences import CONSEQUENCES, grouped
from .draw import COLORS, draw
from .report import summary

_DRAWN = 6  # findings of a rule
_LISTED = 100  # findings of a rule; all are in the JSON
_SET_COLORS = ("#2a6f97", "#e0a030", "#8a6fae")


def html(checked: Checked) -> str:
    """A complete document that needs no other file."""
    sets = checked.sets
    boxes_of = _boxes_of_images(sets)
    return render(
        Path(__file__).with_name("check_dataset.html"),
        title="Check of the dataset",
        state=next((s for s in ("error", "warning") if checked.count(s)), "ok"),
        summary=summary(checked),
        sources=[split.source for split in sets],
        tiles={
            "images": sum(split.count("images") for split in sets),
            "boxes": sum(split.count("annotations") for split in sets),
            "classes": len({name for split in sets for name in split.dataset.categories.values()}),
            "errors": checked.count("error"),
            "warnings": checked.count("warning"),
        },
        groups=[
            _group(checked, findings, boxes_of) for findings in grouped(checked.findings).values()
        ],
        num_listed=_LISTED,
        set_colors=[_SET_COLORS[i % len(_SET_COLORS)] for i in range(len(sets))],
        classes=_classes(sets),
        printable=printable,
    )


def _group(
    checked: Checked, findings: Sequence[Finding], boxes_of: dict[Path, list[Box]]
) -> dict[str, Any]:
    """What the page shows of the findings of one rule and severity."""
    figures: list[tuple[Markup, str]] = []
    listed: list[str] = []
    for finding in findings:
        message = printable(finding.message)
        path = checked.path_of(finding)
        if path and len(figures) < _DRAWN:
            others = [box for box in boxes_of.get(path, ()) if box != finding.box]
            try:
                image = draw(str(path), finding.severity, finding.box, others)
                figures.append((image_tag(image, alt=message), message))
                continue
            except Exception:  # PIL's decoders raise nearly everything; another finding reports it
                pass
        listed.append(message)
    first = findings[0]
    return {
        "severity": first.severity,
        "rule": first.rule,
        "count": len(findings),
        "consequence": CONSEQUENCES[first.rule],
        "color": "#{:02x}{:02x}{:02x}".format(*COLORS[first.severity]),
        "has_box": first.box is not None,
        "figures": figures,
        "listed": listed,
    }


def _boxes_of_images(sets: Sequence[CheckedSet]) -> dict[Path, list[Box]]:
    boxes: dict[Path, list[Box]] = {}
    for split in sets:
        for row in split.dataset.annotations.values():
            x, y, width, height = row["bbox"]
            boxes.setdefault(split.path_of(row["image_id"]), []).append(
                (x, y, x + width, y + height)
            )
    return boxes


def _classes(sets: Sequence[CheckedSet]) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each class name its boxes in each dataset, as count and percentage of the largest count.

    Classes are in the order of their total, the largest first.
    """
    counts: dict[str, list[int]] = {}
    for i, split in enumerate(sets):
        boxes = count_boxes(split.dataset)
        for number, name in split.dataset.categories.items():
            counts.setdefault(name, [0] * len(sets))[i] += boxes[number]
    largest = max((max(values) for values in counts.values()), default=0) or 1
    order = sorted(counts, key=lambda name: -sum(counts[name]))
    return [
        (printable(name), [(value, 100 * value / largest) for value in counts[name]])
        for name in order
    ]
