from collections import Counter

import numpy as np
import pytest
from coco_detections import coco_eval, random_set
from pycocotools import mask

from retinanet_plugin.evaluation.matches import (
    accuracy,
    best_threshold,
    confusion,
    threshold_curves,
)
from retinanet_plugin.evaluation.matching import match

SEEDS = pytest.mark.parametrize("seed", range(6))


@SEEDS
def test_ap_is_the_summary_of_pycocotools(seed: int) -> None:
    coco, results = random_set(seed)
    of_all, _ = accuracy(match(coco, results))
    stats = [None if s < 0 else float(s * 100) for s in coco_eval(coco, results).stats[:6]]
    assert stats == [
        *(of_all.ap, of_all.ap50, of_all.ap75),
        *(of_all.ap_small, of_all.ap_medium, of_all.ap_large),
    ]


def test_ap_is_the_mean_of_the_curve_and_not_defined_for_a_class_without_boxes() -> None:
    of_all, classes = accuracy(match(*random_set(1)))
    assert classes[-1].ap is None and classes[-1].boxes == 0 and not classes[-1].curves
    known = [c for c in (of_all, *classes) if c.ap is not None]
    assert len(known) == 4
    for c in known:
        means = {iou: 100 * np.mean(curve) for iou, curve in c.curves.items()}
        wanted = {"0.50": c.ap50, "0.75": c.ap75, "0.50:0.95": c.ap}
        assert means == pytest.approx(wanted, abs=1e-3)


def test_without_detections_ap_is_not_defined_but_boxes_are_counted() -> None:
    coco, _ = random_set(1)
    matches = match(coco, [])
    of_all, classes = accuracy(matches)
    boxes = sum(not a["iscrowd"] for a in coco["annotations"])
    assert (of_all.ap, of_all.boxes, of_all.curves) == (None, boxes, {})
    assert sum(c.boxes for c in classes) == boxes
    curves = threshold_curves(matches)
    assert curves.all.best is None and best_threshold(curves) == 0.5
    assert set(curves.all.recall) == {0.0} and set(curves.all.precision) == {None}
    assert sum(count for _, _, count in confusion(matches, 0.5).counts) == boxes


def _judged(coco: dict, results: list) -> list[tuple[int, float, bool]]:
    """Class, score and rightness of each detection that COCOeval judges at IoU 0.5."""
    entries = [e for e in coco_eval(coco, results).evalImgs if e and e["aRng"][1] > 1e9]
    return [
        (e["category_id"], score, bool(match))
        for e in entries
        if e["aRng"][0] == 0
        for score, match, ignored in zip(
            e["dtScores"], e["dtMatches"][0], e["dtIgnore"][0], strict=True
        )
        if not ignored
    ]


@SEEDS
def test_threshold_curves_count_the_matches_of_pycocotools(seed: int) -> None:
    coco, results = random_set(seed)
    judged = _judged(coco, results)
    curves = threshold_curves(match(coco, results))
    for class_id, curve in zip((1, 3, 5, 7), curves.classes, strict=True):
        boxes = sum(a["category_id"] == class_id and not a["iscrowd"] for a in coco["annotations"])
        for i, threshold in enumerate(curves.scores):
            shown = [right for k, score, right in judged if k == class_id and score >= threshold]
            tp = sum(shown)
            assert (curve.true_positives[i], curve.detections[i]) == (tp, len(shown))
            precision = tp / len(shown) if shown else None
            recall = tp / boxes if boxes else None
            assert curve.precision[i] == pytest.approx(precision, abs=1e-5)
            assert curve.recall[i] == pytest.approx(recall, abs=1e-5)
            if precision and recall:
                f1 = 2 * precision * recall / (precision + recall)
                assert curve.f1[i] == pytest.approx(f1, abs=1e-5)
    best = curves.all.best
    assert best is not None
    assert curves.all.f1[best] == max(curves.all.f1)
    assert (
        curves.all.true_positives
        == np.sum([c.true_positives for c in curves.classes], axis=0).tolist()
    )


@SEEDS
@pytest.mark.parametrize("threshold", [0.1, 0.52, 0.8])
def test_confusion_agrees_with_the_matches_of_ap(seed: int, threshold: float) -> None:
    coco, results = random_set(seed)
    matrix = np.zeros((5, 5), int)
    for row, column, count in confusion(match(coco, results), threshold).counts:
        matrix[row, column] = count
    shown = [(k, right) for k, score, right in _judged(coco, results) if score >= threshold]
    right, detected = Counter(k for k, right in shown if right), Counter(k for k, _ in shown)
    boxes = Counter(a["category_id"] for a in coco["annotations"] if not a["iscrowd"])
    for i, class_id in enumerate((1, 3, 5, 7)):
        assert matrix[i, i] == right[class_id]
        assert matrix[i].sum() == boxes[class_id]
        assert matrix[:, i].sum() == detected[class_id]
    assert matrix[4, 4] == 0


def _confusion(boxes: list, detections: list, threshold: float = 0.5) -> set:
    """Of class and x of boxes 10 wide, and class, x and score of detections, in one picture."""
    coco = {
        "images": [{"id": 1}],
        "categories": [{"id": k, "name": str(k)} for k in range(3)],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": k,
                "bbox": [x, 0, 10, 10],
                "area": 100,
                "iscrowd": crowd,
            }
            for i, (k, x, crowd) in enumerate(boxes, start=1)
        ],
    }
    results = [
        {"image_id": 1, "category_id": k, "bbox": [x, 0, 10, 10], "score": score}
        for k, x, score in detections
    ]
    return set(confusion(match(coco, results), threshold).counts)


def test_what_its_class_leaves_is_matched_over_the_classes() -> None:
    # The first is found by its class, though another class fits it better and scores higher.
    boxes = [(0, 0, 0), (1, 100, 0), (1, 200, 0)]
    detections = [(2, 0, 0.9), (0, 1, 0.6), (2, 100, 0.8), (0, 101, 0.7), (0, 400, 0.55)]
    assert _confusion(boxes, detections) == {
        (0, 0, 1),
        (1, 2, 1),  # the higher of two
        (1, 3, 1),  # missed
        (3, 2, 1),
        (3, 0, 2),
    }
    # Above the score of its own class the other is what it is taken for.
    assert _confusion(boxes, detections, 0.65) == {(0, 2, 1), (1, 2, 1), (1, 3, 1), (3, 0, 1)}


def test_over_the_classes_the_nearest_box_is_taken_and_crowds_are_not() -> None:
    boxes = [(0, 0, 0), (1, 3, 0), (1, 50, 1)]
    assert _confusion(boxes, [(2, 2, 0.9)]) == {(1, 2, 1), (0, 3, 1)}
    assert _confusion(boxes, [(2, 50, 0.9)]) == {(3, 2, 1), (0, 3, 1), (1, 3, 1)}
    assert _confusion(boxes, [(1, 50, 0.9)]) == {(0, 3, 1), (1, 3, 1)}


def test_iou_of_a_half_is_enough() -> None:
    assert mask.iou([[5, 0, 10, 10]], [[0, 0, 15, 10]], [0])[0, 0] > 0.5
    assert _confusion([(0, 0, 0)], [(1, 3, 0.9)]) == {(0, 1, 1)}
    assert _confusion([(0, 0, 0)], [(1, 4, 0.9)]) == {(0, 3, 1), (3, 1, 1)}  # 6 / 14
