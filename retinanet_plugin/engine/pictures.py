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
from detectron2.utils.visualizer import Visualizer
from torch import as_tensor

from ..data.pictures import read_picture

_WIDTH = 420  # pixels of each drawn picture
_CAPTION = 28  # pixels of the line above it


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
    chosen = [pictures[i * len(pictures) // count] for i in range(min(count, len(pictures)))]
    rows = [_row(picture, detections[picture["image_id"]], metadata) for picture in chosen]
    out.parent.mkdir(parents=True, exist_ok=True)
    # A long column of rows is hard to look at: fold it into two.
    half = (len(rows) + 1) // 2
    columns = [_stack(part) for part in (rows[:half], rows[half:]) if part]
    height = max(c.shape[0] for c in columns)
    padded = [
        np.pad(c, ((0, height - len(c)), (0, 16), (0, 0)), constant_values=255) for c in columns
    ]
    if not cv2.imwrite(str(out), np.concatenate(padded, axis=1)[:, :, ::-1]):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(out))  # OpenCV does not say why


def _row(picture: dict[str, Any], detections: list[dict[str, Any]], metadata: Any) -> np.ndarray:
    image = read_picture(picture["file_name"], "RGB")
    scale = _WIDTH / image.shape[1]
    truth = Visualizer(image, metadata, scale=scale).draw_dataset_dict(
        {**picture, "annotations": [_box_only(a) for a in picture.get("annotations", [])]}
    )
    found = Visualizer(image, metadata, scale=scale).draw_instance_predictions(
        _instances(detections, image.shape[:2], metadata)
    )
    name = Path(picture["file_name"]).name
    left = _titled(truth.get_image(), f"{name}: truth, {len(picture.get('annotations', []))}")
    right = _titled(found.get_image(), f"predicted, {len(detections)}")
    gap = np.full((left.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _box_only(annotation: dict[str, Any]) -> dict[str, Any]:
    return {k: annotation[k] for k in ("bbox", "bbox_mode", "category_id")}


def _instances(detections: list[dict[str, Any]], size: tuple[int, int], metadata: Any) -> Instances:
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})  # absent: the ids are the classes
    boxes = np.array([d["bbox"] for d in detections], dtype=np.float32).reshape(-1, 4)
    return Instances(
        size,
        pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
        scores=as_tensor([d["score"] for d in detections]),
        pred_classes=as_tensor(
            [ids.get(d["category_id"], d["category_id"]) for d in detections]
        ).long(),
    )


def _titled(image: np.ndarray, text: str) -> np.ndarray:
    title = np.full((_CAPTION, image.shape[1], 3), 255, np.uint8)
    cv2.putText(title, text, (4, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([title, image])


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of equal width below each other."""
    width = max(row.shape[1] for row in rows)
    fill = [((0, 0), (0, width - row.shape[1]), (0, 0)) for row in rows]
    padded = [np.pad(row, f, constant_values=255) for row, f in zip(rows, fill, strict=True)]
    return np.concatenate(padded)
