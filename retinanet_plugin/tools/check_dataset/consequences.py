"""What follows from breaking each rule, and what --fix does about it."""

from collections.abc import Iterable

from ...data.findings import SEVERITIES, Finding, Rule

# In the order in which findings are shown.
CONSEQUENCES: dict[Rule, str] = {
    "unusable-file": "Nothing in the file can be used, and --fix cannot help.",
    "malformed-entry": (
        "Training refuses the file. --fix takes sizes from the images, derives area and iscrowd, "
        "and removes other malformed entries with their boxes."
    ),
    "duplicate-id": "References to the id are ambiguous. --fix keeps the first entry of an id.",
    "duplicate-class-name": "One class is split in two. --fix merges classes of the same name.",
    "classes-differ": (
        "Training and test set would mix up classes. --fix gives both the same classes, by name."
    ),
    "undeclared-class": "Training refuses the file. --fix removes the box.",
    "unused-class": "The class has outputs, but nothing to train them.",
    "unknown-image": "The box belongs to no image. --fix removes it.",
    "missing-image": "Training stops at it. --fix removes the entry with its boxes.",
    "unreadable-image": "Training stops at it. --fix removes the entry with its boxes.",
    "truncated-image": (
        "The header can be read, the pixels cannot: training would stop at it, perhaps after "
        "hours. --fix removes the entry with its boxes."
    ),
    "image-size": (
        "Training refuses it. Boxes may be displaced if the image was resized after labeling. "
        "--fix takes the size of the image and clips boxes to it, but moves none."
    ),
    "exif-rotation": (
        "detectron2 rotates such an image when it reads it, and expects boxes of the rotated one. "
        "--fix removes the entry with its boxes."
    ),
    "duplicate-image": "It counts twice in training and in AP.",
    "image-in-both-splits": (
        "AP is too high, because the model was trained on the image. --fix removes it from the "
        "training set."
    ),
    "box-not-finite": "Training refuses the file. --fix removes the box.",
    "empty-box": "Training refuses the file. --fix removes the box.",
    "box-outside": (
        "The box reaches more than a pixel outside its image; training refuses the file. --fix "
        "clips it, or removes it if nothing is left."
    ),
    "duplicate-box": (
        "One object counts as two, and in AP as one detected and one missed. --fix keeps the first."
    ),
    "large-box": "It covers nearly the whole image, which often is a slip of the labeling tool.",
    "no-boxes": (
        "An image without objects is not a fault. Training leaves it out unless "
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS is False."
    ),
}


def grouped(findings: Iterable[Finding]) -> dict[tuple[str, Rule], list[Finding]]:
    """Findings by severity and rule, in order, the worst of each group first."""
    groups: dict[tuple[str, Rule], list[Finding]] = {
        (severity, rule): [] for severity in SEVERITIES for rule in CONSEQUENCES
    }
    for finding in sorted(findings, key=lambda finding: -finding.rank):
        groups[finding.severity, finding.rule].append(finding)
    return {key: group for key, group in groups.items() if group}
