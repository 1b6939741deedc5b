"""Everything that ``check-dataset`` looks for, in one pass over the datasets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.findings import Finding
from ...data.image_rules import image_findings
from ...data.own_datasets import CocoFiles
from .boxes import find_class_problems, find_suspicious
from .checked_set import CheckedSet, Files
from .images import decode_images, find_repeated


@dataclass(frozen=True)
class Checked:
    """Datasets that were checked together."""

    sets: Sequence[CheckedSet]
    files: Files

    @property
    def findings(self) -> list[Finding]:
        """Those of all datasets."""
        return [finding for split in self.sets for finding in split.findings]

    def path_of(self, finding: Finding) -> Path | None:
        """The image file that a finding is about, if any."""
        folders = {split.source.json_file: split.source.images for split in self.sets}
        return folders[finding.file] / finding.image if finding.image else None

    def count(self, severity: str) -> int:
        """The number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def check(sources: Sequence[CocoFiles]) -> Checked:
    """Checks all datasets, past every error; shows progress on the standard error output."""
    sets = [CheckedSet.read(source) for source in sources]
    files = decode_images(sets)
    for split in sets:
        split.findings += image_findings(split.dataset, split.source.images, files)
        split.findings += split.dataset.check_boxes()
        split.findings += find_suspicious(split.dataset)
    for split, finding in [*find_class_problems(sets), *find_repeated(sets, files)]:
        split.findings.append(finding)
    return Checked(sets, files)
