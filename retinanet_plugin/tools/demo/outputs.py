"""Outputs of the demo: drawn images and videos, and the detections in COCO's formats."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePath
from typing import Any, TextIO

import cv2
import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ...errors import UserError

DETECTIONS, IMAGES = "detections.json", "images.json"
_LOSSLESS = frozenset((".bmp", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"))
_FOURCC = "mp4v"  # the codec that OpenCV's own FFmpeg can always write


class Outputs:
    """A folder of drawn images and videos with two JSON files.

    ``detections.json`` is a list in COCO's results format, ``images.json`` has COCO's ``images``
    and ``categories``. Use :func:`open_outputs`.
    """

    def __init__(
        self, folder: Path, category_ids: Sequence[int], detections: TextIO, images: TextIO
    ) -> None:
        self.folder = folder
        self.num_detections = self.num_images = 0
        self._category_ids = list(category_ids)
        self._detections, self._images = detections, images
        self._taken = {DETECTIONS, IMAGES}

    def path_for(self, name: PurePath, *, is_video: bool) -> Path:
        """Returns an unused path for the drawing of a source and creates its folder."""
        lossless = name.suffix.lower() in _LOSSLESS
        name = name.with_suffix(".mp4" if is_video else ".png" if lossless else ".jpg")
        stem, numbers = name.stem, count(2)
        while name.as_posix().casefold() in self._taken:  # many disks ignore case
            name = name.with_stem(f"{stem}_{next(numbers)}")
        self._taken.add(name.as_posix().casefold())
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, detections: Instances, **image: Any) -> None:
        """Records the detections of one image, with ``image`` as the rest of its COCO entry."""
        self.num_images += 1
        height, width = detections.image_size
        entry = {"id": self.num_images, **image, "height": height, "width": width}
        self._images.write(f"{_separator(self.num_images)}{json.dumps(entry)}")
        for detection in instances_to_coco_json(detections, self.num_images):
            self.num_detections += 1
            detection["category_id"] = self._category_ids[detection["category_id"]]
            self._detections.write(f"{_separator(self.num_detections)}{json.dumps(detection)}")


def _separator(number: int) -> str:
    return "\n" if number == 1 else ",\n"


@contextmanager
def open_outputs(
    folder: Path, classes: Sequence[str], category_ids: Sequence[int], *, overwrite: bool = False
) -> Iterator[Outputs]:
    """Opens the outputs in a folder; however the block ends, its JSON files are valid.

    Args:
        folder: created here; must be empty or hold the outputs of an earlier run.
        classes, category_ids: by class index.
        overwrite: replace the outputs of an earlier run.

    Raises:
        UserError: if the folder has other content, or that of an earlier run without
            ``overwrite``.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / DETECTIONS).is_file():
            raise UserError(f"--output: {folder} is not an empty folder; give another one.")
        if not overwrite:
            raise UserError(f"--output: {folder} is not empty; give another one, or --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    categories = [{"id": i, "name": name} for i, name in zip(category_ids, classes, strict=True)]
    with (
        open(folder / DETECTIONS, "w", encoding="utf-8") as detections,
        open(folder / IMAGES, "w", encoding="utf-8") as images,
    ):
        detections.write("[")
        images.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [],\n"images": [')
        try:
            yield Outputs(folder, category_ids, detections, images)
        finally:
            detections.write("\n]\n")
            images.write("\n]}\n")


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes a PNG or JPEG, by the suffix of ``path``; (H, W, 3) uint8 in BGR."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == ".jpg" else []
    path.write_bytes(cv2.imencode(path.suffix, image, quality)[1].tobytes())


class Video:
    """An MP4 file that frames, (H, W, 3) uint8 in BGR, are appended to.

    Args:
        size: width and height.

    Raises:
        UserError: if OpenCV cannot write the file.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self.num_frames = 0
        self._size = size
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*_FOURCC), fps, size)
        if not self._writer.isOpened():
            raise UserError(
                f"{path}: OpenCV cannot write an MP4 of {size[0]} x {size[1]}; give another "
                "--output, or install opencv-python, which includes the encoder."
            )

    def write(self, frame: np.ndarray, repeat: int = 1) -> None:
        """Appends a frame, resized to the video's size if it differs."""
        if frame.shape[1::-1] != self._size:
            frame = cv2.resize(frame, self._size)
        for _ in range(repeat):
            self._writer.write(frame)
        self.num_frames += repeat

    def close(self) -> None:
        self._writer.release()
