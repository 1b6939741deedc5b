from collections import Counter
from typing import Any

import numpy as np
import pytest
from coco_detections import Coco, Results, coco_eval, random_set
from pycocotools import mask
from retinanet_plugin.tools.report.command.error_kinds import KINDS, NAMES, errors, kinds_of

from retinanet_plugin.evaluation.matching import match

CAT, DOG, BIRD = 1, 2, 3


def _picture(*boxes: tuple[int, int]) -> Coco:
    """One picture with boxes of a class, 10 wide and high, at x."""
    return {
        "images": [{"id": 1, "file_name": "1.png"}],
        "categories": [{"id": k, "name": n} for k, n in ((CAT, "cat"), (DOG, "dog"), (BIRD, "b"))],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": k,
                "bbox": [x, 0, 10, 10],
                "area": 100,
                "iscrowd": 0,
            }
            for i, (k, x) in enumerate(boxes, start=1)
        ],
    }


def _detections(*given: tuple[int, float, float]) -> Results:
    """Class, x and score."""
    return [
        {"image_id": 1, "category_id": k, "bbox": [x, 0, 10, 10], "score": score}
        for k, x, score in given
    ]


@pytest.mark.parametrize(
    ("kind", "detection"),
    [
        ("right", (CAT, 1)),  # IoU 9 / 11
        ("place", (CAT, 5)),  # 5 / 15
        ("place", (CAT, 8)),  # 2 / 18
        ("background", (CAT, 9)),  # 1 / 19
        ("class", (DOG, 1)),
        ("both", (DOG, 5)),
        ("background", (DOG, 9)),
        ("background", (CAT, 50)),
        ("class", (CAT, 101)),
        ("duplicate", (DOG, 101)),
    ],
)
def test_each_kind(kind: str, detection: tuple[int, float]) -> None:
    matches = match(_picture((CAT, 0), (DOG, 100)), _detections((*detection, 0.5), (DOG, 100, 0.9)))
    found = kinds_of(matches)
    row = matches.detections.score.tolist().index(0.5)
    assert NAMES[found.detection[row]] == kind
    finds_cat = kind in ("right", "place") or (kind, detection[0]) == ("class", DOG)
    assert found.missed.sum() == (0 if finds_cat else 1)


def test_an_iou_of_a_half_is_enough_to_find_a_box() -> None:
    half = _detections((CAT, 0, 0.9), (CAT, 0, 0.8))
    for detection in half:
        detection["bbox"] = [0, 0, 10, 20]
    found = kinds_of(match(_picture((CAT, 0)), half))
    assert [NAMES[i] for i in found.detection] == ["right", "duplicate"]


def test_detections_in_crowds_are_no_errors_and_crowds_no_boxes() -> None:
    coco = _picture((CAT, 0))
    coco["annotations"][0]["iscrowd"] = 1
    found = kinds_of(match(coco, _detections((CAT, 0, 0.9), (DOG, 0, 0.8))))
    assert [NAMES[i] for i in found.detection] == ["ignored", "background"]
    assert not found.missed.any()


def test_of_those_that_would_find_the_same_box_the_highest_score_is_mended() -> None:
    coco = _picture((CAT, 0))
    matches = match(coco, _detections((DOG, 0, 0.6), (DOG, 1, 0.9), (BIRD, 1, 0.7), (CAT, 5, 0.1)))
    by_score = dict(zip(matches.detections.score, kinds_of(matches).mends, strict=True))
    assert by_score == {0.6: -1, 0.9: 0, 0.7: -1, 0.1: 0}  # class and place each on their own


def _iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    return float(mask.iou([a["bbox"]], [b["bbox"]], [0])[0, 0])


def _brute_force(coco: Coco, results: Results) -> tuple[dict[str, list[int]], dict[int, int]]:
    """By kind the indices of results, falling in score, and of annotations for "missed".

    And of those that can be mended, the annotation that they find then.
    """
    results = sorted(results, key=lambda r: -r["score"])
    evaluation = coco_eval(coco, results)
    state = {}
    for entry in evaluation.evalImgs:
        if entry and entry["aRng"] == evaluation.params.areaRng[0]:
            for i, m, ignored in zip(
                entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
            ):
                state[i - 1] = "ignored" if ignored else int(m) or "wrong"
    boxes = [(i, a) for i, a in enumerate(coco["annotations"]) if not a["iscrowd"]]
    lost = {i for i, a in boxes if a["id"] not in state.values()}
    kinds: dict[str, list[int]] = {kind: [] for kind in KINDS}
    mends: dict[tuple[str, int], int] = {}
    for n, r in enumerate(results):
        if state[n] != "wrong":
            continue
        near = [(_iou(r, a), i, a) for i, a in boxes if a["image_id"] == r["image_id"]]
        own = max(
            ((iou, i) for iou, i, a in near if a["category_id"] == r["category_id"]),
            default=(0, -1),
        )
        other = max(
            ((iou, i) for iou, i, a in near if a["category_id"] != r["category_id"]),
            default=(0, -1),
        )
        if 0.1 <= own[0] < 0.5:
            kind, target = "place", own[1]
        elif other[0] >= 0.5:
            kind, target = "class", other[1]
        elif own[0] >= 0.5:
            kind, target = "duplicate", -1
        else:
            kind, target = ("both" if other[0] >= 0.1 else "background"), -1
        kinds[kind].append(n)
        if target in lost:
            mends.setdefault((kind, target), n)
    kinds["missed"] = sorted(lost - {target for _, target in mends})
    return kinds, {n: target for (_, target), n in mends.items()}


