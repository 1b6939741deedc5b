"""Splits a dataset so that each class has the same share of its boxes in both parts.

Iterative stratification: K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the stratification of
multi-label data", 2011. They count images with a label; here boxes are counted, and the number of
images is exact. What this costs the frequent classes is regained by swapping images.
"""

from typing import Any

import numpy as np

from ...errors import UserError

_MAX_SWAPS = 500
_SAMPLE = 400  # images of each side that are considered for a swap


def new_split(content: dict[str, Any], share: float, seed: int) -> dict[str, list[int]]:
    """Returns the ids of the images to train and to validate on.

    Args:
        content: a COCO dict.
        share: of the images to validate on; 0: no validation.

    Raises:
        UserError: if there is only one image to split.
    """
    ids = np.array([row["id"] for row in content["images"]])
    if share == 0:
        return {"train": ids.tolist()}
    if len(ids) < 2:
        raise UserError("--val: a single image cannot be split; give --val 0.")
    row_of = {image_id: i for i, image_id in enumerate(ids.tolist())}
    column_of = {row["id"]: i for i, row in enumerate(content["categories"])}
    counts = np.zeros((len(row_of), len(column_of)), dtype=np.int64)
    for box in content["annotations"]:
        counts[row_of[box["image_id"]], column_of[box["category_id"]]] += 1
    val = stratified(counts, share, seed)
    return {"train": ids[~val].tolist(), "val": ids[val].tolist()}


def stratified(counts: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Chooses images for validation.

    The class that remains in the fewest images goes first. Its images, those with the most boxes
    first, go to the side that lacks more of its boxes.

    Args:
        counts: (N, K) int, boxes of each class in each image.
        share: of the N images, above 0 and below 1; at least one image stays on either side.
        seed: of the order among equals.

    Returns:
        (N,) bool: whether an image is for validation; ``round(N * share)`` images are.
    """
    num_images = len(counts)
    rng = np.random.default_rng(seed)
    num_val = min(max(round(num_images * share), 1), num_images - 1)
    room = [num_images - num_val, num_val]
    shares = [room[0] / num_images, room[1] / num_images]
    lacking = np.outer(shares, counts.sum(axis=0))  # (2, K), boxes
    order = rng.permutation(num_images)
    free = np.ones(num_images, dtype=bool)
    num_free = (counts > 0).sum(axis=0)  # free images with each class
    val = np.zeros(num_images, dtype=bool)

    def assign(image: int, side: int) -> None:
        if not room[side]:
            side = 1 - side
        room[side] -= 1
        val[image] = side == 1
        free[image] = False
        np.subtract(lacking[side], counts[image], out=lacking[side])
        np.subtract(num_free, counts[image] > 0, out=num_free)

    while (num_free > 0).any():
        rarest = int(np.where(num_free > 0, num_free, num_images + 1).argmin())
        images = order[free[order] & (counts[order, rarest] > 0)]
        for image in images[np.argsort(-counts[images, rarest], kind="stable")].tolist():
            difference = lacking[1, rarest] - lacking[0, rarest]
            if difference == 0:
                difference = room[1] * shares[0] - room[0] * shares[1]
            assign(image, int(difference > 0))
    for image in order[free[order]].tolist():  # without objects
        assign(image, int(room[1] * shares[0] > room[0] * shares[1]))
    _swap(counts, val, rng)
    return val


def _swap(counts: np.ndarray, val: np.ndarray, rng: np.random.Generator) -> None:
    """Swaps images between the sides, in place, as long as the cost decreases.

    A class with n boxes and an excess of e boxes costs e^2 / n. Swapping an image with a boxes for
    one with b boxes changes this by (2 e (b - a) + (b - a)^2) / n.
    """
    total = np.maximum(counts.sum(axis=0), 1)
    excess = counts[val].sum(axis=0) - val.mean() * counts.sum(axis=0)
    for _ in range(_MAX_SWAPS):
        out = rng.permutation(np.flatnonzero(val))[:_SAMPLE]
        into = rng.permutation(np.flatnonzero(~val))[:_SAMPLE]
        a, b = counts[out].astype(np.float64), counts[into].astype(np.float64)
        cost_a = (a * (a - 2 * excess) / total).sum(axis=1)
        cost_b = (b * (b + 2 * excess) / total).sum(axis=1)
        change = cost_a[:, None] + cost_b - 2 * (a / total) @ b.T
        i, j = np.unravel_index(change.argmin(), change.shape)
        if change[i, j] > -1e-9:
            return
        excess += b[j] - a[i]
        val[out[i]], val[into[j]] = False, True
