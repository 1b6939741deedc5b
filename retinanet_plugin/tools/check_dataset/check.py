"""Everything that is looked for in data sets, in one go."""

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from .boxes import AnchorRule, check_anchors, check_boxes, check_classes
from .entries import CheckedSet, Source, read_set
from .findings import Finding
from .pictures import Files, check_pictures, check_repeated, look_at


@dataclass(frozen=True)
class Checked:
    """Data sets that were gone through.

    Args:
        leaked: the training sets' images that are tested on too, by id.
    """

    sets: Sequence[CheckedSet]
    files: Files
    leaked: Sequence[tuple[CheckedSet, int]]

    @property
    def findings(self) -> list[Finding]:
        return [finding for checked in self.sets for finding in checked.findings]

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)


def check(sources: Sequence[Source], rule: AnchorRule, workers: int) -> Checked:
    """Goes through all sets, past each fault; progress goes to the standard error output."""
    sets = [read_set(source) for source in sources]
    files = look_at(sets, workers)
    for checked in sets:
        check_pictures(checked, files)
        check_boxes(checked, files)
    check_classes(sets)
    leaked = check_repeated(sets, files)
    trained = [checked for checked in sets if checked.source.training] or sets
    boxes = sum(len(checked.annotations) for checked in trained)
    with tqdm(total=boxes * len(rule.scales), desc="anchors", unit="box") as bar:
        for checked in trained:
            check_anchors(checked, files, rule, bar.update)
        bar.update(bar.total - bar.n)
    return Checked(sets, files, leaked)
