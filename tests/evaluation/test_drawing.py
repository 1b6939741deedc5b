"""Boxes and labels drawn into images: where they are, in which colors, whether they overlap."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from retinanet_plugin.evaluation.drawing import COLORS, draw, enlargement


def gray(height: int = 300, width: int = 400) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def instances(boxes: list[list[float]], classes: list[int], size: tuple[int, int]) -> Instances:
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.linspace(0.9, 0.5, len(boxes)),
        pred_classes=torch.tensor(classes, dtype=torch.long),
    )


def of_color(image: np.ndarray, class_id: int) -> np.ndarray:
    return (image == COLORS[class_id][::-1]).all(axis=-1)


@pytest.mark.parametrize("enlarge", [1, 3])
def test_a_box_is_drawn_in_the_color_of_its_class(enlarge: int) -> None:
    given = gray()
    drawn = draw(given, instances([[100, 120, 180, 200]], [1], (300, 400)), ["a", "b"], enlarge)
    assert drawn.shape == (300 * enlarge, 400 * enlarge, 3) and (given == 128).all()
    seen = of_color(drawn, 1)
    for y, x in ((160, 100), (160, 180), (120, 140), (200, 140)):  # the middle of each side
        around = slice(y * enlarge - 2, y * enlarge + 3), slice(x * enlarge - 2, x * enlarge + 3)
        assert seen[around].any()
    inside = slice(130 * enlarge, 190 * enlarge), slice(110 * enlarge, 170 * enlarge)
    assert (drawn[inside] == 128).all()
    assert not of_color(drawn, 0).any()


def test_labels_stay_in_the_gray() -> None:
    boxes = [[0, 0, 399, 299], [0, 150, 5, 155], [395, 0, 399, 4], [390, 290, 399, 299]]
    drawn = draw(gray(), instances(boxes, [0, 1, 2, 3], (300, 400)), ["a long name"] * 4)
    assert all(of_color(drawn, class_id).sum() > 500 for class_id in (1, 2, 3))  # whole labels


def test_labels_do_not_overlap() -> None:
    """Of two equal boxes, one has its label above, the other below."""
    drawn = draw(gray(), instances([[100, 120, 180, 200]] * 2, [0, 1], (300, 400)), ["a", "b"])
    rows = [np.flatnonzero(of_color(drawn, class_id).sum(axis=1) > 10) for class_id in (0, 1)]
    assert rows[0].min() < 115 and rows[1].max() > 205
    assert not set(rows[0][rows[0] < 115]) & set(rows[1])


def test_a_label_without_room_above_does_not_cover_its_box() -> None:
    drawn = draw(gray(), instances([[100, 0, 180, 80]], [0], (300, 400)), ["a"])
    assert (drawn[4:75, 104:175] == 128).all() and of_color(drawn, 0)[84:].sum() > 200


def test_any_name_any_class_and_nothing_at_all() -> None:
    names = ["", "dög", "日本", "a\nb\x1b[31m", "x" * 300]
    boxes = [[10.0 + 70 * i, 100, 60 + 70 * i, 160] for i in range(5)]
    drawn = draw(gray(), instances(boxes, list(range(5)), (300, 400)), names)
    assert all(of_color(drawn, class_id).sum() > 200 for class_id in range(5))
    drawn = draw(gray(), instances(boxes[:1], [8], (300, 400)), ["c"] * 9)
    assert of_color(drawn, 1).any()  # colors repeat
    assert (draw(gray(), instances([], [], (300, 400)), []) == 128).all()
    draw(gray(3, 4), instances([[0, 0, 3, 2]], [0], (3, 4)), ["larger than the image"])


def test_small_images_are_enlarged() -> None:
    sizes = ((128, 128), (320, 900), (2000, 100), (1, 1))
    assert [enlargement(*size) for size in sizes] == [3, 1, 4, 320]
