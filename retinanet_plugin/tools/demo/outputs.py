"""What a demo leaves: drawn pictures and videos, and the detections as JSON, whole at any end."""

import json
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ...errors import UserError

DETECTIONS, PICTURES = "detections.json", "pictures.json"
_LOSSLESS = frozenset((".bmp", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"))
_FOURCC = "mp4v"  # that OpenCV's own FFmpeg can always write
_PART = ".part"  # what is being written, of which there is one at a time


class Outputs:
    """A folder with a drawn picture or video of each source, and two JSON files.

    ``detections.json`` is a list in COCO's results format, ``pictures.json`` has COCO's ``images``
    and ``categories``: what each image_id and category_id is. They are whole when the block ends,
    however it ends.

    Args:
        folder: made here; must be empty, or have what an earlier call has left there.
        classes: names by class index.
        category_ids: by class index.
        overwrite: whether to replace what an earlier call has left.

    Raises:
        UserError: where the folder cannot be used, and as the block ends, where the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        category_ids: Sequence[int],
        *,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.num_detections = self.num_images = 0
        self._ids = list(category_ids)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ours = any((folder / f"{part}{DETECTIONS}").is_file() for part in ("", f"{_PART}."))
            if any(folder.iterdir()) and not (overwrite and ours):
                remedy = "another folder" if overwrite else "another folder, or --overwrite"
                raise UserError(
                    f"--output: {folder} is not empty{', nor of this command' * overwrite}; give "
                    f"{remedy}."
                )
            categories = [
                {"id": number, "name": name}
                for number, name in zip(category_ids, classes, strict=True)
            ]
            self._detections = _JsonList(folder / DETECTIONS, "[", "]")
            self._images = _JsonList(
                folder / PICTURES,
                f'{{"categories": {json.dumps(categories)},\n"annotations": [],\n"images": [',
                "]}",
            )
        except OSError as error:
            raise UserError(
                f"--output: {folder} cannot be written ({error.strerror}); give another folder."
            ) from None
        self._names = _Names([DETECTIONS, PICTURES])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._detections.close()
        finally:
            self._images.close()

    def path_for(self, name: PurePath, *, is_video: bool) -> Path:
        """A file of its own for what is drawn of a source, in its folder, which is made."""
        lossless = name.suffix.lower() in _LOSSLESS
        suffix = ".mp4" if is_video else ".png" if lossless else ".jpg"
        path = self.folder / self._names.free(name.with_suffix(suffix))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, found: Instances, **image: Any) -> None:
        """Notes the detections of an image, which is described by ``image`` and gets an id."""
        self.num_images += 1
        self.num_detections += len(found)
        height, width = found.image_size
        self._images.add({"id": self.num_images, **image, "height": height, "width": width})
        for detection in instances_to_coco_json(found, self.num_images):
            number = self._ids[detection["category_id"]]
            self._detections.add({**detection, "category_id": number})


class _JsonList:
    """A JSON file with a list that grows line by line, under its name once it is closed."""

    def __init__(self, path: Path, head: str, tail: str) -> None:
        self._path, self._tail = path, tail
        self._part = path.with_name(f"{_PART}.{path.name}")
        self._file = self._part.open("w", encoding="utf-8")
        self._file.write(head)
        self._separator = "\n"

    def add(self, entry: dict[str, Any]) -> None:
        self._file.write(f"{self._separator}{json.dumps(entry)}")
        self._separator = ",\n"

    def close(self) -> None:
        try:
            with self._file:
                self._file.write(f"\n{self._tail}\n")
            self._part.replace(self._path)
        except OSError as error:
            raise _no_room(self._path, error, f" ({self._part.name} has what there is)") from None


class _Names:
    """Names of files below one folder, no two of which are the same, or each other's folder.

    Upper and lower case count as the same, as on many disks.
    """

    def __init__(self, taken: Sequence[str]) -> None:
        self._files = {name.casefold() for name in taken}
        self._folders: set[str] = set()

    def free(self, wanted: PurePath) -> PurePath:
        """``wanted``, or if it is taken the name with a number: a_2.jpg, a_3.jpg ..."""
        if any(self._key(parent) in self._files for parent in wanted.parents):
            wanted = PurePath(wanted.name)
        numbered = (wanted.with_stem(f"{wanted.stem}_{i}") for i in count(2))
        taken = self._files | self._folders
        name = next(name for name in chain([wanted], numbered) if self._key(name) not in taken)
        self._files.add(self._key(name))
        self._folders.update(map(self._key, name.parents))
        return name

    def _key(self, name: PurePath) -> str:
        return name.as_posix().casefold()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """As a PNG or JPEG, by the path's ending; (H, W, 3) uint8 in BGR.

    Raises:
        UserError: where it cannot be written.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == ".jpg" else []
    content = cv2.imencode(path.suffix, picture, quality)[1]
    part = path.with_name(f"{_PART}{path.suffix}")
    try:
        part.write_bytes(content.tobytes())
        part.replace(path)
    except OSError as error:
        raise _no_room(path, error) from None
    finally:
        part.unlink(missing_ok=True)


def _no_room(path: Path, error: OSError, kept: str = "") -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror}); make room on the disk, or give another "
        f"--output{kept}."
    )


class Video:
    """A video file that grows frame by frame, under its name once it is closed.

    Args:
        path: of the MP4.
        rate: frames a second.

    Raises:
        UserError: when written to or closed, where that fails.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.num_frames = 0
        self._path, self._rate = path, rate
        self._part = path.with_name(f"{_PART}{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: np.ndarray, times: int = 1) -> None:
        """Adds a frame, (H, W, 3) uint8 in BGR, in the size of the first."""
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            code = cv2.VideoWriter.fourcc(*_FOURCC)
            self._writer = cv2.VideoWriter(str(self._part), code, self._rate, self._size)
            if not self._writer.isOpened():
                raise UserError(
                    f"{self._path}: OpenCV cannot write an MP4 of {self._size[0]} x "
                    f"{self._size[1]} there; give another --output, or install opencv-python, "
                    "which brings its encoder along."
                )
        if frame.shape[1::-1] != self._size:
            frame = cv2.resize(frame, self._size)
        for _ in range(times):
            self._writer.write(frame)
        self.num_frames += times

    def close(self) -> None:
        """Ends the file; without a frame there is none."""
        if self._writer is None:
            return
        self._writer.release()
        capture = cv2.VideoCapture(str(self._part))  # the writer does not tell of a full disk
        kept = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if kept < self.num_frames:
            raise UserError(
                f"{self._path}: only {kept} of {self.num_frames} frames could be written; make "
                f"room on the disk ({self._part.name} has what there is)."
            )
        self._part.replace(self._path)
