"""Random detections and ground truth with many ties, their evaluation and their matches."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SCORES = (0.1, 0.3, 0.5, 0.52, 0.7, 0.9)
Coco, Results = dict[str, Any], list[dict[str, Any]]


def random_set(
    seed: int,
    *,
    num_images: int = 6,
    num_classes: int = 3,
    detections: int = 14,
    crowds: float = 0.15,
    ties: bool = True,
) -> tuple[Coco, Results]:
    """Boxes of sizes on both sides of 32 and 96, with ``ties`` often with equal IoU and score.

    The last class has detections and no boxes, and the ids of images and classes have gaps.
    """
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 5, "file_name": f"{i}.png"} for i in range(num_images)]
    categories = [{"id": 2 * k + 1, "name": f"class {k}"} for k in range(num_classes + 1)]
    annotations, results = Results(), Results()
    for image in images:
        sizes = [8, 16, 32, 40, 96, 104]
        boxes = [
            [*map(int, (*rng.integers(0, 12, 2) * 8, *rng.choice(sizes, 2)))]
            for _ in range(rng.integers(0, 7))
        ]
        if not ties:
            boxes = [[x + float(rng.random()) for x in box] for box in boxes]
        for box in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 2 * int(rng.integers(num_classes)) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(rng.random() < crowds),
                }
            )
        for _ in range(rng.integers(0, detections + 1)):
            near = boxes and rng.random() < 0.8
            box = boxes[rng.integers(len(boxes))] if near else [0, 0, 32, 32]
            shift = rng.choice([0, 0, 4, 8, 24], 2)
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": categories[rng.integers(len(categories))]["id"],
                    "bbox": [float(v) for v in (box[0] + shift[0], box[1] + shift[1], *box[2:])],
                    "score": float(rng.choice(SCORES) if ties else rng.random()),
                }
            )
    return {"images": images, "categories": categories, "annotations": annotations}, results


def coco_eval(coco: Coco, results: Results) -> COCOeval:
    """After ``evaluate`` and ``accumulate``."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(coco)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def brute_force_matches(coco: Coco, results: Results) -> list[int | None]:
    """For each result the index of the box it finds at IoU 0.5, -1 for none; None in a crowd.

    A box comes before a crowd, then the largest IoU, then the last.
    """
    matches: list[int | None] = [-1] * len(results)
    for n in sorted(range(len(results)), key=lambda n: -results[n]["score"]):
        candidates = [
            (not a["iscrowd"], iou, i)
            for i, a in enumerate(coco["annotations"])
            if all(a[key] == results[n][key] for key in ("image_id", "category_id"))
            and (a["iscrowd"] or i not in matches)
            and (iou := mask.iou([results[n]["bbox"]], [a["bbox"]], [a["iscrowd"]])[0, 0]) >= 0.5
        ]
        if candidates:
            is_box, _, i = max(candidates)
            matches[n] = i if is_box else None
    return matches


def one_image(boxes: list[tuple[int, float]], crowds: tuple[int, ...] = ()) -> Coco:
    """An image with boxes of (class, x), 10 wide and high; classes are 1 to 3.

    Args:
        crowds: which of the boxes are crowds.
    """
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": k, "bbox": [x, 0, 10, 10], "area": 100}
        for i, (k, x) in enumerate(boxes)
    ]
    for i, annotation in enumerate(annotations):
        annotation["iscrowd"] = int(i in crowds)
    categories = [{"id": k, "name": str(k)} for k in (1, 2, 3)]
    return {"images": [{"id": 1}], "categories": categories, "annotations": annotations}


def detections_of(*detections: tuple[int, float, float]) -> Results:
    """Detections of (class, x, score) in the image of :func:`one_image`."""
    return [
        {"image_id": 1, "category_id": k, "bbox": [x, 0, 10, 10], "score": score}
        for k, x, score in detections
    ]
