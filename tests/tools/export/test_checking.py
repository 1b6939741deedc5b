"""What counts as the same detections."""

import numpy as np
import pytest
from retinanet_plugin.tools.export.command.checking import Comparison, batches

from retinanet_plugin.runtimes.exported_files import Detections


def detections(*rows: tuple[float, ...]) -> Detections:
    """Rows of x1, y1, x2, y2, score and class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    boxes, scores = table[:, :4].astype(np.float32), table[:, 4].astype(np.float32)
    return Detections(boxes, scores, table[:, 5].astype(np.int64))


ONE = (10, 10, 30, 30, 0.9, 0)
OTHER = (50, 10, 90, 30, 0.6, 1)


def compared(
    found: Detections, expected: Detections, candidates: Detections, most: int = 100
) -> Comparison:
    comparison = Comparison(0.05, 0.5, most)
    comparison.add(found, expected, "a picture", lambda: candidates)
    return comparison


def test_small_differences_and_the_order_of_equal_scores_are_none() -> None:
    expected = detections(ONE, (50, 60, 90, 80, 0.9, 0), OTHER)
    found = detections((50, 60, 90, 80.05, 0.90005, 0), ONE, OTHER)
    result = compared(found, expected, detections())
    assert (result.missed, result.at_edge) == ([], 0)
    assert result.box == pytest.approx(0.05, abs=1e-4)
    assert result.score == pytest.approx(5e-5, abs=1e-6)
    assert result.agreement == 1 and result.confident == 6


@pytest.mark.parametrize(
    "found",
    [
        detections(ONE),
        detections(ONE, OTHER, (10, 60, 30, 90, 0.5, 0)),
        detections(ONE, (50, 10, 90, 30.2, 0.6, 1)),
        detections(ONE, (50, 10, 90, 30, 0.6003, 1)),
        detections(ONE, (50, 10, 90, 30, 0.6, 0)),
        detections(ONE, ONE, OTHER),
    ],
)
def test_a_box_a_score_a_class_or_a_number_that_differs(found: Detections) -> None:
    expected = detections(ONE, OTHER)
    candidates = detections(ONE, OTHER, (12, 12, 30, 30, 0.7, 0), (10, 60, 30, 90, 0.5, 0))
    result = compared(found, expected, candidates)
    assert len(result.missed) == 1


AT_THRESHOLD = (10, 60, 30, 90, 0.05003, 0)
LAST = (10, 60, 30, 90, 0.6, 0)
HALF = (10, 10, 30, 20, 0.4, 0)  # an IoU of 0.5 with the first
TWIN, NEIGHBOUR = (10, 16, 30, 36, 0.9, 0), (10, 22, 30, 42, 0.4, 0)  # the latter overlaps TWIN


@pytest.mark.parametrize(
    ("found", "expected", "most", "at_edge"),
    [
        (detections(ONE, AT_THRESHOLD), detections(ONE), 100, 1),
        (detections(ONE, OTHER), detections(ONE, LAST), 2, 2),
        (detections(ONE, HALF), detections(ONE), 100, 1),
        (detections(ONE, NEIGHBOUR), detections(TWIN), 100, 3),
    ],
    ids=["score at the threshold", "the last", "IoU at the threshold", "equal scores"],
)
def test_what_the_last_bits_decide_is_no_difference_if_it_is_a_candidate(
    found: Detections, expected: Detections, most: int, at_edge: int
) -> None:
    candidates = detections(ONE, OTHER, AT_THRESHOLD, LAST, HALF, TWIN, NEIGHBOUR)
    for one, other in ((found, expected), (expected, found)):
        result = compared(one, other, candidates, most)
        assert (result.missed, result.at_edge) == ([], at_edge)
    assert compared(found, expected, expected, most).missed


def test_batches_of_1_and_4_at_5_sizes() -> None:
    given = list(batches([np.zeros((100, 120, 3), np.uint8)] * 3))
    shapes = [pictures.shape for _, pictures in given]
    assert sorted({shape[0] for shape in shapes}) == [1, 4] and len(shapes) == 10
    assert len({shape[1:] for shape in shapes}) == 5 and shapes[0] == (1, 100, 120, 3)
    assert min(min(x.shape[1:3]) for _, x in batches([given[0][1][0]], 90)) == 90
