"""The demo itself: runs a model on images, videos and a camera, and records what it detects."""

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePath

import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ...data.images import read_image, reason_of
from ...errors import UserError, printable
from ...evaluation.drawing import draw, enlargement
from ...predictor import Predictor
from .inputs import Frames, Source
from .outputs import Outputs, Video, write_image


class Demo:
    """Runs a model on sources and skips those that cannot be read.

    Attributes:
        num_failed: how many sources could not be read.
        num_done: how many are drawn, including a video that Ctrl-C cut short.
    """

    def __init__(self, predictor: Predictor, outputs: Outputs) -> None:
        self._predictor = predictor
        self._outputs = outputs
        self.num_failed = self.num_done = 0

    def fail(self, name: str, reason: str) -> None:
        """Reports a source that is skipped, above the progress bar."""
        self.num_failed += 1
        tqdm.write(f"skipped: {printable(name)}: {printable(reason)}", file=sys.stderr)

    def run_images(self, sources: Sequence[Source]) -> None:
        """Draws images, of which one batch is in memory at a time."""
        pending: deque[tuple[Source, np.ndarray]] = deque()
        with tqdm(total=len(sources), desc="images", unit="image", disable=not sources) as bar:

            def read() -> Iterator[np.ndarray]:
                for source in sources:
                    try:
                        image = read_image(str(source.path), "BGR")
                    except Exception as error:  # PIL's decoders raise nearly anything
                        self.fail(str(source.path), reason_of(error))
                        bar.update()
                        continue
                    pending.append((source, image))
                    yield image

            for detections in self._predictor.stream(read()):
                source, image = pending.popleft()
                path = self._outputs.path_for(source.name, is_video=False)
                scale = enlargement(*image.shape[:2])
                write_image(path, draw(image, detections, self._predictor.classes, scale))
                self._record(detections, str(source.path), path)
                self.num_done += 1
                bar.update()

    def run_video(self, source: Source) -> None:
        """Draws a video frame by frame."""
        name = str(source.path)
        try:
            frames = Frames(source.path)
        except UserError as error:
            self.fail(name, str(error))
            return
        with closing(frames):
            count = self._run_frames(frames, name, source.name)
        if count == 0:
            self.fail(name, "no frame can be read")
        elif frames.count and count < 0.99 * frames.count:  # stated counts are not exact
            self.fail(name, f"only {count} of {frames.count} frames can be read")

    def run_camera(self, frames: Frames, name: str) -> None:
        """Draws a camera's frames until Ctrl-C."""
        with closing(frames):
            self._run_frames(frames, name, PurePath(name), live=True)

    def _run_frames(self, frames: Frames, label: str, name: PurePath, *, live: bool = False) -> int:
        """Draws each frame and returns their number; frames drawn before Ctrl-C are kept.

        A live video takes as long as it was watched: a network slower than the camera repeats
        frames.
        """
        pending: deque[tuple[np.ndarray, float]] = deque()
        count = 0
        video: Video | None = None

        def read() -> Iterator[np.ndarray]:
            for frame in frames:
                pending.append((frame, time.monotonic()))
                yield frame

        start = time.monotonic()
        bar = tqdm(total=frames.count, desc=printable(label, 40), unit="frame")
        try:
            for detections in self._predictor.stream(read(), batch_size=1 if live else None):
                frame, seen = pending.popleft()
                if video is None:
                    path = self._outputs.path_for(name, is_video=True)
                    video = Video(path, frames.fps, (frame.shape[1], frame.shape[0]))
                drawn = draw(frame, detections, self._predictor.classes)
                due = round((seen - start) * frames.fps) + 1 - video.num_frames
                video.write(drawn, repeat=max(due, 0) if live else 1)
                self._record(detections, label, path, frame=count)
                count += 1
                bar.update()
        finally:
            bar.close()
            if video is not None:
                self.num_done += 1
                video.close()
        return count

    def _record(self, detections: Instances, label: str, drawn: Path, **frame: int) -> None:
        name = drawn.relative_to(self._outputs.folder).as_posix()
        self._outputs.add(detections, file_name=label, **frame, drawn=name)

    def summary(self, highest: float | None) -> str:
        """Describes the result.

        Args:
            highest: the highest score of all, also below the threshold, if known.
        """
        outputs, threshold = self._outputs, self._predictor.score_threshold
        if outputs.num_images and not outputs.num_detections:
            rest = "" if highest is None else f"; the highest is {highest:.3g}"
            return f"No detection scores above {threshold:g}{rest}."
        return (
            f"{outputs.num_detections} detections above {threshold:g} in {outputs.num_images} "
            "images and frames."
        )
