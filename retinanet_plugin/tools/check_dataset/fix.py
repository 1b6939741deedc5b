"""Fixed copies of datasets: applies the fixes that findings carry, in an order that settles."""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...data.coco_fields import Row
from ...data.coco_rules import CocoDataset
from ...data.findings import Finding, apply_fixes, complete
from ...data.image_rules import image_findings
from ...data.own_datasets import CocoFiles
from ...errors import UserError
from ...utils import output_files, write_text
from .boxes import find_suspicious
from .check import Checked
from .checked_set import CheckedSet
from .images import find_repeated


class FixedSet(CheckedSet):
    """A dataset that is being fixed, with counts of its changes."""

    def __init__(self, source: CocoFiles, content: Row) -> None:
        super().__init__(source, CocoDataset(source.json_file, content))
        self.changes = Counter[str]()
        self.update(content, Counter())

    def update(self, content: Row, changes: Counter[str]) -> None:
        """Takes new content, whose malformed entries are removed."""
        self.changes += changes
        self.dataset = CocoDataset(self.source.json_file, content)
        findings = [finding for finding in self.dataset.check() if finding.fixes]
        if findings:
            self.update(*apply_fixes(content, findings))

    def apply(self, findings: Sequence[Finding]) -> None:
        """Applies the fixes of findings about the present content."""
        self.update(*apply_fixes(self.dataset.content, findings))


def fix(checked: Checked) -> list[FixedSet]:
    """Fixes copies of all datasets.

    Raises:
        UserError: if errors remain that only a person can fix.
    """
    for split in checked.sets:
        if not split.readable:
            raise UserError(f"--fix: {split.findings[0]}.")
    sets = [FixedSet(split.source, split.dataset.content) for split in checked.sets]
    for split in sets:
        split.apply(list(image_findings(split.dataset, split.source.images, checked.files)))
    repeated = list(find_repeated(sets, checked.files))
    for split in sets:
        split.apply([finding for other, finding in repeated if other is split])
    classes = _shared_classes(sets)
    for split in sets:
        _use_classes(split, classes)
        split.apply(list(split.dataset.check_boxes()))
        split.apply(list(find_suspicious(split.dataset)))
        if isinstance(split.dataset.content.get("annotations"), list):
            split.update(*complete(split.dataset.content))
        dataset = CocoDataset(split.source.json_file, split.dataset.content)
        remaining = [*dataset.check(), *dataset.check_boxes()]
        remaining += dataset.check_training() if split.source.training else ()
        errors = [finding for finding in remaining if finding.severity == "error"]
        if errors:
            raise UserError(f"--fix: {errors[0]} (of the fixed copy); replace the file.")
    return sets


def _shared_classes(sets: Sequence[FixedSet]) -> dict[str, Row]:
    """The categories of all datasets by name; those of the first dataset keep their ids."""
    shared: dict[str, Row] = {}
    used: set[int] = set()
    for split in sets:
        for _, row in split.dataset.rows("categories"):
            if row["name"] not in shared:
                number = row["id"] if row["id"] not in used else max(used) + 1
                used.add(number)
                shared[row["name"]] = {**row, "id": number}
    return shared


def _use_classes(split: FixedSet, classes: dict[str, Row]) -> None:
    """Declares all classes in a dataset, and gives its annotations their ids."""
    names = split.dataset.categories
    content = {**split.dataset.content, "categories": list(classes.values())}
    if names:
        content["annotations"] = [
            {**row, "category_id": classes[names[row["category_id"]]]["id"]}
            for row in split.dataset.annotations.values()
        ]
    changes = Counter[str]()
    changes["classes renumbered or merged"] = sum(
        classes[name]["id"] != number for number, name in names.items()
    )
    changes["classes added"] = len(classes.keys() - set(names.values()))
    split.update(content, changes)


def paths_of_copies(sources: Sequence[CocoFiles], folder: Path, *, overwrite: bool) -> list[Path]:
    """Creates ``folder`` and returns the path of a copy of each dataset in it.

    Raises:
        UserError: if a file exists and ``overwrite`` is False, or it is an original.
    """
    names = [f"{source.name}.json" for source in sources]
    originals = {source.json_file.resolve() for source in sources}
    for path in (folder / name for name in names):
        if path.resolve() in originals:
            raise UserError(f"--fix: {path} is an original; give another folder.")
    return output_files(folder, names, overwrite=overwrite, option="--fix")


def write_copies(fixed: Sequence[FixedSet], paths: Sequence[Path]) -> str:
    """Writes the copies; returns what was changed and how to train with them, for people."""
    lines, overrides = [], []
    for split, path in zip(fixed, paths, strict=True):
        write_text(path, json.dumps(split.dataset.content))
        lines.append(f"\n{path}, from {split.source.json_file}:")
        lines += [f"  {what}: {count}" for what, count in split.changes.items()] or ["  no changes"]
        prefix = "DATASETS.OWN." + ("TRAIN" if split.source.training else "TEST")
        for key, value in (("JSON", path), ("IMAGES", split.source.images)):
            overrides.append(f"  {prefix}_{key} {shlex.quote(str(value.absolute()))}")
    return "\n".join([*lines, "", "To train with it, add to the command:", *overrides])
