"""Draws images of shapes among clutter, which the quick start is trained on.

The four classes differ in shape only. Color, texture, size, rotation and slant are random,
backgrounds are textured, clutter lies below and above the objects, objects occlude one another, and
some images are empty. :class:`Difficulty` holds everything that makes detection hard.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
Drawer = Callable[[np.random.Generator, int], Floats]

CLASSES: tuple[str, ...] = ("disc", "ring", "triangle", "cross")
IMAGE_SIZE = 128  # pixels per side
MIN_IMAGE_SIZE = 32  # in smaller images the largest object would be smaller than the smallest

DRAWING = 2  # raise it with every change of this file that changes what is drawn


@dataclass(frozen=True)
class Difficulty:
    """What makes the images easy or hard; lengths in pixels, colors in 0..255."""

    empty_share: float = 0.1  # of images with clutter only
    max_objects: int = 5  # other images try 1 to this many, all equally likely
    min_side: float = 16.0  # sides, the square roots of box areas, are log-uniform from here ...
    max_side_share: float = 0.6  # ... to this share of the image's side
    max_turn: float = 0.25  # rotation of a shape in either direction, radians
    max_slant: float = 1.25  # stretch of a shape in any direction
    max_cut: float = 0.1  # share of a box's side that may lie beyond the image border
    min_visible: float = 0.9  # share of each object's area that is not occluded
    background_levels: tuple[int, int] = (10, 120)  # range of a background's color channels
    object_levels: tuple[int, int] = (100, 255)  # of an object's
    clutter_levels: tuple[int, int] = (10, 220)  # of clutter's
    min_contrast: float = 100.0  # BGR distance to the surroundings, along most of the outline
    object_texture: float = 20.0  # difference between the two tones of an object
    background_texture: float = 45.0  # the same for a background
    max_clutter_below: int = 5
    max_clutter_above: int = 1
    max_shade: float = 0.3  # share of light missing on one side of the image
    max_noise: float = 6.0  # standard deviation
    max_blur: float = 0.6  # standard deviation


DEFAULT_DIFFICULTY = Difficulty()


# ---------------------------------------------------------------- one image


def draw_image(
    rng: np.random.Generator,
    size: int = IMAGE_SIZE,
    difficulty: Difficulty = DEFAULT_DIFFICULTY,
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, Box]]]:
    """Draws one image of ``size`` x ``size`` pixels, which depends on ``rng`` only.

    Returns:
        The image, (size, size, 3) uint8, BGR; and for each object its index into
        :data:`CLASSES` and its box (x0, y0, x1, y1) in pixels. The box is tight, to a quarter of a
        pixel, around the part of the shape inside the image, occluded or not. Objects are in the
        order they are drawn: a later one may occlude an earlier one.
    """
    canvas = _two_tone(
        rng, size, _color(rng, difficulty.background_levels), difficulty.background_texture
    )
    for _ in range(rng.integers(difficulty.max_clutter_below, endpoint=True)):
        _paint(canvas, _clutter(rng, size), _color(rng, difficulty.clutter_levels))
    objects = _draw_objects(rng, canvas, difficulty)
    for _ in range(rng.integers(difficulty.max_clutter_above, endpoint=True)):
        mask = _thin_clutter(rng, size)
        if _leaves_visible(mask, objects, difficulty.min_visible):
            _occlude(mask, objects)
            _paint(canvas, mask, _color(rng, difficulty.clutter_levels))
    image = _photograph(rng, canvas, difficulty)
    return image, [(item.class_index, item.box) for item in objects]


@dataclass
class _Object:
    class_index: int
    box: Box
    area: float  # of the whole shape, including what the image border cuts off
    visible: Floats  # (size, size), share of each pixel that shows this object


def _draw_objects(rng: np.random.Generator, image: Floats, difficulty: Difficulty) -> list[_Object]:
    objects: list[_Object] = []
    if rng.random() < difficulty.empty_share:
        return objects
    for _ in range(rng.integers(1, difficulty.max_objects, endpoint=True)):
        _draw_object(rng, image, objects, difficulty)
    return objects


def _draw_object(
    rng: np.random.Generator, image: Floats, objects: list[_Object], difficulty: Difficulty
) -> None:
    """Paints one more object where it fits, or none if 40 random positions do not."""
    size = image.shape[0]
    class_index = int(rng.integers(len(CLASSES)))
    # Drawn once, not per try: large objects fit more rarely and would become rare.
    side = _log_uniform(rng, difficulty.min_side, difficulty.max_side_share * size)
    for _ in range(40):
        new = _random_object(rng, class_index, side, size, difficulty)
        mask = new.visible.copy()
        if not _leaves_visible(mask, objects, difficulty.min_visible):
            continue
        if mask.sum() < difficulty.min_visible * new.area:
            continue
        fill = _two_tone(
            rng, size, _color(rng, difficulty.object_levels), difficulty.object_texture
        )
        if not _stands_out(image, mask, fill, difficulty.min_contrast):
            continue
        _occlude(mask, objects)
        _paint(image, mask, fill)
        objects.append(new)
        return


def _random_object(
    rng: np.random.Generator, class_index: int, side: float, size: int, difficulty: Difficulty
) -> _Object:
    contours = _contours(rng, class_index, side, difficulty)
    inside = (0.5 - difficulty.max_cut) * np.ptp(contours[0], axis=0)
    center = rng.uniform(inside, size - inside)
    contours = [contour + center for contour in contours]
    mask, box = _rasterize(contours, size)
    areas = [cv2.contourArea(contour.astype(np.float32)) for contour in contours]
    return _Object(class_index, box, area=areas[0] - sum(areas[1:]), visible=mask)


def _leaves_visible(mask: Floats, objects: list[_Object], min_visible: float) -> bool:
    shown = 1 - mask
    return all((item.visible * shown).sum() >= min_visible * item.area for item in objects)


def _occlude(mask: Floats, objects: list[_Object]) -> None:
    for item in objects:
        item.visible *= 1 - mask


def _stands_out(image: Floats, mask: Floats, fill: Floats, min_contrast: float) -> bool:
    """Whether ``fill`` differs enough from the pixels just outside most of the outline."""
    around = (cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0.5) & (mask < 0.1)
    distance = np.linalg.norm(image[around] - fill[around], axis=1)
    return bool(np.quantile(distance, 0.25) >= min_contrast)


# ---------------------------------------------------------------- shapes

_FINE = 4  # shapes are drawn this many times larger, for smooth edges and precise boxes
_BITS = 4  # fractional bits of the coordinates given to OpenCV


def _polygon(corners: int, radius: float = 1.0) -> npt.NDArray[np.float64]:
    angles = np.arange(corners) * (2 * math.pi / corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(arm: float = 0.26) -> npt.NDArray[np.float64]:
    quarter = np.array([[arm, arm], [arm, 1.0], [-arm, 1.0]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # by 90 degrees, for row vectors
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, i) for i in range(4)])


# The outer contour of each class, followed by its hole if it has one.
_UNIT_CONTOURS = {
    "disc": [_polygon(64)],
    "ring": [_polygon(64), _polygon(64, radius=0.58)],
    "triangle": [_polygon(3)[:, ::-1] * (1.0, -1.0)],  # upright, so symmetric under flips
    "cross": [_cross()],
}


def _contours(
    rng: np.random.Generator, class_index: int, side: float, difficulty: Difficulty
) -> list[npt.NDArray[np.float64]]:
    """The rotated and slanted shape; its box is centered on 0 and has the area ``side ** 2``."""
    slant = math.sqrt(_log_uniform(rng, 1.0, difficulty.max_slant))
    direction = _rotation(rng)
    matrix = (
        _rotation(rng, difficulty.max_turn) @ direction @ np.diag([slant, 1 / slant]) @ direction.T
    )
    contours = [contour @ matrix for contour in _UNIT_CONTOURS[CLASSES[class_index]]]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    scale = side / math.sqrt(np.prod(high - low))
    return [scale * (contour - (low + high) / 2) for contour in contours]


def _rasterize(contours: list[npt.NDArray[np.float64]], size: int) -> tuple[Floats, Box]:
    """The share of each pixel inside the contours (even-odd), and the box of the drawn pixels."""
    fine = np.zeros((size * _FINE, size * _FINE), np.uint8)
    # OpenCV's origin is the center of the first pixel, that of boxes is its corner.
    points = [np.round((contour * _FINE - 0.5) * 2**_BITS).astype(np.int32) for contour in contours]
    cv2.fillPoly(fine, points, 255, shift=_BITS)
    x, y, width, height = (side / _FINE for side in cv2.boundingRect(fine))
    mask = cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)
    return mask.astype(np.float32) / np.float32(255), (x, y, x + width, y + height)


# ---------------------------------------------------------------- clutter


def _clutter(rng: np.random.Generator, size: int) -> Floats:
    """The mask, (size, size) float32, of one piece of clutter."""
    return _any_of(rng, _line, _arc, _scribble, _specks, _hatching, _blob)(rng, size)


def _thin_clutter(rng: np.random.Generator, size: int) -> Floats:
    return _any_of(rng, _line, _arc, _scribble, _specks)(rng, size)


def _line(rng: np.random.Generator, size: int) -> Floats:
    return _stroke(rng, size, [rng.uniform(0, size, (2, 2))])


def _arc(rng: np.random.Generator, size: int) -> Floats:
    """At most half an ellipse: more would look like a ring."""
    start, sweep = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, math.pi)
    angles = np.linspace(start, start + sweep, 24)
    radii = rng.uniform(0.05, 0.4, 2) * size
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    return _stroke(rng, size, [points + rng.uniform(0, size, 2)])


def _scribble(rng: np.random.Generator, size: int) -> Floats:
    steps = rng.normal(0, 0.12 * size, (rng.integers(4, 9), 2))
    corners = rng.uniform(0, size, 2) + np.cumsum(steps, axis=0)
    smooth = cv2.resize(corners.astype(np.float32), (2, 40), interpolation=cv2.INTER_CUBIC)
    return _stroke(rng, size, [np.asarray(smooth, np.float64)])


def _hatching(rng: np.random.Generator, size: int) -> Floats:
    """Parallel strokes."""
    turn = _rotation(rng)
    gap, length = rng.uniform(4, 9), rng.uniform(0.1, 0.35) * size
    center = rng.uniform(0, size, 2)
    offsets = (np.arange(rng.integers(3, 8)) * gap)[:, None, None]
    strokes = np.array([[-length / 2, 0.0], [length / 2, 0.0]]) + offsets * np.array([0.0, 1.0])
    return _stroke(rng, size, list(strokes @ turn + center))


def _specks(rng: np.random.Generator, size: int) -> Floats:
    dots = rng.uniform(0, size, (rng.integers(5, 40), 1, 2))
    return _stroke(rng, size, list(np.repeat(dots, 2, axis=1)))


def _blob(rng: np.random.Generator, size: int) -> Floats:
    """A cloud, which differs from a disc in that it has no edge."""
    x, y = _pixel_grid(size)
    (center_x, center_y), turn = rng.uniform(0, size, 2), _rotation(rng)
    offsets = np.stack([x - center_x, y - center_y], axis=-1) @ turn
    offsets /= rng.uniform(0.04, 0.16, 2) * size
    return (rng.uniform(0.4, 0.9) * np.exp(-0.5 * (offsets**2).sum(axis=-1))).astype(np.float32)


def _stroke(rng: np.random.Generator, size: int, lines: list[npt.NDArray[np.float64]]) -> Floats:
    """Lines through the points of each array (n, 2), 1 or 2 pixels wide."""
    mask = np.zeros((size, size), np.uint8)
    points = [np.round(line * 2**_BITS).astype(np.int32) for line in lines]
    width = int(rng.integers(1, 2, endpoint=True))
    cv2.polylines(mask, points, False, 255, width, cv2.LINE_AA, _BITS)
    return mask.astype(np.float32) * np.float32(rng.uniform(0.5, 1.0) / 255)


# ---------------------------------------------------------------- color and texture


def _color(rng: np.random.Generator, levels: tuple[int, int]) -> Floats:
    return rng.uniform(*levels, 3).astype(np.float32)


def _paint(image: Floats, mask: Floats, fill: Floats) -> None:
    """Blends ``fill``, a color or an image, into ``image`` by ``mask``, in place."""
    # Most masks are small: restricting the work to their window halves the time per image.
    x, y, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
    window = np.s_[y : y + height, x : x + width]
    fill = np.broadcast_to(fill, image.shape)
    image[window] += mask[window][..., None] * (fill[window] - image[window])


def _two_tone(rng: np.random.Generator, size: int, color: Floats, difference: float) -> Floats:
    """An image, (size, size, 3), of random texture between two tones around ``color``."""
    tones = _unit_vector(rng, 3) * rng.uniform(0.2, 1) * difference
    field = _any_of(rng, _ramp, _waves, _clouds, _grain)(rng, size) - np.float32(0.5)
    channels = [level + field * tone for level, tone in zip(color, tones, strict=True)]
    return np.clip(cv2.merge(channels), 0, 255).astype(np.float32)


def _ramp(rng: np.random.Generator, size: int) -> Floats:
    x, y = _pixel_grid(size)
    along_x, along_y = _unit_vector(rng, 2)
    return _to_unit_range(along_x * x + along_y * y)


def _waves(rng: np.random.Generator, size: int) -> Floats:
    """Stripes with soft or hard edges."""
    x, y = _pixel_grid(size)
    along_x, along_y = _unit_vector(rng, 2) * (2 * math.pi / _log_uniform(rng, 6, 60))
    wave = np.sin(along_x * x + along_y * y + rng.uniform(0, 2 * math.pi))
    return np.clip(0.5 + rng.uniform(0.5, 3.0) * wave, 0, 1).astype(np.float32)


def _clouds(rng: np.random.Generator, size: int) -> Floats:
    return _smooth_noise(rng, size, cells=int(rng.integers(3, 12)))


def _grain(rng: np.random.Generator, size: int) -> Floats:
    return _smooth_noise(rng, size, cells=size // 3)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Floats:
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return _to_unit_range(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC))


def _to_unit_range(field: npt.NDArray[Any]) -> Floats:
    low, high = field.min(), field.max()
    return ((field - low) / (high - low)).astype(np.float32)


def _photograph(
    rng: np.random.Generator, image: Floats, difficulty: Difficulty
) -> npt.NDArray[np.uint8]:
    """Adds what a camera does: uneven light, a little blur, noise, rounding."""
    size = image.shape[0]
    image = image * (1 - rng.uniform(0, difficulty.max_shade) * _ramp(rng, size))[..., None]
    # A kernel of 5 holds three standard deviations of the default blur; OpenCV refuses 0.
    blur = max(rng.uniform(0, difficulty.max_blur), 1e-3)
    image = np.asarray(cv2.GaussianBlur(image, (5, 5), blur), np.float32)
    image += np.float32(rng.uniform(0, difficulty.max_noise)) * rng.standard_normal(
        image.shape, dtype=np.float32
    )
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- random helpers


def _any_of(rng: np.random.Generator, *drawers: Drawer) -> Drawer:
    return drawers[rng.integers(len(drawers))]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _unit_vector(rng: np.random.Generator, dimensions: int) -> Floats:
    vector = rng.standard_normal(dimensions)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _rotation(rng: np.random.Generator, most: float = math.pi) -> npt.NDArray[np.float64]:
    angle = rng.uniform(-most, most)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _pixel_grid(size: int) -> tuple[Floats, Floats]:
    """x and y of the pixel centers, each (size, size)."""
    centers = np.arange(size, dtype=np.float32) + np.float32(0.5)
    x, y = np.meshgrid(centers, centers)
    return x, y
