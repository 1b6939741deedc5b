"""The boxes of a data set, from its annotations alone, and the sizes that they are trained at."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode

from ..errors import UserError
from .images import read_picture

_NUM_RANGE_SIZES = 5  # of a range of picture sizes


@dataclass(frozen=True)
class DatasetBoxes:
    """The M boxes of P pictures that training would see: crowds and empty ones are left out."""

    boxes: np.ndarray  # (M, 4) float64, XYXY in pixels of the picture
    classes: np.ndarray  # (M,) int64
    picture: np.ndarray  # (M,) int64, 0 .. P - 1
    picture_sizes: np.ndarray  # (P, 2) int64, height and width
    files: list[str]  # P
    image_ids: list[Any]  # P
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)


def read_boxes(names: Sequence[str], track: Callable[[Any], Iterable[Any]] = iter) -> DatasetBoxes:
    """The boxes of registered data sets, together; pictures are opened only for sizes not told.

    Args:
        track: wraps the pictures that are gone through, for a progress bar.

    Raises:
        UserError: where there is no box.
    """
    boxes, classes, picture, modes = [], [], [], []
    sizes, files, image_ids = [], list[str](), []
    annotated = True
    for entry in track([entry for name in names for entry in DatasetCatalog.get(name)]):
        annotated &= "annotations" in entry
        for annotation in entry.get("annotations", ()):
            if not annotation.get("iscrowd"):
                boxes.append(annotation["bbox"])
                modes.append(annotation["bbox_mode"])
                classes.append(annotation["category_id"])
                picture.append(len(files))
        sizes.append(_size_of(entry))
        files.append(entry["file_name"])
        image_ids.append(entry.get("image_id"))
    if not boxes:
        lacking = "boxes" if annotated else "annotations"
        raise UserError(
            f"{', '.join(names)}: no {lacking}, so there is nothing that anchors could cover; name "
            "another data set."
        )
    coordinates = np.array(boxes, dtype=np.float64)
    mode = np.array(modes)
    for kind in set(modes):
        rows = mode == kind
        coordinates[rows] = BoxMode.convert(coordinates[rows], kind, BoxMode.XYXY_ABS)
    class_names = MetadataCatalog.get(names[0]).get("thing_classes")
    return DatasetBoxes(
        coordinates,
        np.array(classes),
        np.array(picture),
        np.array(sizes),
        files,
        image_ids,
        tuple(class_names or map(str, range(max(classes) + 1))),
    )


def _size_of(entry: Mapping[str, Any]) -> tuple[int, int]:
    if "height" in entry and "width" in entry:
        return entry["height"], entry["width"]
    height, width = read_picture(entry["file_name"], "BGR").shape[:2]
    return height, width


@dataclass(frozen=True)
class PictureScale:
    """To what size pictures are resized, as detectron2's ``ResizeShortestEdge`` does it.

    Args:
        short: of the short side, in pixels; 0: as it is.
        longest: that the long side may become.
    """

    short: int
    longest: int

    def resized(self, sizes: np.ndarray) -> np.ndarray:
        """(P, 2): height and width of pictures of ``sizes`` (P, 2)."""
        if self.short == 0:
            return sizes
        known, index = np.unique(sizes, axis=0, return_inverse=True)
        shape = ResizeShortestEdge.get_output_shape
        new = [shape(h, w, self.short, self.longest) for h, w in known.tolist()]
        return np.array(new)[index.reshape(-1)]


def training_scales(cfg: CfgNode) -> list[PictureScale]:
    """Each that training chooses from; of a range its ends and three between them.

    Raises:
        UserError: for a size that no picture can have.
    """
    sizes: Sequence[int] = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not sizes or min(sizes) < 0:
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN: {sizes} given; give the pixels of the pictures' short side, "
            "one number or more, or 0 for pictures as they are."
        )
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) == 2:
        sizes = np.linspace(*sizes, _NUM_RANGE_SIZES).round().astype(int).tolist()
    return [PictureScale(size, cfg.INPUT.MAX_SIZE_TRAIN) for size in sorted(set(sizes))]
