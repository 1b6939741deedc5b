"""Matches of detections and ground truth by the rules of pycocotools' COCOeval, as flat arrays.

COCOeval loops in Python over detections, thresholds and sizes, which takes minutes on the 5,000
validation images of COCO. Here each detection is matched at all thresholds and sizes at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.cocoeval import Params

_PARAMS = Params(iouType="bbox")
IOUS = _PARAMS.iouThrs  # (T,): 0.5, 0.55 .. 0.95
RECALLS = _PARAMS.recThrs  # (R,): 0, 0.01 .. 1
AREAS = np.array(_PARAMS.areaRng)  # (S, 2): lower and upper limit of all, small, medium and large
_MAX_DETECTIONS = _PARAMS.maxDets[-1]  # per image and class
MATCH_IOU = 0.5
BACKGROUND_IOU = 0.1  # below it a detection has nothing to do with a box (TIDE, section 2.2)


@dataclass(frozen=True)
class Truths:
    """The M ground-truth boxes, by image.

    Args:
        image, label: (M,) int64, indices of image and class.
        box: (M, 4) float64, x, y, width, height.
        crowd: (M,) bool, regions in which detections are not judged.
        counted: (S, M) bool, for each of the :data:`AREAS`: no crowd, and of that size.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    crowd: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class Detections:
    """The N detections, by image, then class, then falling score: at most 100 per image and class.

    Args:
        image, label: (N,) int64, indices of image and class.
        box: (N, 4) float64, x, y, width, height.
        score: (N,) float64.
        truth: (N,) int64, row of the box matched at IoU 0.5, or -1; never a crowd.
        right, judged: (S, T, N) bool, for each of the :data:`AREAS` and :data:`IOUS`: a true
            positive; a true or a false positive, which detections in crowds and those that
            belong to another size are not.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    truth: np.ndarray
    right: np.ndarray
    judged: np.ndarray

    @property
    def ignored(self) -> np.ndarray:
        """(N,) bool: in a crowd, at IoU 0.5."""
        return ~self.judged[0, 0]


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
    """Detections matched with ground truth; images and classes are in the order of their ids."""

    image_ids: list[Any]
    class_names: list[str]
    truths: Truths
    detections: Detections
    overlaps: Overlaps

    @property
    def num_boxes(self) -> np.ndarray:
        """(S, K) int64: boxes of each size and class, without crowds."""
        labels, num_classes = self.truths.label, len(self.class_names)
        return np.stack(
            [np.bincount(labels[c], minlength=num_classes) for c in self.truths.counted]
        )


def match(dataset: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Matches:
    """Matches detections with ground truth.

    Args:
        dataset: content of a COCO JSON file.
        results: detections in COCO's result format.

    Raises:
        KeyError, TypeError, ValueError: if ``results`` do not fit ``dataset``.
    """
    names = {category["id"]: str(category["name"]) for category in dataset["categories"]}
    image_of = {x: i for i, x in enumerate(sorted({image["id"] for image in dataset["images"]}))}
    label_of = {class_id: k for k, class_id in enumerate(sorted(names))}
    boxes = [
        a
        for a in dataset["annotations"]
        if a["image_id"] in image_of and a["category_id"] in label_of
    ]
    boxes.sort(key=lambda a: image_of[a["image_id"]])
    area = np.array([a["area"] for a in boxes], float)
    crowd = np.array([bool(a.get("iscrowd")) for a in boxes], bool)
    truths = Truths(*_columns(boxes, image_of, label_of), crowd, _of_sizes(area) & ~crowd)
    # COCOeval takes an id of 0 for no match.
    matchable = np.array([a["id"] != 0 for a in boxes], bool)

    image, label, box = _columns(results, image_of, label_of)
    score = np.array([r["score"] for r in results], float)
    order = np.lexsort((-score, label, image))
    group = (image * len(names) + label)[order]
    order = order[np.arange(len(order)) - np.searchsorted(group, group) < _MAX_DETECTIONS]
    of_size = _of_sizes(box[order, 2] * box[order, 3])
    unmatched = np.repeat(of_size[:, None], len(IOUS), axis=1)
    detections = Detections(
        image[order],
        label[order],
        box[order],
        score[order],
        truth=np.full(len(order), -1),
        right=np.zeros(unmatched.shape, bool),
        judged=unmatched,
    )
    overlaps = _match(truths, matchable, detections)
    return Matches(list(image_of), [names[k] for k in label_of], truths, detections, overlaps)


def _columns(
    rows: Sequence[Mapping[str, Any]], image_of: Mapping[Any, int], label_of: Mapping[Any, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label and box of annotations or detections."""
    return (
        np.array([image_of[row["image_id"]] for row in rows], np.int64),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        np.array([row["bbox"] for row in rows], float).reshape(len(rows), 4),
    )


def _of_sizes(area: np.ndarray) -> np.ndarray:
    """(S, ...) bool: whether areas are within the limits of each size."""
    return (area >= AREAS[:, :1]) & (area <= AREAS[:, 1:])


def _match(truths: Truths, matchable: np.ndarray, detections: Detections) -> Overlaps:
    """Fills in what unmatched ``detections`` lack."""
    image, right, judged = detections.image, detections.right, detections.judged
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for i in np.intersect1d(image, truths.image):
        first, last = np.searchsorted(image, [i, i + 1])
        start, stop = np.searchsorted(truths.image, [i, i + 1])
        crowd, counted = truths.crowd[start:stop], truths.counted[:, start:stop]
        boxes = detections.box[first:last], truths.box[start:stop]
        iou = mask.iou(*boxes, crowd.astype(np.uint8))
        rows, columns = np.nonzero((iou >= BACKGROUND_IOU) & ~crowd)
        pairs.append((rows + first, columns + start, iou[rows, columns]))
        iou[detections.label[first:last, None] != truths.label[start:stop]] = 0
        free = np.ones((len(AREAS), len(IOUS), stop - start), bool)
        for row in np.flatnonzero((iou >= MATCH_IOU).any(axis=1)):
            # A box of this size that fits comes first, then the IoU, then the last of equal ones.
            fitting = free & (iou[row] >= IOUS[:, None])
            preferred = fitting & counted[:, None]
            fitting = np.where(preferred.any(axis=-1, keepdims=True), preferred, fitting)
            best = stop - start - 1 - np.where(fitting, iou[row], -1)[..., ::-1].argmax(axis=-1)
            fits = fitting.any(axis=-1)
            free &= ~(fitting & (np.arange(stop - start) == best[..., None])) | crowd
            matched = fits & matchable[start + best]
            is_counted = np.take_along_axis(counted, best, axis=1)
            n = first + row
            right[..., n] = matched & is_counted
            judged[..., n] = (matched | judged[..., n]) & (is_counted | ~fits)
            if right[0, 0, n]:
                detections.truth[n] = start + best[0, 0]
    detection, truth, iou = map(np.concatenate, zip(*pairs, strict=True))
    same_class = detections.label[detection] == truths.label[truth]
    return Overlaps(detection, truth, iou, same_class)
