"""Inputs of the demo: images, folders, patterns, videos and cameras."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np
from PIL import Image

from ...data.images import FORMATS
from ...errors import UserError

_VIDEO_SUFFIX = re.compile(r"\.(avi|flv|m4v|mkv|mov|mp4|mpeg|mpg|mts|ogv|ts|webm|wmv)", re.I)
_DEFAULT_FPS = 25.0  # for videos that do not state it
_MAX_FPS = 1000.0  # containers without a frame rate may state absurd ones


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Args:
        path: the file.
        name: relative path of the output: the file's name, or its path below the given folder.
    """

    path: Path
    name: PurePath

    @property
    def is_video(self) -> bool:
        return bool(_VIDEO_SUFFIX.fullmatch(self.path.suffix))

    @property
    def is_image(self) -> bool:
        return Image.registered_extensions().get(self.path.suffix.lower()) in FORMATS


def find_sources(inputs: Iterable[str], output: Path) -> tuple[list[Source], list[str]]:
    """Finds the images and videos that ``--input`` names, each file once.

    Args:
        inputs: files, folders, which are searched recursively, and glob patterns. A file without a
            video suffix counts as an image. In folders and patterns, only known suffixes count,
            and hidden files are left out.
        output: the output folder, which is skipped.

    Returns:
        the sources, and the inputs that match nothing.

    Raises:
        UserError: if an input lies in ``output``.
    """
    sources: dict[Path, Source] = {}
    unmatched = []
    for text in inputs:
        path = Path(text).expanduser()
        if path.exists() and path.resolve().is_relative_to(output.resolve()):
            raise UserError(f"--output: {output} contains the input {text}; give another folder.")
        if path.is_file():
            matches = [Source(path, PurePath(path.name))]
        else:
            roots = [path] if path.exists() else map(Path, sorted(glob.glob(text, recursive=True)))
            matches = [x for root in roots for x in _search(root)]
            matches = [x for x in matches if not x.path.resolve().is_relative_to(output.resolve())]
        if not matches:
            unmatched.append(text)
        for source in matches:
            sources.setdefault(source.path.resolve(), source)
    return list(sources.values()), unmatched


def _search(root: Path) -> Iterator[Source]:
    """Yields the images and videos below a folder, or ``root`` itself if it is one."""
    files = [root] if root.is_file() else []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(x for x in subfolders if not x.startswith("."))
        files += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    for file in files:
        source = Source(file, PurePath(file.name if file == root else file.relative_to(root)))
        if source.is_image or source.is_video:
            yield source


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
        is_camera = isinstance(source, int)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            if is_camera:
                raise UserError(f"--webcam: cannot open camera {source}; give another number.")
            raise UserError("OpenCV cannot open it as a video")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= _MAX_FPS else _DEFAULT_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if count > 0 and not is_camera else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            ok, frame = self._capture.read()
            if not ok:
                return
            yield frame

    def close(self) -> None:
        self._capture.release()
