"""Detections drawn beside ground truth: which images, where the boxes are, in which colors."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_sets import forget_new_sets
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from retinanet_plugin.evaluation.draw_detections import draw_detections
from retinanet_plugin.evaluation.drawing import COLORS

GROUNDS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]  # RGB, one image each
TRUTH = (20, 30, 60, 70)  # of 84 x 100, enlarged five times


@pytest.fixture
def shapes(tmp_path: Path) -> Iterator[str]:
    entries = []
    for i, ground in enumerate(GROUNDS):
        file = tmp_path / f"Straße {i}.png"
        Image.new("RGB", (84, 100), ground).save(file)
        box = {"bbox": list(TRUTH), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
        entries.append({"file_name": str(file), "image_id": i, "annotations": [box]})
    with forget_new_sets():
        DatasetCatalog.register("shapes", lambda: entries)
        MetadataCatalog.get("shapes").set(
            thing_classes=["cat", "dög"], thing_dataset_id_to_contiguous_id={7: 0, 9: 1}
        )
        yield "shapes"


def drawn(name: str, folder: Path, **detection: object) -> np.ndarray:
    """(H, W, 3) RGB, with one detection in the last of the images."""
    one = {"image_id": 2, "bbox": [10, 20, 30, 40], "category_id": 7, "score": 0.9, **detection}
    draw_detections(name, [one], folder / "out" / "images.png", count=8)
    return cv2.imread(str(folder / "out" / "images.png"))[:, :, ::-1]


def shares(image: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((image == color).all(axis=-1).mean())


def test_each_image_is_drawn_once_with_its_boxes(shapes: str, tmp_path: Path) -> None:
    image = drawn(shapes, tmp_path)
    for ground in GROUNDS:
        assert 0.2 < shares(image, ground) < 1 / 3
    truth, predicted = image[-500:, :420], image[-500:, 424:]
    for part, class_id, box in ((truth, 1, TRUTH), (predicted, 0, (10, 20, 40, 60))):
        seen = (part == COLORS[class_id]).all(axis=-1)
        left, top, right, bottom = (5 * x for x in box)
        middle = (left + right) // 2, (top + bottom) // 2
        for x, y in ((left, middle[1]), (right, middle[1]), (middle[0], bottom)):
            assert seen[y - 2 : y + 3, x - 2 : x + 3].any(), (class_id, y, x)
        assert shares(part, COLORS[1 - class_id]) == 0


def test_low_scores_are_not_drawn_and_classes_may_have_no_names(
    shapes: str, tmp_path: Path
) -> None:
    assert shares(drawn(shapes, tmp_path, score=0.3), COLORS[0]) == 0
    MetadataCatalog.remove("shapes")
    assert shares(drawn(shapes, tmp_path, category_id=3), COLORS[3]) > 0
