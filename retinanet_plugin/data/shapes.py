"""Draws images of shapes among clutter, which the quick start is trained on.

The four classes differ in shape only. Color, texture, size, rotation and slant are random,
backgrounds are textured, clutter lies below and above the objects, objects occlude one another, and
some images are empty. :class:`Difficulty` holds everything that makes detection hard.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]

CLASSES: tuple[str, ...] = ("disc", "ring", "triangle", "cross")
IMAGE_SIZE = 128  # pixels per side

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
    scene = _Scene(rng, size, difficulty)
    for _ in range(rng.integers(difficulty.max_clutter_below, endpoint=True)):
        _paint(scene.canvas, scene.clutter(), scene.color(difficulty.clutter_levels))
    if rng.random() >= difficulty.empty_share:
        for _ in range(rng.integers(1, difficulty.max_objects, endpoint=True)):
            scene.add_object()
    for _ in range(rng.integers(difficulty.max_clutter_above, endpoint=True)):
        mask = scene.clutter(thin=True)
        if scene.leaves_objects_visible(mask):
            scene.cover(mask, scene.color(difficulty.clutter_levels))
    return scene.photograph(), [(item.class_index, item.box) for item in scene.objects]


@dataclass
class _Object:
    class_index: int
    box: Box
    area: float  # of the whole shape, including what the image border cuts off
    visible: Floats  # (size, size), share of each pixel that shows this object


def _polygon(corners: int, radius: float = 1.0) -> Doubles:
    angles = np.arange(corners) * (2 * math.pi / corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(arm: float = 0.26) -> Doubles:
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
_FINE = 4  # shapes are drawn this many times larger, for smooth edges and precise boxes
_BITS = 4  # fractional bits of the coordinates given to OpenCV


class _Scene:
    """An image while it is drawn. Masks are (size, size) float32, the share of each pixel."""

    def __init__(self, rng: np.random.Generator, size: int, difficulty: Difficulty) -> None:
        self.rng, self.size, self.difficulty = rng, size, difficulty
        centers = np.arange(size, dtype=np.float32) + np.float32(0.5)
        self.x, self.y = np.meshgrid(centers, centers)
        self.objects: list[_Object] = []
        color = self.color(difficulty.background_levels)
        self.canvas = self.two_tone(color, difficulty.background_texture)

    # ---------------------------------------------------------------- objects

    def add_object(self) -> None:
        """Paints one more object where it fits, or none if 40 random positions do not."""
        difficulty = self.difficulty
        class_index = int(self.rng.integers(len(CLASSES)))
        # Drawn once, not per try: large objects fit more rarely and would become rare.
        side = self.log_uniform(difficulty.min_side, difficulty.max_side_share * self.size)
        for _ in range(40):
            new = self.random_object(class_index, side)
            mask = new.visible.copy()
            if not self.leaves_objects_visible(mask):
                continue
            if mask.sum() < difficulty.min_visible * new.area:
                continue
            fill = self.two_tone(self.color(difficulty.object_levels), difficulty.object_texture)
            # The pixels just outside must differ along most of the outline.
            around = (cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0.5) & (mask < 0.1)
            contrast = np.linalg.norm(self.canvas[around] - fill[around], axis=1)
            if np.quantile(contrast, 0.25) >= difficulty.min_contrast:
                self.cover(mask, fill)
                self.objects.append(new)
                return

    def random_object(self, class_index: int, side: float) -> _Object:
        contours = self.contours(class_index, side)
        inside = (0.5 - self.difficulty.max_cut) * np.ptp(contours[0], axis=0)
        center = self.rng.uniform(inside, self.size - inside)
        contours = [contour + center for contour in contours]
        areas = [cv2.contourArea(contour.astype(np.float32)) for contour in contours]
        fine = np.zeros((self.size * _FINE, self.size * _FINE), np.uint8)
        # OpenCV's origin is the center of the first pixel, that of boxes is its corner.
        points = [np.round((contour * _FINE - 0.5) * 2**_BITS) for contour in contours]
        cv2.fillPoly(fine, [corners.astype(np.int32) for corners in points], 255, shift=_BITS)
        x, y, width, height = (length / _FINE for length in cv2.boundingRect(fine))
        mask = cv2.resize(fine, (self.size, self.size), interpolation=cv2.INTER_AREA)
        mask = mask.astype(np.float32) / np.float32(255)
        return _Object(class_index, (x, y, x + width, y + height), areas[0] - sum(areas[1:]), mask)

    def contours(self, class_index: int, side: float) -> list[Doubles]:
        """The rotated and slanted shape; its box is centered on 0 and has the area ``side**2``."""
        slant = math.sqrt(self.log_uniform(1.0, self.difficulty.max_slant))
        direction = self.rotation()
        turn = self.rotation(self.difficulty.max_turn)
        matrix = turn @ direction @ np.diag([slant, 1 / slant]) @ direction.T
        contours = [contour @ matrix for contour in _UNIT_CONTOURS[CLASSES[class_index]]]
        low, high = contours[0].min(axis=0), contours[0].max(axis=0)
        scale = side / math.sqrt(np.prod(high - low))
        return [scale * (contour - (low + high) / 2) for contour in contours]

    def leaves_objects_visible(self, mask: Floats) -> bool:
        shown, share = 1 - mask, self.difficulty.min_visible
        return all((item.visible * shown).sum() >= share * item.area for item in self.objects)

    def cover(self, mask: Floats, fill: Floats) -> None:
        """Paints over what has been drawn so far."""
        for item in self.objects:
            item.visible *= 1 - mask
        _paint(self.canvas, mask, fill)

    # ---------------------------------------------------------------- clutter

    def clutter(self, thin: bool = False) -> Floats:
        """The mask of one object that has no class."""
        drawers = [self.line, self.arc, self.scribble, self.specks]
        drawers += [] if thin else [self.hatching, self.blob]
        return drawers[self.rng.integers(len(drawers))]()

    def line(self) -> Floats:
        return self.stroke([self.rng.uniform(0, self.size, (2, 2))])

    def arc(self) -> Floats:
        """At most half an ellipse: more would look like a ring."""
        start, sweep = self.rng.uniform(0, 2 * math.pi), self.rng.uniform(0.6, math.pi)
        angles = np.linspace(start, start + sweep, 24)
        radii = self.rng.uniform(0.05, 0.4, 2) * self.size
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
        return self.stroke([points + self.rng.uniform(0, self.size, 2)])

    def scribble(self) -> Floats:
        steps = self.rng.normal(0, 0.12 * self.size, (self.rng.integers(4, 9), 2))
        corners = self.rng.uniform(0, self.size, 2) + np.cumsum(steps, axis=0)
        smooth = cv2.resize(corners.astype(np.float32), (2, 40), interpolation=cv2.INTER_CUBIC)
        return self.stroke([np.asarray(smooth, np.float64)])

    def hatching(self) -> Floats:
        """Parallel strokes."""
        turn = self.rotation()
        gap, length = self.rng.uniform(4, 9), self.rng.uniform(0.1, 0.35) * self.size
        center = self.rng.uniform(0, self.size, 2)
        offsets = (np.arange(self.rng.integers(3, 8)) * gap)[:, None, None]
        strokes = np.array([[-length / 2, 0.0], [length / 2, 0.0]]) + offsets * np.array([0.0, 1.0])
        return self.stroke(list(strokes @ turn + center))

    def specks(self) -> Floats:
        dots = self.rng.uniform(0, self.size, (self.rng.integers(5, 40), 1, 2))
        return self.stroke(list(np.repeat(dots, 2, axis=1)))

    def blob(self) -> Floats:
        """A cloud, which differs from a disc in that it has no edge."""
        (center_x, center_y), turn = self.rng.uniform(0, self.size, 2), self.rotation()
        offsets = np.stack([self.x - center_x, self.y - center_y], axis=-1) @ turn
        offsets /= self.rng.uniform(0.04, 0.16, 2) * self.size
        opacity = self.rng.uniform(0.4, 0.9)
        return (opacity * np.exp(-0.5 * (offsets**2).sum(axis=-1))).astype(np.float32)

    def stroke(self, lines: list[Doubles]) -> Floats:
        """Lines through the points of each array (n, 2), 1 or 2 pixels wide."""
        mask = np.zeros((self.size, self.size), np.uint8)
        points = [np.round(line * 2**_BITS).astype(np.int32) for line in lines]
        width = int(self.rng.integers(1, 2, endpoint=True))
        cv2.polylines(mask, points, False, 255, width, cv2.LINE_AA, _BITS)
        return mask.astype(np.float32) * np.float32(self.rng.uniform(0.5, 1.0) / 255)

    # ---------------------------------------------------------------- color and texture

    def color(self, levels: tuple[int, int]) -> Floats:
        return self.rng.uniform(*levels, 3).astype(np.float32)

    def two_tone(self, color: Floats, difference: float) -> Floats:
        """An image, (size, size, 3), of random texture between two tones around ``color``."""
        tones = self.unit_vector(3) * self.rng.uniform(0.2, 1) * difference
        textures = [self.ramp, self.waves, self.clouds, self.grain]
        field = textures[self.rng.integers(len(textures))]() - np.float32(0.5)
        channels = [level + field * tone for level, tone in zip(color, tones, strict=True)]
        return np.clip(cv2.merge(channels), 0, 255).astype(np.float32)

    def ramp(self) -> Floats:
        along_x, along_y = self.unit_vector(2)
        return _to_unit_range(along_x * self.x + along_y * self.y)

    def waves(self) -> Floats:
        """Stripes with soft or hard edges."""
        along_x, along_y = self.unit_vector(2) * (2 * math.pi / self.log_uniform(6, 60))
        phase = self.rng.uniform(0, 2 * math.pi)
        wave = np.sin(along_x * self.x + along_y * self.y + phase)
        return np.clip(0.5 + self.rng.uniform(0.5, 3.0) * wave, 0, 1).astype(np.float32)

    def clouds(self) -> Floats:
        return self.smooth_noise(int(self.rng.integers(3, 12)))

    def grain(self) -> Floats:
        return self.smooth_noise(self.size // 3)

    def smooth_noise(self, cells: int) -> Floats:
        coarse = self.rng.standard_normal((cells, cells), dtype=np.float32)
        size = (self.size, self.size)
        return _to_unit_range(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))

    def photograph(self) -> npt.NDArray[np.uint8]:
        """The image with what a camera adds: uneven light, a little blur, noise, rounding."""
        difficulty = self.difficulty
        shade = self.rng.uniform(0, difficulty.max_shade) * self.ramp()
        image = self.canvas * (1 - shade)[..., None]
        # A kernel of 5 holds three standard deviations of the default blur; OpenCV refuses 0.
        blur = max(self.rng.uniform(0, difficulty.max_blur), 1e-3)
        image = np.asarray(cv2.GaussianBlur(image, (5, 5), blur), np.float32)
        amount = np.float32(self.rng.uniform(0, difficulty.max_noise))
        image += amount * self.rng.standard_normal(image.shape, dtype=np.float32)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    # ---------------------------------------------------------------- random numbers

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.rng.uniform(math.log(low), math.log(high)))

    def unit_vector(self, dimensions: int) -> Floats:
        vector = self.rng.standard_normal(dimensions)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def rotation(self, most: float = math.pi) -> Doubles:
        angle = self.rng.uniform(-most, most)
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _paint(image: Floats, mask: Floats, fill: Floats) -> None:
    """Blends ``fill``, a color or an image, into ``image`` by ``mask``, in place."""
    # Most masks are small: restricting the work to their window halves the time per image.
    x, y, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
    window = np.s_[y : y + height, x : x + width]
    fill = np.broadcast_to(fill, image.shape)
    image[window] += mask[window][..., None] * (fill[window] - image[window])


def _to_unit_range(field: npt.NDArray[Any]) -> Floats:
    low, high = field.min(), field.max()
    return ((field - low) / (high - low)).astype(np.float32)
