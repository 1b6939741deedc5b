"""The kinds of errors, and that AP50 gains what is said if they are really fixed."""

from typing import Any

import pytest
from coco_detections import (
    Coco,
    Results,
    brute_force_matches,
    coco_eval,
    detections_of,
    one_image,
    random_set,
)
from pycocotools import mask

from retinanet_plugin.evaluation.matching import match
from retinanet_plugin.tools.report.error_kinds import KINDS, NAMES, errors, fixes_of, kinds_of

CAT, DOG, BIRD = 1, 2, 3


@pytest.mark.parametrize(
    ("kind", "detection"),
    [
        ("right", (CAT, 1)),  # IoU 9 / 11
        ("fit", (CAT, 5)),  # 5 / 15
        ("fit", (CAT, 8)),  # 2 / 18
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
    coco = one_image([(CAT, 0), (DOG, 100)])
    matches = match(coco, detections_of((*detection, 0.5), (DOG, 100, 0.9)))
    kinds = kinds_of(matches)
    assert NAMES[kinds[matches.detections.score.tolist().index(0.5)]] == kind
    finds_cat = kind in ("right", "fit") or (kind, detection[0]) == ("class", DOG)
    _, missed = fixes_of(matches, kinds, 0)
    assert missed.sum() == (0 if finds_cat else 1)


def test_an_iou_of_a_half_finds_a_box() -> None:
    half = detections_of((CAT, 0, 0.9), (CAT, 0, 0.8))
    for detection in half:
        detection["bbox"] = [0, 0, 10, 20]
    kinds = kinds_of(match(one_image([(CAT, 0)]), half))
    assert [NAMES[i] for i in kinds] == ["right", "duplicate"]


def _iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    return float(mask.iou([a["bbox"]], [b["bbox"]], [0])[0, 0])


def _brute_force(coco: Coco, results: Results) -> tuple[dict[str, list[int]], dict[int, int]]:
    """By kind the indices of results, which fall in score, and of annotations for "missed".

    And of those that can be fixed, the annotation that they find then.
    """
    matches = brute_force_matches(coco, results)
    boxes = [(i, a) for i, a in enumerate(coco["annotations"]) if not a["iscrowd"]]
    lost = {i for i, _ in boxes if i not in matches}
    kinds: dict[str, list[int]] = {kind: [] for kind in KINDS}
    fixes: dict[tuple[str, int], int] = {}
    for n, r in enumerate(results):
        if matches[n] != -1:
            continue
        near = [(_iou(r, a), i, a) for i, a in boxes if a["image_id"] == r["image_id"]]
        own, other = (
            max(
                ((iou, i) for iou, i, a in near if (a["category_id"] == r["category_id"]) is same),
                default=(0, -1),
            )
            for same in (True, False)
        )
        if 0.1 <= own[0] < 0.5:
            kind, target = "fit", own[1]
        elif other[0] >= 0.5:
            kind, target = "class", other[1]
        elif own[0] >= 0.5:
            kind, target = "duplicate", -1
        else:
            kind, target = ("both" if other[0] >= 0.1 else "background"), -1
        kinds[kind].append(n)
        if target in lost:
            fixes.setdefault((kind, target), n)
    kinds["missed"] = sorted(lost - {target for _, target in fixes})
    return kinds, {n: target for (_, target), n in fixes.items()}


@pytest.mark.parametrize("seed", range(6))
def test_gains_are_those_of_pycocotools_on_fixed_detections(seed: int) -> None:
    coco, results = random_set(seed, num_images=10, crowds=0, ties=False)
    results = sorted(results, key=lambda r: -r["score"])
    kinds, fixes = _brute_force(coco, results)
    found = errors(match(coco, results), 0)
    before = 100 * coco_eval(coco, results).stats[1]
    assert found.ap50 == pytest.approx(before)
    for kind in KINDS:
        fixed_results, fixed_coco = [], coco
        for n, r in enumerate(results):
            if kind == "missed" or n not in kinds[kind]:
                fixed_results.append(r)
            elif n in fixes:
                a = coco["annotations"][fixes[n]]
                key = "category_id" if kind == "class" else "bbox"
                fixed_results.append({**r, key: a[key]})
        if kind == "missed":
            left = [a for i, a in enumerate(coco["annotations"]) if i not in kinds["missed"]]
            fixed_coco = {**coco, "annotations": left}
        after = 100 * coco_eval(fixed_coco, fixed_results).stats[1]
        assert found.gains[kind] == pytest.approx(after - before, abs=1e-6), kind
        assert sum(found.counts[kind]) == len(kinds[kind])
    right = [r for n, r in enumerate(results) if not any(n in kinds[k] for k in KINDS[:-1])]
    only_right = 100 * coco_eval(coco, right).stats[1]
    assert found.gains["false positives"] == pytest.approx(only_right - before)


@pytest.mark.parametrize("threshold", [0, 0.52])
@pytest.mark.parametrize("seed", range(8, 12))
def test_counts_with_crowds_are_those_of_brute_force(seed: int, threshold: float) -> None:
    coco, results = random_set(seed, num_images=10)
    shown = sorted((r for r in results if r["score"] >= threshold), key=lambda r: -r["score"])
    kinds, _ = _brute_force(coco, shown)
    for kind, counts in errors(match(coco, results), threshold).counts.items():
        rows = coco["annotations"] if kind == "missed" else shown
        class_ids = [rows[i]["category_id"] for i in kinds[kind]]
        assert counts == [class_ids.count(row["id"]) for row in coco["categories"]], kind


@pytest.mark.parametrize(
    ("boxes", "detections", "ap50", "gains"),
    [
        ([(CAT, 0), (DOG, 100)], [], 0, {"missed": 100, "false negatives": 100}),
        # All boxes of a class are missed, but it is not perfect as others are taken for it.
        ([(CAT, 0)], [(CAT, 50, 0.9)], 0, {}),
        ([], [(CAT, 0, 0.9)], None, {}),
    ],
)
def test_gains_where_nothing_is_right(
    boxes: list, detections: list, ap50: float | None, gains: dict[str, float]
) -> None:
    found = errors(match(one_image(boxes), detections_of(*detections)), 0.5)
    assert found.ap50 == ap50
    assert {kind: gain for kind, gain in found.gains.items() if gain} == gains
    assert sum(found.counts["missed"]) == len(boxes)
    assert sum(found.counts["background"]) == len(detections)
