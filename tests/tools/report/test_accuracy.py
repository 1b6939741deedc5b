"""Matches, AP, precision and recall by score, and confusion, against other computations."""

from collections import Counter

import numpy as np
import pytest
from coco_detections import brute_force_matches, coco_eval, detections_of, one_image, random_set

from retinanet_plugin.evaluation.matching import match
from retinanet_plugin.tools.report.accuracy import SCORES, accuracies, confusion, score_counts

SEEDS = pytest.mark.parametrize("seed", range(6))
CLASS_IDS = (1, 3, 5, 7)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def judged(coco: dict, results: list) -> list[tuple[int, float, bool]]:
    """Class, score and rightness of each detection that is not in a crowd at IoU 0.5."""
    pairs = zip(results, brute_force_matches(coco, results), strict=True)
    return [(r["category_id"], r["score"], i >= 0) for r, i in pairs if i is not None]


@SEEDS
def test_ap_is_the_summary_of_pycocotools(seed: int) -> None:
    coco, results = random_set(seed)
    *classes, mean = accuracies(match(coco, results))
    stats = [None if s < 0 else float(s * 100) for s in coco_eval(coco, results).stats[:6]]
    assert list(mean.metrics.items()) == list(zip(METRICS, stats, strict=True))
    for class_id, accuracy in zip(CLASS_IDS, classes, strict=True):
        boxes = [
            a["area"]
            for a in coco["annotations"]
            if a["category_id"] == class_id and not a["iscrowd"]
        ]
        sizes = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]
        assert accuracy.boxes == [sum(a <= x <= b for x in boxes) for a, b in sizes]
        ap50 = accuracy.metrics["AP50"]
        assert (ap50 is None) == (not boxes) == (accuracy.curve is None)
        if accuracy.curve is not None:
            assert 100 * accuracy.curve.mean() == pytest.approx(ap50)


def test_more_than_100_detections_and_an_id_of_0_count_as_in_pycocotools() -> None:
    coco, results = random_set(1, num_images=3, num_classes=1, detections=400)
    for annotation in coco["annotations"]:
        annotation["id"] -= 1
    matches = match(coco, results)
    assert len(matches.detections.score) < len(results)
    ap = accuracies(matches)[-1].metrics["AP"]
    assert ap == float(100 * coco_eval(coco, results).stats[0])
    matches = match(one_image([(1, 0)]), detections_of((1, 0, 0.9)))
    assert matches.detections.truth.tolist() == [0]
    coco = one_image([(1, 0)])
    coco["annotations"][0]["id"] = 0
    assert match(coco, detections_of((1, 0, 0.9))).detections.truth.tolist() == [-1]


def test_without_detections_ap_is_not_defined_but_boxes_are_counted() -> None:
    coco, results = random_set(1)
    matches = match(coco, [])
    boxes = sum(not a["iscrowd"] for a in coco["annotations"])
    *classes, mean = accuracies(matches)
    assert (set(mean.metrics.values()), mean.boxes[0], mean.curve) == ({None}, boxes, None)
    assert sum(c.boxes[0] for c in classes) == boxes
    counts = score_counts(matches)
    assert counts.best_score == 0.5
    assert (counts.recall[-1] == 0).all() and np.isnan(counts.precision).all()
    assert confusion(matches, 0.5).sum() == boxes
    empty = match({**coco, "annotations": []}, results)
    assert (empty.detections.truth == -1).all() and accuracies(empty)[-1].metrics["AP"] is None


@SEEDS
def test_score_counts_are_those_of_brute_force(seed: int) -> None:
    coco, results = random_set(seed)
    every = judged(coco, results)
    counts = score_counts(match(coco, results))
    boxes = Counter(a["category_id"] for a in coco["annotations"] if not a["iscrowd"])
    for row, class_ids in enumerate([*([k] for k in CLASS_IDS), CLASS_IDS]):
        total = sum(boxes[k] for k in class_ids)
        assert counts.boxes[row] == total
        for i, threshold in enumerate(SCORES):
            shown = [right for k, score, right in every if k in class_ids and score >= threshold]
            assert (counts.right[row, i], counts.detections[row, i]) == (sum(shown), len(shown))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = counts.right / counts.detections, counts.right / counts.boxes[:, None]
        f1 = 2 / (1 / precision + 1 / recall)
    np.testing.assert_array_equal(counts.precision, precision)
    np.testing.assert_array_equal(counts.recall, recall)
    np.testing.assert_allclose(counts.f1[counts.right > 0], f1[counts.right > 0])
    assert counts.f1[-1][SCORES == counts.best_score] == counts.f1[-1].max()


@SEEDS
@pytest.mark.parametrize("threshold", [0.1, 0.52, 0.8])
def test_confusion_agrees_with_the_matches_of_ap(seed: int, threshold: float) -> None:
    coco, results = random_set(seed)
    matrix = confusion(match(coco, results), threshold)
    shown = [(k, right) for k, score, right in judged(coco, results) if score >= threshold]
    right, detected = Counter(k for k, right in shown if right), Counter(k for k, _ in shown)
    boxes = Counter(a["category_id"] for a in coco["annotations"] if not a["iscrowd"])
    for i, class_id in enumerate(CLASS_IDS):
        assert matrix[i, i] == right[class_id]
        assert matrix[i].sum() == boxes[class_id]
        assert matrix[:, i].sum() == detected[class_id]
    assert matrix[4, 4] == 0


# Boxes and detections of (class, x), as a row and a column of the confusion; class 3 is background.
@pytest.mark.parametrize(
    ("boxes", "detections", "expected"),
    [
        # The first is found by its class, though another class fits it better and scores higher.
        ([(1, 0)], [(3, 0, 0.9), (1, 1, 0.6)], {(0, 0): 1, (3, 2): 1}),
        # Below the threshold its class does not find it.
        ([(1, 0)], [(3, 0, 0.9), (1, 1, 0.4)], {(0, 2): 1}),
        # Of two other classes the higher score counts; a box without any is missed.
        ([(2, 0), (2, 50)], [(3, 0, 0.8), (1, 1, 0.7)], {(1, 2): 1, (3, 0): 1, (1, 3): 1}),
        # Of two boxes the nearer one.
        ([(1, 0), (2, 3)], [(3, 2, 0.9)], {(1, 2): 1, (0, 3): 1}),
        # IoU 7 / 13, and 6 / 14, which is less than 0.5.
        ([(1, 0)], [(2, 3, 0.9)], {(0, 1): 1}),
        ([(1, 0)], [(2, 4, 0.9)], {(0, 3): 1, (3, 1): 1}),
    ],
)
def test_what_is_left_is_matched_across_classes(
    boxes: list, detections: list, expected: dict[tuple[int, int], int]
) -> None:
    matrix = confusion(match(one_image(boxes), detections_of(*detections)), 0.5)
    assert {(i, k): matrix[i, k] for i, k in np.argwhere(matrix).tolist()} == expected
