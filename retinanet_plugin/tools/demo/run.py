"""From pictures, videos and a camera to what is drawn and noted of them."""

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePath

import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ...data.images import read_picture, reason_of
from ...errors import UserError, printable
from ...evaluation.drawing import draw, enlargement
from ...predictor import Predictor
from .inputs import Frames, Source
from .outputs import Outputs, Video, write_picture


class Demo:
    """Runs a model over what it is given, and goes on after what cannot be read.

    Args:
        predictor: the model.
        outputs: where to.

    Attributes:
        failed: names of what could not be read.
        done: how many pictures, videos and cameras are drawn, whole or to where they were stopped.
    """

    def __init__(self, predictor: Predictor, outputs: Outputs) -> None:
        self._predictor = predictor
        self._outputs = outputs
        self.failed: list[str] = []
        self.done = 0

    def fail(self, name: str, reason: str) -> None:
        """Says what is skipped, and why, above the line of progress."""
        self.failed.append(name)
        tqdm.write(f"skipped: {printable(name)}: {printable(reason)}", file=sys.stderr)

    def pictures(self, sources: Sequence[Source]) -> None:
        """Pictures, a batch of which is in memory at a time."""
        if not sources:
            return
        pending: deque[tuple[Source, np.ndarray]] = deque()
        with tqdm(total=len(sources), desc="pictures", unit="picture") as bar:

            def read() -> Iterator[np.ndarray]:
                for source in sources:
                    try:
                        picture = read_picture(str(source.path), "BGR")
                    except Exception as error:  # PIL's decoders raise nearly everything
                        self.fail(str(source.path), reason_of(error))
                        bar.update()
                        continue
                    pending.append((source, picture))
                    yield picture

            for found in self._predictor.stream(read()):
                source, picture = pending.popleft()
                path = self._outputs.path_for(source.name, is_video=False)
                enlarge = enlargement(*picture.shape[:2])
                write_picture(path, draw(picture, found, self._predictor.classes, enlarge))
                self._note(found, str(source.path), path)
                self.done += 1
                bar.update()

    def video(self, source: Source) -> None:
        """A video, frame by frame; what is drawn until Ctrl-C is kept."""
        try:
            frames = Frames(source.path)
        except UserError as error:
            self.fail(str(source.path), str(error))
            return
        with closing(frames):
            number = self._film(frames, str(source.path), source.name)
        if number == 0:
            self.fail(str(source.path), "it has no frame that can be read")
        elif frames.count and number < 0.99 * frames.count:  # what containers tell is not exact
            self.fail(str(source.path), f"only {number} of {frames.count} frames can be read")

    def camera(self, frames: Frames, name: str) -> None:
        """What a camera sees, until Ctrl-C."""
        self._film(frames, name, PurePath(name), live=True)

    def _film(self, frames: Frames, label: str, name: PurePath, *, live: bool = False) -> int:
        """Draws each frame; returns their number.

        A live video is as long as it was watched: a network is slower than a camera, so a frame is
        repeated until the next.
        """
        predictor, given = self._predictor, deque[tuple[np.ndarray, float]]()
        number = 0
        video: Video | None = None

        def read() -> Iterator[np.ndarray]:
            for frame in frames:
                given.append((frame, time.monotonic()))
                yield frame

        start = time.monotonic()
        bar = tqdm(total=frames.count, desc=printable(label, 40), unit="frame")
        try:
            for found in predictor.stream(read(), batch_size=1 if live else None):
                frame, at = given.popleft()
                if video is None:
                    path = self._outputs.path_for(name, is_video=True)
                    video = Video(path, frames.rate)
                drawn = draw(frame, found, predictor.classes)
                due = round((at - start) * frames.rate) + 1 - video.num_frames
                video.write(drawn, times=max(due, 0) if live else 1)
                self._note(found, label, path, frame=number)
                number += 1
                bar.update()
        finally:
            bar.close()
            if video is not None:
                self.done += 1
                video.close()
        return number

    def _note(self, found: Instances, label: str, drawn: Path, **more: int) -> None:
        name = drawn.relative_to(self._outputs.folder).as_posix()
        self._outputs.add(found, file_name=label, **more, drawn=name)

    def summary(self, highest: float | None) -> str:
        """What was found, in a sentence.

        Args:
            highest: score of all, also below the threshold, if known.
        """
        outputs, threshold = self._outputs, self._predictor.score_threshold
        if outputs.num_images and not outputs.num_detections:
            most = "" if highest is None else f"; the highest score seen is {highest:.3g}"
            return f"No detection scores above {threshold:g}{most}."
        return (
            f"{outputs.num_detections} detections above {threshold:g} in {outputs.num_images} "
            "pictures and frames."
        )
