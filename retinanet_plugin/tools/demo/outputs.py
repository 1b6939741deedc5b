"""Outputs of the demo: where to draw, and the detections in COCO's formats."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ...errors import UserError
from ...utils import write_json

DETECTIONS, IMAGES = "detections.json", "images.json"


class Outputs:
    """A folder for drawn images and videos, with two JSON files.

    ``detections.json`` is a list in COCO's results format, ``images.json`` has COCO's ``images``
    and ``categories``.

    Args:
        folder: created here; must be empty or hold the outputs of an earlier run.
        classes, category_ids: by class index.
        overwrite: replace the outputs of an earlier run.

    Raises:
        UserError: if the folder has other content, or that of an earlier run without
            ``overwrite``.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        category_ids: Sequence[int],
        *,
        overwrite: bool = False,
    ) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not (folder / DETECTIONS).is_file():
                raise UserError(f"--output: {folder} is not an empty folder; give another one.")
            if not overwrite:
                raise UserError(
                    f"--output: {folder} is not empty; give another one, or --overwrite."
                )
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []
        self._categories = [
            {"id": i, "name": name} for i, name in zip(category_ids, classes, strict=True)
        ]
        self._taken = {DETECTIONS, IMAGES}

    def path_for(self, name: PurePath, *, is_video: bool) -> Path:
        """Returns an unused path for the drawing of a source and creates its folder."""
        is_jpeg = name.suffix.lower() in (".jpg", ".jpeg")
        name = name.with_suffix(".mp4" if is_video else ".jpg" if is_jpeg else ".png")
        stem, numbers = name.stem, count(2)
        while name.as_posix().casefold() in self._taken:  # many disks ignore case
            name = name.with_stem(f"{stem}_{next(numbers)}")
        self._taken.add(name.as_posix().casefold())
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, detections: Instances, source: str, drawn: Path, **frame: int) -> None:
        """Records the detections of one image, or of a numbered ``frame`` of a video."""
        height, width = detections.image_size
        image_id = len(self.images) + 1
        name = drawn.relative_to(self.folder).as_posix()
        image = {"id": image_id, "file_name": source, **frame, "drawn": name}
        self.images.append({**image, "height": height, "width": width})
        for detection in instances_to_coco_json(detections, image_id):
            category = self._categories[detection["category_id"]]
            self.detections.append({**detection, "category_id": category["id"]})

    def write(self) -> None:
        """Writes the JSON files."""
        content = {"categories": self._categories, "annotations": [], "images": self.images}
        write_json(self.folder / IMAGES, content)
        write_json(self.folder / DETECTIONS, self.detections)
