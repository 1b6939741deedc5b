"""Predictions drawn beside the ground truth, to be looked at."""

import errno
import json
import os
from collections import defaultdict
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
from .drawing import draw, font_of

_WIDTH = 420  # pixels of each drawn picture
_CAPTION = 28  # pixels of the line above it
_MOST_LETTERS = 36  # of a file's name there
_MOST_CLASSES = 10_000  # of a data set that names none


def draw_detections(
    dataset: str, results_json: Path, out: Path, *, count: int = 8, min_score: float = 0.4
) -> None:
    """Draws test pictures in rows, ground truth on the left, predictions on the right.

    The pictures are spread evenly over the data set, so that they are the same each time.

    Args:
        dataset: registered name.
        results_json: detections in COCO's result format, as COCOEvaluator writes them.
        out: PNG to write.
        count: number of pictures.
        min_score: detections below it are not drawn.

    Raises:
        OSError: if it cannot be written.
    """
    pictures = DatasetCatalog.get(dataset)
    metadata = MetadataCatalog.get(dataset)
    detections = defaultdict(list)
    for detection in json.loads(results_json.read_text()):
        if detection["score"] >= min_score:
            detections[detection["image_id"]].append(detection)
    count = min(count, len(pictures))
    chosen = [pictures[i * len(pictures) // count] for i in range(count)]
    rows = [_row(picture, detections[picture["image_id"]], metadata) for picture in chosen]
    out.parent.mkdir(parents=True, exist_ok=True)
    # A long column of rows is hard to look at: fold it into two.
    half = (len(rows) + 1) // 2
    columns = [_stack(part) for part in (rows[:half], rows[half:]) if part]
    height = max(c.shape[0] for c in columns)
    padded = [
        np.pad(c, ((0, height - len(c)), (0, 16), (0, 0)), constant_values=255) for c in columns
    ]
    if not cv2.imwrite(str(out), np.concatenate(padded, axis=1)):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(out))  # OpenCV does not say why


def _row(picture: dict[str, Any], detections: list[dict[str, Any]], metadata: Any) -> np.ndarray:
    image = read_image(picture["file_name"], "BGR")
    scale = _WIDTH / image.shape[1]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(image, (_WIDTH, max(round(image.shape[0] * scale), 1)), interpolation=how)
    truths = picture.get("annotations", [])
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})  # absent: the ids are the classes
    truth = _instances(truths, [a["category_id"] for a in truths], scale, image.shape[:2])
    kinds = [ids.get(d["category_id"], d["category_id"]) for d in detections]
    found = _instances(detections, kinds, scale, image.shape[:2])
    found.scores = as_tensor([d["score"] for d in detections])
    classes = metadata.get("thing_classes") or list(map(str, range(_MOST_CLASSES)))
    name = printable(Path(picture["file_name"]).name, _MOST_LETTERS)
    left = _titled(draw(image, truth, classes), f"{name}: truth, {len(truth)}")
    right = _titled(draw(image, found, classes), f"predicted, {len(found)}")
    gap = np.full((left.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _instances(
    rows: list[dict[str, Any]], kinds: list[int], scale: float, size: tuple[int, int]
) -> Instances:
    """Of annotations, or of detections, which have no ``bbox_mode``, in a picture of ``size``."""
    corners = [
        BoxMode.convert(row["bbox"], row.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for row in rows
    ]
    boxes = Boxes(as_tensor(np.array(corners, dtype=np.float32).reshape(-1, 4) * scale))
    return Instances(size, pred_boxes=boxes, pred_classes=as_tensor(kinds).long())


def _titled(image: np.ndarray, text: str) -> np.ndarray:
    title = Image.new("RGB", (image.shape[1], _CAPTION), "white")
    ImageDraw.Draw(title).text((4, 5), text, fill=(40, 40, 40), font=font_of(14))
    return np.concatenate([np.asarray(title), image])


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of equal width below each other."""
    width = max(row.shape[1] for row in rows)
    fill = [((0, 0), (0, width - row.shape[1]), (0, 0)) for row in rows]
    padded = [np.pad(row, f, constant_values=255) for row, f in zip(rows, fill, strict=True)]
    return np.concatenate(padded)
