"""The demo itself: runs a model on images, videos and a camera, and records what it detects."""

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import cv2
import numpy as np
from tqdm import tqdm

from ...data.images import read_image, reason_of
from ...errors import UserError, printable
from ...evaluation.drawing import draw, enlargement
from ...predictor import Predictor
from .inputs import Frames
from .outputs import Outputs


class Demo:
    """Runs a model on sources and skips those that cannot be read.

    Attributes:
        num_failed: how many sources could not be read.
    """

    def __init__(self, predictor: Predictor, outputs: Outputs) -> None:
        self._predictor = predictor
        self._outputs = outputs
        self.num_failed = 0

    def fail(self, name: str, reason: str) -> None:
        """Reports a source that is skipped, above the progress bar."""
        self.num_failed += 1
        tqdm.write(f"skipped: {printable(name)}: {printable(reason)}", file=sys.stderr)

    def run_images(self, sources: Sequence[tuple[Path, PurePath]]) -> None:
        """Draws images, given by file and name; only one batch of them is in memory at a time."""
        pending: deque[tuple[Path, PurePath, np.ndarray]] = deque()

        def read() -> Iterator[np.ndarray]:
            for file, name in tqdm(sources, desc="images", unit="image", disable=not sources):
                try:
                    image = read_image(str(file), "BGR")
                except Exception as error:  # PIL's decoders raise nearly anything
                    self.fail(str(file), reason_of(error))
                    continue
                pending.append((file, name, image))
                yield image

        for detections in self._predictor.stream(read()):
            file, name, image = pending.popleft()
            path = self._outputs.path_for(name, is_video=False)
            scale = enlargement(*image.shape[:2])
            drawn = draw(image, detections, self._predictor.classes, scale)
            path.write_bytes(cv2.imencode(path.suffix, drawn)[1].tobytes())
            self._outputs.add(detections, str(file), path)

    def run_video(self, file: Path, name: PurePath) -> None:
        """Draws a video frame by frame."""
        try:
            frames = Frames(file)
        except UserError as error:
            return self.fail(str(file), str(error))
        if not self.run_frames(frames, str(file), name):
            self.fail(str(file), "no frame can be read")

    def run_frames(self, frames: Frames, label: str, name: PurePath, *, live: bool = False) -> int:
        """Draws each frame and returns their number; frames drawn before Ctrl-C are kept.

        A live video takes as long as it was watched: a network slower than the camera repeats
        frames.
        """
        pending: deque[tuple[np.ndarray, float]] = deque()
        num_frames = num_written = 0
        writer = None

        def read() -> Iterator[np.ndarray]:
            total = None if live else frames.count
            for frame in tqdm(frames, desc=printable(label, 40), unit="frame", total=total):
                pending.append((frame, time.monotonic()))
                yield frame

        start = time.monotonic()
        try:
            for detections in self._predictor.stream(read(), batch_size=1 if live else None):
                frame, seen = pending.popleft()
                if writer is None:
                    path = self._outputs.path_for(name, is_video=True)
                    writer = _open_writer(path, frames.fps, frame)
                drawn = draw(frame, detections, self._predictor.classes)
                due = round((seen - start) * frames.fps) + 1 - num_written if live else 1
                for _ in range(due):
                    writer.write(drawn)
                num_written += max(due, 0)
                self._outputs.add(detections, label, path, frame=num_frames)
                num_frames += 1
        finally:
            frames.close()
            if writer is not None:
                writer.release()
        return num_frames


def _open_writer(path: Path, fps: float, frame: np.ndarray) -> cv2.VideoWriter:
    """Opens an MP4 file for frames of one size, in the codec that OpenCV always has."""
    height, width = frame.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise UserError(
            f"{path}: OpenCV cannot write an MP4 of {width} x {height}; give another --output, or "
            "install opencv-python, which includes the encoder."
        )
    return writer
