"""Train and validation pictures with the same shares of classes: iterative stratification.

K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the stratification of multi-label data", 2011. They
count pictures that have a label; here boxes are counted, and the number of pictures is exact. What
that costs the common classes is mended by exchanging pictures.
"""

import numpy as np

_EXCHANGES = 500  # at most
_SAMPLE = 400  # pictures of either side that are looked at for one


def stratified(counts: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Chooses the pictures to validate on.

    The class that is left in the fewest pictures goes first: each of its pictures, those with the
    most boxes before others, goes where most of the boxes that are due are still missing.

    Args:
        counts: (P, K) int, boxes of each class in each picture.
        share: of the P pictures, above 0 and below 1; at least one picture stays on either side.
        seed: of the order among equals.

    Returns:
        (P,) bool: whether a picture is for validation. ``round(P * share)`` are.
    """
    num_pictures = len(counts)
    rng = np.random.default_rng(seed)
    num_val = min(max(round(num_pictures * share), 1), num_pictures - 1)
    room = [num_pictures - num_val, num_val]
    shares = [room[0] / num_pictures, room[1] / num_pictures]
    due = np.outer(shares, counts.sum(axis=0))  # (2, K), boxes
    order = rng.permutation(num_pictures)
    free = np.ones(num_pictures, dtype=bool)
    left = (counts > 0).sum(axis=0)  # free pictures with each class
    val = np.zeros(num_pictures, dtype=bool)

    def place(picture: int, side: int) -> None:
        if not room[side]:
            side = 1 - side
        room[side] -= 1
        val[picture] = side == 1
        free[picture] = False
        np.subtract(due[side], counts[picture], out=due[side])
        np.subtract(left, counts[picture] > 0, out=left)

    while (left > 0).any():
        rarest = int(np.where(left > 0, left, num_pictures + 1).argmin())
        pictures = order[free[order] & (counts[order, rarest] > 0)]
        for picture in pictures[np.argsort(-counts[pictures, rarest], kind="stable")].tolist():
            missing = due[1, rarest] - due[0, rarest]
            if missing == 0:
                missing = room[1] * shares[0] - room[0] * shares[1]
            place(picture, int(missing > 0))
    for picture in order[free[order]].tolist():  # without objects
        place(picture, int(room[1] * shares[0] > room[0] * shares[1]))
    _exchange(counts, val, rng)
    return val


def _exchange(counts: np.ndarray, val: np.ndarray, rng: np.random.Generator) -> None:
    """Swaps pictures, in place, while the squared excess of boxes, by class, gets less.

    Of a class's excess e the cost is e^2 / n, n its boxes. With a the boxes of the picture that
    leaves and b of the one that comes, it changes by (2 e (b - a) + (b - a)^2) / n.
    """
    total = np.maximum(counts.sum(axis=0), 1)
    excess = counts[val].sum(axis=0) - val.mean() * counts.sum(axis=0)
    for _ in range(_EXCHANGES):
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