@pytest.mark.parametrize("seed", range(8))
def test_gains_are_those_of_pycocotools_on_mended_detections(seed: int) -> None:
    """What is said to be gained comes out where the detections and boxes are really mended."""
    coco, results = random_set(seed, num_images=10, crowds=0, ties=False)
    results = sorted(results, key=lambda r: -r["score"])
    kinds, mends = _brute_force(coco, results)
    found = errors(match(coco, results), 0.5)
    before = 100 * coco_eval(coco, results).stats[1]
    assert found.ap50 == pytest.approx(before)
    for entry in found.kinds:
        assert entry.count == len(kinds[entry.kind])
        fixed_results, fixed_coco = [], coco
        for n, r in enumerate(results):
            if entry.kind == "missed" or n not in kinds[entry.kind]:
                fixed_results.append(r)
            elif n in mends:
                a = coco["annotations"][mends[n]]
                new = {"category_id": a["category_id"]}
                fixed_results.append(
                    {**r, **(new if entry.kind == "class" else {"bbox": a["bbox"]})}
                )
        if entry.kind == "missed":
            left = [a for i, a in enumerate(coco["annotations"]) if i not in kinds["missed"]]
            fixed_coco = {**coco, "annotations": left}
        after = 100 * coco_eval(fixed_coco, fixed_results).stats[1]
        assert entry.d_ap50 == pytest.approx(after - before, abs=1e-6), entry.kind
        known = [gain for gain in entry.d_ap50_by_class if gain is not None]
        assert np.mean(known) == pytest.approx(entry.d_ap50, abs=1e-3)
    right = [r for n, r in enumerate(results) if not any(n in kinds[k] for k in KINDS[:-1])]
    only_right = 100 * coco_eval(coco, right).stats[1]
    assert found.d_ap50_false_positives == pytest.approx(only_right - before)


@pytest.mark.parametrize("seed", range(8, 12))
def test_counts_with_crowds_are_those_of_brute_force(seed: int) -> None:
    coco, results = random_set(seed, num_images=10)
    kinds, _ = _brute_force(coco, results)
    found = errors(match(coco, results), 0.52)
    assert {k.kind: k.count for k in found.kinds} == {k: len(kinds[k]) for k in KINDS}
    shown = [r for r in results if r["score"] >= 0.52]
    kinds, _ = _brute_force(coco, shown)
    assert {k.kind: k.count_at_threshold for k in found.kinds} == {k: len(kinds[k]) for k in KINDS}
    ranked = sorted(shown, key=lambda r: -r["score"])
    for entry in found.kinds:
        rows = coco["annotations"] if entry.kind == "missed" else ranked
        by_class = Counter(rows[i]["category_id"] for i in kinds[entry.kind])
        numbers = [by_class[row["id"]] for row in coco["categories"]]
        assert entry.count_by_class == numbers, entry.kind


def test_without_detections_all_is_missed() -> None:
    found = errors(match(_picture((CAT, 0), (DOG, 100)), []), 0.5)
    gains = {k.kind: k.d_ap50 for k in found.kinds}
    assert found.ap50 == 0
    assert gains == {**dict.fromkeys(KINDS, 0.0), "missed": 100.0}
    assert found.kinds[-1].d_ap50_by_class == [100, 100, None]
    assert found.d_ap50_false_negatives == 100


def test_a_class_whose_boxes_were_all_missed_is_not_perfect_while_others_are_taken_for_it() -> None:
    found = errors(match(_picture((CAT, 0)), _detections((CAT, 50, 0.9))), 0.5)
    assert found.kinds[-1].d_ap50 == 0


def test_without_boxes_there_is_nothing_to_gain() -> None:
    found = errors(match(_picture(), _detections((CAT, 0, 0.9))), 0.5)
    assert found.ap50 is None
    assert {k.d_ap50 for k in found.kinds} == {None}
    assert sum(k.count for k in found.kinds) == 1
