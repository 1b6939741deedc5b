"""What a person names to look at: pictures, folders of them, patterns, videos."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np

from ...errors import UserError

# Endings, in lower case
PICTURES = frozenset(
    f".{x}"
    for x in (
        *("avif", "bmp", "gif", "jfif", "jp2", "jpeg", "jpg", "mpo", "pbm", "pgm", "png", "pnm"),
        *("ppm", "tif", "tiff", "webp"),
    )
)
VIDEOS = frozenset(
    f".{x}"
    for x in (
        *("avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm"),
        "wmv",
    )
)
_USUAL_RATE = 25.0  # frames a second, where none is told
_HIGHEST_RATE = 1000.0  # what some containers tell in place of none is beyond it


@dataclass(frozen=True)
class Source:
    """A picture, or a video.

    Args:
        path: the file.
        name: what it is called in the output: the file's name, of a folder's files with the way
            from there.
    """

    path: Path
    name: PurePath

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find(words: Iterable[str], output: Path) -> tuple[list[Source], list[str]]:
    """All that the words of a command line name, each file once.

    Args:
        words: files, which are videos by their endings, else pictures; folders, which are gone
            through to their ends, and patterns such as ``shots/**/*.jpg``: of these only known
            endings count, and hidden files do not.
        output: the folder of what is written, which is no input.

    Returns:
        the sources, and the words that name nothing.

    Raises:
        UserError: for a word that names ``output``, or what lies in it.
    """
    found: dict[Path, Source] = {}
    absent = []
    written = output.resolve()
    for word in words:
        path = Path(word).expanduser()
        if path.exists() and path.resolve().is_relative_to(written):
            raise UserError(
                f"--output: {output} holds the input {word}; give another folder, so that nothing "
                "of yours is replaced."
            )
        if path.is_file():
            sources = [Source(path, PurePath(path.name))]
        else:
            matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
            roots = [path] if path.exists() else matches
            sources = [source for root in roots for source in _below(root, written)]
        if not sources:
            absent.append(word)
        for source in sources:
            found.setdefault(source.path.resolve(), source)
    return list(found.values()), absent


def _below(root: Path, written: Path) -> Iterator[Source]:
    """Pictures and videos in a folder, or the one file that ``root`` is, but for what we write."""
    if not root.is_dir():
        files = [root]
    else:
        files = []
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(x for x in folders if not x.startswith("."))
            files += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    for file in files:
        if file.suffix.lower() in PICTURES | VIDEOS and not file.resolve().is_relative_to(written):
            name = file.relative_to(root) if file != root else file.name
            yield Source(file, PurePath(name))


class Frames:
    """The frames of a video or camera, (H, W, 3) uint8 in BGR, turned upright.

    Args:
        source: a file, or a camera's number.

    Attributes:
        rate: frames a second.
        count: of a file, as it tells; None: unknown.

    Raises:
        UserError: where it cannot be opened.
    """

    def __init__(self, source: Path | int) -> None:
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            self.close()
            raise UserError(
                "no such camera, or another program has it"
                if isinstance(source, int)
                else "it cannot be opened as a video, by the decoders that OpenCV has"
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= _HIGHEST_RATE else _USUAL_RATE
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if count > 0 and not isinstance(source, int) else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield frame

    def close(self) -> None:
        self._capture.release()


def camera(number: int) -> Frames:
    """The frames of a camera, without end.

    Raises:
        UserError: where there is none.
    """
    try:
        return Frames(number)
    except UserError as error:
        raise UserError(f"--webcam: {number}: {error}; give another number.") from None
