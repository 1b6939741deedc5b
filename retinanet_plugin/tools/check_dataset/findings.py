"""What a check can find, and what follows from it."""

from collections.abc import Iterable
from dataclasses import dataclass

SEVERITIES = ("error", "warning", "info")

# By kind, in the order in which they are shown: what follows, and what --fix does.
KINDS = {
    "unusable file": "Nothing of it can be used; --fix cannot mend it.",
    "malformed entry": (
        "Training refuses the file. --fix takes sizes from the picture, fills in area and iscrowd, "
        "and drops what cannot be known, with its boxes."
    ),
    "id taken twice": (
        "It is unclear what refers to which. --fix keeps the first entry of an id, and numbers "
        "annotations anew."
    ),
    "classes of one name": "A class is divided in two. --fix joins those of exactly one name.",
    "classes differ": (
        "Classes of training and test set would be mixed up. --fix gives both the same, by name."
    ),
    "undeclared class": "Training refuses the file. --fix drops the box.",
    "unused class": "It has outputs, but nothing trains them.",
    "rare class": "It will be learnt badly, and its AP depends on a few boxes.",
    "unknown picture": "The box belongs to nothing. --fix drops it.",
    "absent picture": "Training stops at it. --fix drops the entry with its boxes.",
    "unreadable picture": "Training stops at it. --fix drops the entry with its boxes.",
    "truncated picture": (
        "Its header can be read, its pixels cannot: training would stop at it, perhaps after "
        "hours. --fix drops the entry with its boxes."
    ),
    "picture size": (
        "Training refuses it; and boxes may lie elsewhere, if the picture was resized after they "
        "were drawn. --fix takes the picture's size, clips boxes to it and moves none."
    ),
    "EXIF rotation": (
        "detectron2 turns such a picture when it reads it, and expects boxes of the turned one. "
        "--fix turns boxes and size where the JSON has the size of the picture as stored."
    ),
    "picture twice": "It counts twice in training, and in AP.",
    "picture in both splits": (
        "AP is too high: the model has seen it, boxes and all. --fix removes it from training."
    ),
    "box not finite": "Training refuses the file. --fix drops the box.",
    "empty box": "Training refuses the file. --fix drops the box.",
    "box outside": (
        "It reaches more than a pixel outside its picture; training refuses the file. --fix clips "
        "it, or drops it where nothing is left."
    ),
    "duplicate box": (
        "One object counts as two, and in AP as one found and one missed. --fix keeps the first."
    ),
    "large box": "It covers nearly the whole picture, which is often a slip of the labelling tool.",
    "unmatched box": (
        "At no size that training resizes to has an anchor a positive's IoU with it: it is too "
        "small, too large or too narrow. Info where its best anchor at least is no background. "
        "tools.anchor_coverage suggests other anchors."
    ),
    "no boxes": (
        "Training leaves such pictures out unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False; "
        "a picture without objects is no fault."
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Args:
        severity: error: training refuses it, fails at it or reports a false AP; warning: look at
            it; info: no fault.
        kind: of ``KINDS``.
        file: the JSON.
        text: a sentence: which entry, what is wrong.
        picture: its file, where it is about one.
        annotation: id, where it is about one that has an id.
        box: XYXY in pixels.
        rank: of two of a kind, the higher is the worse.
    """

    severity: str
    kind: str
    file: str
    text: str
    picture: str | None = None
    annotation: int | None = None
    box: tuple[float, float, float, float] | None = None
    rank: float = 0.0


def ordered(findings: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """By severity and kind, in their order, each the worst first."""
    groups: dict[tuple[str, str], list[Finding]] = {
        (severity, kind): [] for severity in SEVERITIES for kind in KINDS
    }
    for finding in findings:
        groups[finding.severity, finding.kind].append(finding)
    return {
        key: sorted(group, key=lambda finding: -finding.rank)
        for key, group in groups.items()
        if group
    }
