"""COCOeval's matches of detections and ground truth, as flat arrays."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MATCH_IOU = 0.5
BACKGROUND_IOU = 0.1  # below it a detection has nothing to do with a box (TIDE, section 2.2)


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
        ignored: (N,) bool, in a crowd at IoU 0.5: neither a true nor a false positive.
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
        """Returns the pairs that a (P,) bool keeps."""
        return Overlaps(*(column[kept] for column in vars(self).values()))


@dataclass(frozen=True)
class Matches:
    """Detections matched with ground truth; images and classes are in the order of their ids.

    Args:
        num_boxes: (S, K) int64, boxes of each size (all, small, medium, large) and class, without
            crowds.
        precision: (T, 101, K, S) float64, of COCOeval: by IoU threshold, recall, class and size;
            -1 where there are no boxes.
    """

    image_ids: list[Any]
    class_names: list[str]
    num_boxes: np.ndarray
    precision: np.ndarray
    truths: Truths
    detections: Detections
    overlaps: Overlaps


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
        annotations = [{"iscrowd": 0, **a} for a in dataset["annotations"]]
        truth.dataset = {**dataset, "annotations": annotations}
        truth.createIndex()
        if results:  # loadRes fails without
            detected = truth.loadRes([dict(result) for result in results])
        evaluation = COCOeval(truth, detected, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    image_ids, class_ids = sorted(truth.imgs), sorted(truth.cats)
    entries = np.array(evaluation.evalImgs, object)
    entries = entries.reshape(len(class_ids), len(evaluation.params.areaRng), len(image_ids))
    num_boxes = [0 if e is None else np.count_nonzero(e["gtIgnore"] == 0) for e in entries.flat]
    truths, detections = _flatten(truth, detected, [e for e in entries[:, 0].T.flat if e])
    return Matches(
        image_ids,
        [str(truth.cats[class_id]["name"]) for class_id in class_ids],
        np.array(num_boxes, int).reshape(entries.shape).sum(axis=-1).T,
        evaluation.eval["precision"][..., -1],
        truths,
        detections,
        _overlaps(truths, detections),
    )


def _flatten(
    truth: COCO, detected: COCO, entries: Sequence[Mapping[str, Any]]
) -> tuple[Truths, Detections]:
    """Collects COCOeval's entries of boxes of all sizes, which are by image, then class."""
    image_of = {image_id: i for i, image_id in enumerate(sorted(truth.imgs))}
    label_of = {class_id: k for k, class_id in enumerate(sorted(truth.cats))}
    boxes = truth.loadAnns(truth.getAnnIds(imgIds=list(image_of), catIds=list(label_of)))
    # 0 means no match in COCOeval, also for a box with that id.
    row_of = {box["id"]: row for row, box in enumerate(boxes)} | {0: -1}
    found = [detected.anns[n] for entry in entries for n in entry["dtIds"]]
    rows = [row_of[matched] for entry in entries for matched in entry["dtMatches"][0]]
    ignored = np.array([x for entry in entries for x in entry["dtIgnore"][0]], bool)
    truths = Truths(
        *_columns(boxes, image_of, label_of),
        np.array([bool(box["iscrowd"]) for box in boxes], bool),
    )
    detections = Detections(
        *_columns(found, image_of, label_of),
        np.array([detection["score"] for detection in found], float),
        np.where(ignored, -1, np.array(rows, np.int64)),
        ignored,
    )
    return truths, detections


def _columns(
    rows: Sequence[Mapping[str, Any]], image_of: Mapping[Any, int], label_of: Mapping[Any, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label and box of annotations or detections."""
    return (
        np.array([image_of[row["image_id"]] for row in rows], np.int64),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        np.array([row["bbox"] for row in rows], float).reshape(len(rows), 4),
    )


def _overlaps(truths: Truths, detections: Detections) -> Overlaps:
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for i in np.intersect1d(detections.image, truths.image):
        first, last = np.searchsorted(detections.image, [i, i + 1])
        start, stop = np.searchsorted(truths.image, [i, i + 1])
        crowd = truths.crowd[start:stop]
        iou = mask.iou(detections.box[first:last], truths.box[start:stop], crowd.astype(np.uint8))
        rows, columns = np.nonzero((iou >= BACKGROUND_IOU) & ~crowd)
        pairs.append((rows + first, columns + start, iou[rows, columns]))
    detection, truth, iou = map(np.concatenate, zip(*pairs, strict=True))
    return Overlaps(detection, truth, iou, detections.label[detection] == truths.label[truth])
