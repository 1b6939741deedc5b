"""Files beside the checkpoints, as on a disk that is full: what cannot be written is said and left
out, and the run goes on."""

import atexit
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.utils.events import EventWriter, get_event_storage

from .atomic_io import written_whole

logger = logging.getLogger("retinanet_plugin")


def cannot(do: str, file: Path | str, error: OSError) -> str:
    """``FILE cannot be written (No space left on device)``."""
    return f"{file} cannot be {do} ({error.strerror or error})"


def remove(files: Iterable[Path]) -> bool:
    """Whether what earlier evaluations left is gone; what cannot be removed is said."""
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        logger.error(f"{cannot('removed', file, error)}; it is of an earlier evaluation")
        return False
    return True


class LastingWriter(EventWriter):
    """Another writer of metrics whose files, if they cannot be written, do not end the run."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self._failures = 0  # in a row

    def write(self) -> None:
        failures = self._failures
        self._try(self._writer.write)
        if self._failures > failures:  # else TensorBoard's would be kept until they are written
            storage = get_event_storage()
            storage.clear_images()
            storage.clear_histograms()

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
            self._failures = 0
        except OSError as error:
            self._failures += 1
            if self._failures == 1:
                logger.error(
                    f"metrics cannot be written ({error.strerror or error}); training goes on, and "
                    "lines of theirs may be absent"
                )
            if self._failures.bit_count() == 1:
                # TensorBoard's has failed for good, but another may not: now and then a new file.
                vars(self._writer).pop("_writer", None)


class _Lasting:
    """detectron2's evaluators, which write the detections before they measure them.

    Here that is the last thing they do, and no more than said where it fails.
    """

    _FILE: str
    _output_dir: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The base would also write all of it once more, as a .pth that nothing reads.
        self._folder, self._output_dir = self._output_dir, None

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], *args: Any, **kwargs: Any
    ) -> Any:
        super()._eval_predictions(predictions, *args, **kwargs)  # type: ignore[misc]
        # Category ids are the data set's now; COCO's API has added keys of its own.
        keys = ("image_id", "category_id", "bbox", "score")
        found = [{k: x[k] for k in keys} for p in predictions for x in p["instances"]]
        file = Path(self._folder) / self._FILE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as whole:
                whole.write(json.dumps(found).encode())
        except OSError as error:
            logger.error(f"{cannot('written', file, error)}; what was measured is right without it")


class LastingCOCOEvaluator(_Lasting, COCOEvaluator):
    _FILE = "coco_instances_results.json"


class LastingLVISEvaluator(_Lasting, LVISEvaluator):
    _FILE = "lvis_instances_results.json"


def no_traceback_of_logs() -> None:
    """Logs and TensorBoard's files that cannot be written print no traceback a line, or at the end.

    To be called once logs have been set up; for commands, as it holds for the whole process.
    """
    logging.raiseExceptions = False
    threading.excepthook = _excepthook
    for name in ("detectron2", "fvcore", "retinanet_plugin"):
        for handler in logging.getLogger(name).handlers:
            stream: Any = getattr(handler, "stream", None)
            if str(getattr(stream, "name", "")).startswith(os.sep):  # not <stdout>
                atexit.unregister(stream.close)  # detectron2's
                atexit.register(_close, stream)


def _close(stream: Any) -> None:
    with suppress(OSError):
        stream.close()


def _excepthook(args: threading.ExceptHookArgs) -> None:
    is_tensorboards = type(args.thread).__module__.startswith("tensorboard")
    if not (is_tensorboards and isinstance(args.exc_value, OSError)):
        threading.__excepthook__(args)
