"""Which differences between detections count."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from retinanet_plugin.tools.export.comparison import TOLERANCES, batches, compare


class Model:
    """Detects rows of x1, y1, x2, y2, score and class in every image."""

    def __init__(self, *rows: tuple[float, ...]) -> None:
        self.table, self.input_format = torch.tensor(rows).reshape(-1, 6), "BGR"

    def __call__(self, inputs: list[dict[str, torch.Tensor]]) -> list[dict[str, Instances]]:
        boxes, scores, classes = self.table.split((4, 1, 1), dim=1)
        fields = {"pred_boxes": Boxes(boxes), "scores": scores[:, 0]}
        return [{"instances": Instances((99, 99), **fields, pred_classes=classes[:, 0])}] * len(
            inputs
        )


ONE, OTHER = (10.0, 10, 30, 30, 0.9, 0), (50.0, 10, 90, 30, 0.6, 1)


@pytest.mark.parametrize(
    ("exported", "detections", "same"),
    [
        ([(50, 10, 90, 30.05, 0.60005, 1), ONE], 4, 4),
        ([ONE], 3, 2),
        ([ONE, OTHER, (10, 60, 30, 90, 0.1, 0)], 5, 4),
        ([ONE, (50, 10, 90, 30.2, 0.6, 1)], 4, 2),
        ([ONE, (50, 10, 90, 30, 0.6003, 1)], 4, 2),
        ([ONE, (50, 10, 90, 30, 0.6, 0)], 4, 2),
        ([], 2, 0),
    ],
    ids=["rounding and order", "missing", "extra", "box", "score", "class", "none"],
)
def test_float32(exported: list, detections: int, same: int) -> None:
    images = torch.zeros(1, 3, 9, 9)
    result = compare(Model(*exported), Model(ONE, OTHER), TOLERANCES["float32"], [images] * 2)
    assert (result.images, result.detections, result.same) == (2, 2 * detections, 2 * same)


def test_half_precision_compares_confident_detections() -> None:
    rows = (50.0, 11, 89, 30, 0.55, 1), (10.0, 10, 30, 25, 0.9, 0), (0.0, 0, 9, 9, 0.29, 0)
    images = [torch.zeros(1, 3, 9, 9)]
    result = compare(Model(*rows), Model(ONE, OTHER), TOLERANCES["float16"], images)
    assert (result.detections, result.same, result.share) == (4, 2, 0.5)


def test_batches_of_1_and_4_in_5_sizes() -> None:
    image = torch.arange(256).byte().expand(3, 100, 256)
    shapes = [x.shape for x in batches([image] * 3)]
    assert sorted({shape[0] for shape in shapes}) == [1, 4] and len(shapes) == 10
    assert len({shape[2:] for shape in shapes}) == 5
    assert torch.equal(next(batches([image])), image[None])
