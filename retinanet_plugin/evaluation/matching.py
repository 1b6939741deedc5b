"""COCOeval of all detections, and its matches at IoU 0.5 as flat arrays."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BACKGROUND_IOU = 0.1  # below it a detection has nothing to do with a box (TIDE, section 2.2)
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Truths:
    """The M ground-truth boxes, by image.

    Args:
        image, label: (M,) int64, indices of image and class.
        box: (M, 4) float64, x, y, width, height.
        crowd: (M,) bool, regions in which detections are not judged.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class Detections:
    """The N detections, by image, then class, then falling score: at most 100 per image and class.

    Args:
        image, label: (N,) int64, indices of image and class.
        box: (N, 4) float64, x, y, width, height.
        score: (N,) float64.
        truth: (N,) int64, row of the box matched at IoU 0.5, or -1; never a crowd.
        ignored: (N,) bool, in a crowd: neither right nor wrong.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    truth: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a detection and a box, not a crowd, of one image with an IoU of at least 0.1.

    Args:
        detection, truth: (P,) int64, their rows.
        iou: (P,) float64.
        same_class: (P,) bool.
    """

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    same_class: np.ndarray

    def where(self, kept: np.ndarray) -> "Overlaps":
        """The pairs that a (P,) bool keeps."""
        return Overlaps(*(column[kept] for column in vars(self).values()))


@dataclass(frozen=True)
class Matches:
    """Detections matched with ground truth.

    Args:
        evaluation: after ``evaluate`` and ``accumulate``.
        class_names: in the order of class ids, as all indices of classes.
    """

    evaluation: COCOeval
    class_names: list[str]
    truths: Truths
    detections: Detections

    @property
    def image_ids(self) -> list[Any]:
        """Ascending."""
        return list(self.evaluation.params.imgIds)

    @cached_property
    def num_boxes(self) -> np.ndarray:
        """(K,) int64: boxes of each class, without crowds."""
        labels = self.truths.label[~self.truths.crowd]
        return np.bincount(labels, minlength=len(self.class_names))

    @cached_property
    def overlaps(self) -> Overlaps:
        """All pairs, by detection."""
        truths, detections = self.truths, self.detections
        images = np.arange(len(self.image_ids) + 1)
        first_truth = np.searchsorted(truths.image, images)
        first_detection = np.searchsorted(detections.image, images)
        parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
        for i in images[:-1]:
            t = slice(first_truth[i], first_truth[i + 1])
            d = slice(first_detection[i], first_detection[i + 1])
            if t.start < t.stop and d.start < d.stop:
                crowd = truths.crowd[t]
                iou = mask.iou(detections.box[d], truths.box[t], crowd.astype(np.uint8))
                row, column = np.nonzero((iou >= BACKGROUND_IOU) & ~crowd)
                parts.append((row + d.start, column + t.start, iou[row, column]))
        detection, truth, iou = map(np.concatenate, zip(*parts, strict=True))
        return Overlaps(detection, truth, iou, detections.label[detection] == truths.label[truth])


def match(dataset: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Matches:
    """Runs COCOeval.

    Args:
        dataset: content of a COCO JSON file.
        results: detections in COCO's result format.

    Raises:
        AssertionError, KeyError, TypeError, ValueError: if ``results`` do not fit ``dataset``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth, detected = COCO(), COCO()
        truth.dataset = {
            **dataset,
            "annotations": [{"iscrowd": 0, **a} for a in dataset["annotations"]],
        }
        truth.createIndex()
        if results:
            detected = truth.loadRes([dict(result) for result in results])
        evaluation = COCOeval(truth, detected, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    names = [str(truth.cats[class_id]["name"]) for class_id in evaluation.params.catIds]
    return Matches(evaluation, names, *_flatten(evaluation))


def _flatten(evaluation: COCOeval) -> tuple[Truths, Detections]:
    params, truth, detected = evaluation.params, evaluation.cocoGt, evaluation.cocoDt
    image_of = {image_id: i for i, image_id in enumerate(params.imgIds)}
    label_of = {class_id: k for k, class_id in enumerate(params.catIds)}
    boxes = truth.loadAnns(truth.getAnnIds(imgIds=params.imgIds, catIds=params.catIds))
    # 0 means no match in COCOeval, also for a box with that id.
    row_of = {box["id"]: row for row, box in enumerate(boxes)} | {0: -1}
    crowd = np.array([bool(box["iscrowd"]) for box in boxes], bool)
    rows = [
        (detected.anns[number], row_of[int(matched)], ignored)
        for entry in evaluation.evalImgs
        if entry and entry["aRng"] == params.areaRng[0]
        for number, matched, ignored in zip(
            entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
        )
    ]
    rows.sort(key=lambda row: image_of[row[0]["image_id"]])
    ignored = np.array([row[2] for row in rows], bool)
    detections = Detections(
        *_image_label_box([row[0] for row in rows], image_of, label_of),
        np.array([row[0]["score"] for row in rows], float),
        np.where(ignored, -1, np.array([row[1] for row in rows], np.int64)),
        ignored,
    )
    return Truths(*_image_label_box(boxes, image_of, label_of), crowd), detections


def _image_label_box(
    entries: Sequence[Mapping[str, Any]], image_of: Mapping[Any, int], label_of: Mapping[Any, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([image_of[e["image_id"]] for e in entries], np.int64),
        np.array([label_of[e["category_id"]] for e in entries], np.int64),
        np.array([e["bbox"] for e in entries], float).reshape(-1, 4),
    )
