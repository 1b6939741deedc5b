"""One dataset that is being checked."""

from dataclasses import dataclass, field
from pathlib import Path

from ...data.coco_json import parse
from ...data.coco_rules import CocoDataset
from ...data.findings import Finding
from ...data.image_rules import ImageFile
from ...errors import UserError
from .sources import Source

Files = dict[Path, ImageFile]  # what is known of each image file


@dataclass
class CheckedSet:
    """A dataset with its findings.

    Args:
        readable: whether the file is a JSON object; if not, ``dataset`` is empty.
    """

    source: Source
    dataset: CocoDataset
    findings: list[Finding] = field(default_factory=list)
    readable: bool = True

    @classmethod
    def read(cls, source: Source) -> "CheckedSet":
        """Reads a dataset and checks its entries, past every error."""
        try:
            content = source.content if source.content is not None else parse(source.file)[0]
        except UserError as error:
            one = cls(source, CocoDataset(source.file, {}), readable=False)
            message = str(error).removeprefix(f"{source.file}: ")
            one.findings.append(one.dataset.finding("error", "unusable-file", message))
            return one
        one = cls(source, CocoDataset(source.file, content))
        one.findings += one.dataset.check()
        return one

    def path_of(self, image_id: int) -> Path:
        """The file of a usable image."""
        return self.source.folder / self.dataset.images[image_id]["file_name"]

    def count(self, name: str) -> int:
        """The number of objects in a list of the JSON, however faulty."""
        return sum(1 for _ in self.dataset.rows(name))
