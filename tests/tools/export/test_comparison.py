"""Which differences between detections count."""

import numpy as np
import pytest

from retinanet_plugin.runtimes.exported_files import Detections
from retinanet_plugin.tools.export.comparison import Comparison, batches


def detections(*rows: tuple[float, ...]) -> Detections:
    """Makes detections of rows of x1, y1, x2, y2, score and class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    boxes, scores = table[:, :4].astype(np.float32), table[:, 4].astype(np.float32)
    return Detections(boxes, scores, table[:, 5].astype(np.int64))


ONE = (10, 10, 30, 30, 0.9, 0)
OTHER = (50, 10, 90, 30, 0.6, 1)


def compared(
    exported: Detections, expected: Detections, candidates: Detections, most: int = 100
) -> Comparison:
    comparison = Comparison(0.05, 0.5, most)
    comparison.add(exported, expected, "an image", lambda: candidates)
    return comparison


def test_small_differences_and_the_order_of_equal_scores_do_not_count() -> None:
    expected = detections(ONE, (50, 60, 90, 80, 0.9, 0), OTHER)
    exported = detections((50, 60, 90, 80.05, 0.90005, 0), ONE, OTHER)
    result = compared(exported, expected, detections())
    assert (result.mismatches, result.at_edge) == ([], 0)
    assert result.box == pytest.approx(0.05, abs=1e-4)
    assert result.score == pytest.approx(5e-5, abs=1e-6)
    assert result.agreement == 1 and result.confident == 6


@pytest.mark.parametrize(
    "exported",
    [
        detections(ONE),
        detections(ONE, OTHER, (10, 60, 30, 90, 0.5, 0)),
        detections(ONE, (50, 10, 90, 30.2, 0.6, 1)),
        detections(ONE, (50, 10, 90, 30, 0.6003, 1)),
        detections(ONE, (50, 10, 90, 30, 0.6, 0)),
        detections(ONE, ONE, OTHER),
    ],
    ids=["missing", "extra", "box", "score", "class", "twice"],
)
def test_differences(exported: Detections) -> None:
    candidates = detections(ONE, OTHER, (12, 12, 30, 30, 0.7, 0), (10, 60, 30, 90, 0.5, 0))
    assert len(compared(exported, detections(ONE, OTHER), candidates).mismatches) == 1


AT_THRESHOLD = (10, 60, 30, 90, 0.05003, 0)
LAST = (10, 60, 30, 90, 0.6, 0)
HALF = (10, 10, 30, 20, 0.4, 0)  # IoU with ONE: 0.5
TWIN, NEIGHBOR = (10, 16, 30, 36, 0.9, 0), (10, 22, 30, 42, 0.4, 0)  # TWIN suppresses NEIGHBOR


@pytest.mark.parametrize(
    ("exported", "expected", "most", "at_edge"),
    [
        (detections(ONE, AT_THRESHOLD), detections(ONE), 100, 1),
        (detections(ONE, OTHER), detections(ONE, LAST), 2, 2),
        (detections(ONE, HALF), detections(ONE), 100, 1),
        (detections(ONE, NEIGHBOR), detections(TWIN), 100, 3),
    ],
    ids=["score at the threshold", "last of a full list", "IoU at the threshold", "equal scores"],
)
def test_what_rounding_decides_does_not_count_for_candidates_of_the_model(
    exported: Detections, expected: Detections, most: int, at_edge: int
) -> None:
    candidates = detections(ONE, OTHER, AT_THRESHOLD, LAST, HALF, TWIN, NEIGHBOR)
    for one, other in ((exported, expected), (expected, exported)):
        result = compared(one, other, candidates, most)
        assert (result.mismatches, result.at_edge) == ([], at_edge)
    assert compared(exported, expected, expected, most).mismatches


def test_batches_of_1_and_4_in_5_sizes() -> None:
    given = list(batches([np.zeros((100, 120, 3), np.uint8)] * 3))
    shapes = [images.shape for _, images in given]
    assert sorted({shape[0] for shape in shapes}) == [1, 4] and len(shapes) == 10
    assert len({shape[1:] for shape in shapes}) == 5 and shapes[0] == (1, 100, 120, 3)
    assert min(min(x.shape[1:3]) for _, x in batches([given[0][1][0]], 90)) == 90
