"""The boxes of a dataset, read from its annotations alone, and the sizes of training images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode

from ...errors import UserError

_NUM_RANGE_SIZES = 5  # image sizes that stand for a range


@dataclass(frozen=True)
class DatasetBoxes:
    """The M boxes of N images, without crowds."""

    boxes: np.ndarray  # (M, 4) float64, XYXY in pixels of the original image
    classes: np.ndarray  # (M,) int64
    image: np.ndarray  # (M,) int64, index of the box's image
    image_sizes: np.ndarray  # (N, 2) int64, height and width
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)


def read_boxes(names: Sequence[str]) -> DatasetBoxes:
    """Reads the boxes of one or more registered datasets.

    Raises:
        UserError: if there are no boxes.
    """
    entries = [entry for name in names for entry in DatasetCatalog.get(name)]
    rows, image = [], []
    for i, entry in enumerate(entries):
        kept = [row for row in entry.get("annotations", ()) if not row.get("iscrowd")]
        rows += kept
        image += [i] * len(kept)
    if not rows:
        raise UserError(f"{', '.join(names)}: no boxes to cover; name another dataset.")
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
    classes = np.array([row["category_id"] for row in rows])
    modes = np.array([row["bbox_mode"] for row in rows])
    for mode in np.unique(modes).tolist():
        boxes[modes == mode] = BoxMode.convert(
            boxes[modes == mode], BoxMode(mode), BoxMode.XYXY_ABS
        )
    class_names = MetadataCatalog.get(names[0]).get("thing_classes")
    return DatasetBoxes(
        boxes,
        classes,
        np.array(image),
        np.array([(entry["height"], entry["width"]) for entry in entries]),
        tuple(class_names or map(str, range(int(classes.max()) + 1))),
    )


@dataclass(frozen=True)
class ImageScale:
    """A size that detectron2's ``ResizeShortestEdge`` resizes images to.

    Args:
        short: length of the short side in pixels; 0: images keep their size.
        longest: maximum length of the long side.
    """

    short: int
    longest: int

    def resized(self, sizes: np.ndarray) -> np.ndarray:
        """Returns the new heights and widths of images of ``sizes`` (N, 2)."""
        if self.short == 0:
            return sizes
        known, index = np.unique(sizes, axis=0, return_inverse=True)
        shape = ResizeShortestEdge.get_output_shape
        new = [shape(h, w, self.short, self.longest) for h, w in known.tolist()]
        return np.array(new)[index.reshape(-1)]


def training_scales(cfg: CfgNode) -> list[ImageScale]:
    """Returns the scales of training images; five scales stand for a range.

    Raises:
        UserError: if ``INPUT.MIN_SIZE_TRAIN`` is empty or negative.
    """
    sizes: Sequence[int] = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not sizes or min(sizes) < 0:
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN: {sizes} given; give one or more lengths of the short side in "
            "pixels, or 0 to keep the size."
        )
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) == 2:
        sizes = np.linspace(*sizes, _NUM_RANGE_SIZES).round().astype(int).tolist()
    return [ImageScale(size, cfg.INPUT.MAX_SIZE_TRAIN) for size in sorted(set(sizes))]
