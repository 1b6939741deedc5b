"""Inputs of the demo: images, folders, patterns, videos and cameras."""

import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

import cv2
import numpy as np
from PIL import Image

from ...data.images import FORMATS
from ...errors import UserError

_VIDEO_SUFFIX = re.compile(r"\.(avi|flv|m4v|mkv|mov|mp4|mpeg|mpg|mts|ogv|ts|webm|wmv)", re.I)


def is_video(path: PurePath) -> bool:
    """Returns whether a file name has the suffix of a video."""
    return bool(_VIDEO_SUFFIX.fullmatch(path.suffix))


def _is_image(path: PurePath) -> bool:
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def find_sources(inputs: Iterable[str], output: Path) -> tuple[dict[Path, PurePath], list[str]]:
    """Finds the images and videos that ``--input`` names, each file once.

    Args:
        inputs: files, folders, which are searched recursively, and glob patterns. A file without a
            video suffix counts as an image. In folders and patterns, only known suffixes count,
            and hidden files are left out.
        output: the output folder, which is skipped.

    Returns:
        the path of each file and its name in the output: the path below the given folder, else the
        file's name; and the inputs that match nothing.

    Raises:
        UserError: if an input lies in ``output``.
    """
    names: dict[Path, PurePath] = {}
    unmatched = []
    seen = set()
    for text in inputs:
        root = Path(text).expanduser()
        if root.exists() and root.resolve().is_relative_to(output.resolve()):
            raise UserError(f"--output: {output} contains the input {text}; give another folder.")
        files = [root]
        if not root.is_file():
            pattern = f"{glob.escape(str(root))}/**" if root.is_dir() else str(root)
            files = [Path(x) for x in sorted(glob.glob(pattern, recursive=True))]
            files = [x for x in files if x.is_file() and (_is_image(x) or is_video(x))]
            files = [x for x in files if not x.resolve().is_relative_to(output.resolve())]
        if not files:
            unmatched.append(text)
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                names[file] = file.relative_to(root) if root.is_dir() else PurePath(file.name)
    return names, unmatched


class Frames:
    """The frames of a video or a camera, (H, W, 3) uint8 in BGR.

    Args:
        source: a file, or the number of a camera.

    Attributes:
        fps: frames per second.
        count: number of frames that a video states, None if unknown.

    Raises:
        UserError: if the source cannot be opened.
    """

    def __init__(self, source: Path | int) -> None:
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            if isinstance(source, int):
                raise UserError(f"--webcam: OpenCV cannot open camera {source}.")
            raise UserError("OpenCV cannot open it as a video.")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= 1000 else 25.0  # files without a frame rate may state any
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if count > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            ok, frame = self._capture.read()
            if not ok:
                return
            yield frame

    def close(self) -> None:
        self._capture.release()
