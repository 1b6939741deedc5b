"""One dataset that is being checked."""

from dataclasses import dataclass, field
from pathlib import Path

from ...data.coco_json import UnusableFileError, parse
from ...data.coco_rules import CocoDataset
from ...data.findings import Finding
from ...data.image_rules import ImageFile
from ...data.own_datasets import CocoFiles

Files = dict[Path, ImageFile]  # what is known of each image file


@dataclass
class CheckedSet:
    """A dataset with its findings.

    Args:
        readable: whether the file is a JSON object; if not, ``dataset`` is empty.
    """

    source: CocoFiles
    dataset: CocoDataset
    findings: list[Finding] = field(default_factory=list)
    readable: bool = True

    @classmethod
    def read(cls, source: CocoFiles) -> "CheckedSet":
        """Reads a dataset and checks its entries, past every error."""
        file = source.json_file
        try:
            dataset = CocoDataset(file, parse(file)[0])
        except UnusableFileError as error:
            return cls(source, CocoDataset(file, {}), [error.finding], False)
        return cls(source, dataset, list(dataset.check()))

    def path_of(self, image_id: int) -> Path:
        """The file of a usable image."""
        return self.source.images / self.dataset.images[image_id]["file_name"]

    def count(self, name: str) -> int:
        """The number of objects in a list of the JSON, however faulty."""
        return sum(1 for _ in self.dataset.rows(name))
