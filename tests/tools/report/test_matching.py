import numpy as np
import pytest
from coco_detections import coco_eval, random_set

from retinanet_plugin.evaluation.matching import IOUS, match, precisions


@pytest.mark.parametrize("seed", range(25))
def test_precisions_are_those_of_pycocotools(seed: int) -> None:
    coco, results = random_set(seed)
    expected = coco_eval(coco, results).eval["precision"][..., -1]
    assert np.array_equal(precisions(match(coco, results)), expected)


@pytest.mark.parametrize("seed", range(25, 35))
def test_matches_are_those_of_pycocotools(seed: int) -> None:
    coco, results = random_set(seed)
    matches = match(coco, results)
    evaluation = coco_eval(coco, results)
    ids = [a["id"] for a in coco["annotations"]]  # by picture, as rows are
    found = {}
    for entry in filter(None, evaluation.evalImgs):
        area = evaluation.params.areaRng.index(entry["aRng"])
        of_pair = (matches.detections.image == matches.image_ids.index(entry["image_id"])) & (
            matches.detections.label == matches.class_ids.index(entry["category_id"])
        )
        rows = np.flatnonzero(of_pair)
        assert matches.detections.score[rows].tolist() == entry["dtScores"]
        for t in range(len(IOUS)):
            truth = matches.truth[area, t, rows]
            found[area, t, entry["image_id"], entry["category_id"]] = truth
            assert [ids[m] if m >= 0 else 0 for m in truth] == entry["dtMatches"][t].tolist()
            assert np.array_equal(matches.ignored[area, t, rows], entry["dtIgnore"][t])
    assert any((truth >= 0).any() for truth in found.values())


def test_of_more_than_a_hundred_of_a_class_in_a_picture_the_highest_count() -> None:
    coco, results = random_set(1, num_images=3, num_classes=1, detections=400)
    matches = match(coco, results)
    assert len(matches.detections) < len(results)
    assert np.array_equal(precisions(matches), coco_eval(coco, results).eval["precision"][..., -1])


def test_an_id_of_0_is_no_match_as_in_pycocotools() -> None:
    coco, _ = random_set(2, crowds=0)
    for annotation in coco["annotations"]:
        annotation["id"] -= 1
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for a in coco["annotations"]
    ]
    matches = match(coco, results)
    assert np.count_nonzero(matches.truth[0, 0] < 0) == 1
    assert np.array_equal(precisions(matches), coco_eval(coco, results).eval["precision"][..., -1])


def test_without_detections_or_boxes_nothing_is_matched() -> None:
    coco, results = random_set(3)
    assert match(coco, []).truth.shape == (4, 10, 0)
    empty = match({**coco, "annotations": []}, results)
    assert (empty.truth == -1).all()
    assert (precisions(empty) == -1).all()


@pytest.mark.parametrize("threshold", [0.3, 0.52, 0.95])
def test_low_scores_take_nothing_from_high_ones(threshold: float) -> None:
    coco, results = random_set(4, num_images=12)
    above = match(coco, results).above(threshold)
    alone = match(coco, [r for r in results if r["score"] >= threshold])
    assert np.array_equal(above.truth, alone.truth)
    assert np.array_equal(above.ignored, alone.ignored)
    assert np.array_equal(above.overlaps.detection, alone.overlaps.detection)
    assert np.array_equal(above.detections.box, alone.detections.box)
