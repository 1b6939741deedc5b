"""Detections drawn beside the ground truth."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image, ImageDraw
from torch import as_tensor

from ..data.images import read_image
from ..errors import printable
from ..utils import spread
from .drawing import draw, font_of

_WIDTH = 420  # pixels of each image
_CAPTION = 28  # pixels of the line above it
_MIN_SCORE = 0.4  # of what is drawn
_MAX_LETTERS = 36  # of a file name there


def draw_detections(
    dataset: str, results: Sequence[Mapping[str, Any]], output: Path, *, count: int
) -> None:
    """Draws test images in rows: ground truth on the left, detections on the right.

    The images are spread evenly over the dataset, so they are the same each time.

    Args:
        dataset: registered name.
        results: detections in COCO's result format, as COCOEvaluator writes them.
        output: PNG to write.
        count: number of images.

    Raises:
        OSError: if ``output`` cannot be written.
    """
    entries = DatasetCatalog.get(dataset)
    metadata = MetadataCatalog.get(dataset)
    class_of = metadata.get("thing_dataset_id_to_contiguous_id", {})  # absent: ids are indices
    detections = defaultdict(list)
    for detection in results:
        if detection["score"] >= _MIN_SCORE:
            class_id = class_of.get(detection["category_id"], detection["category_id"])
            detections[detection["image_id"]].append({**detection, "category_id": class_id})
    chosen = spread(entries, count)
    shown = [box for e in chosen for box in (*e.get("annotations", ()), *detections[e["image_id"]])]
    num_classes = max((box["category_id"] + 1 for box in shown), default=0)
    classes = metadata.get("thing_classes") or [str(k) for k in range(num_classes)]
    rows = [_row(entry, detections[entry["image_id"]], classes) for entry in chosen]
    output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(output), np.concatenate(rows)):
        raise OSError(f"{output} cannot be written")


def _row(
    entry: dict[str, Any], detections: list[dict[str, Any]], classes: Sequence[str]
) -> np.ndarray:
    image = read_image(entry["file_name"], "BGR")
    scale = _WIDTH / image.shape[1]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = _WIDTH, max(round(image.shape[0] * scale), 1)
    image = cv2.resize(image, size, interpolation=interpolation)
    truth = _instances(entry.get("annotations", []), scale, size)
    predicted = _instances(detections, scale, size)
    predicted.scores = as_tensor([d["score"] for d in detections])
    name = printable(Path(entry["file_name"]).name, _MAX_LETTERS)
    left = _titled(draw(image, truth, classes), f"{name}: truth, {len(truth)}")
    right = _titled(draw(image, predicted, classes), f"predicted, {len(predicted)}")
    return np.concatenate([left, np.full((len(left), 4, 3), 255, np.uint8), right], axis=1)


def _instances(rows: list[dict[str, Any]], scale: float, size: tuple[int, int]) -> Instances:
    """Annotations, or detections (which have no ``bbox_mode``), as instances."""
    corners = [
        BoxMode.convert(row["bbox"], row.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for row in rows
    ]
    boxes = Boxes(as_tensor(np.array(corners, dtype=np.float32).reshape(-1, 4) * scale))
    class_ids = as_tensor([row["category_id"] for row in rows]).long()
    return Instances(size[::-1], pred_boxes=boxes, pred_classes=class_ids)


def _titled(image: np.ndarray, text: str) -> np.ndarray:
    title = Image.new("RGB", (image.shape[1], _CAPTION), "white")
    ImageDraw.Draw(title).text((4, 5), text, fill=(40, 40, 40), font=font_of(14))
    return np.concatenate([np.asarray(title), image])
