"""Checkpoints: written whole, read without running code in them, checked against the model."""

import logging
import math
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from ..errors import UserError, printable
from ..utils import atomic_writer, shorten, write_text
from .safe_pickle import check_archive, load_arrays
from .weights_report import SCORES, WeightsReport, difference, take_shared_classes

logger = logging.getLogger("retinanet_plugin")


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, for files of unknown origin and runs that may be killed.

    ``.pth`` and ``.pyth`` files are read with ``weights_only``; ``.pkl`` files by an unpickler that
    allows only numpy arrays and plain containers. A run is resumed from its newest checkpoint that
    is not damaged.

    Args:
        complete: refuse weights that leave a parameter unset or are of other ``classes``, as for
            evaluation.
        classes: names of the model's classes, saved as "classes"; None: unknown.

    Raises:
        UserError: when loading a file that is absent, unreadable, or does not fit the model.
    """

    def __init__(
        self,
        *args: Any,
        complete: bool = False,
        classes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.complete = complete
        self._classes = list(classes) if classes else None

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name.pth``, all of it or nothing."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data |= {"classes": self._classes} if self._classes else {}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_writer(path) as file:
            torch.save({**data, **kwargs}, file)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def has_checkpoint(self) -> bool:
        return bool(self.save_dir) and has_run(self.save_dir)

    def get_checkpoint_file(self) -> str:
        """Returns the newest checkpoint in the folder that is not damaged, or "".

        Raises:
            UserError: if there are checkpoints, but all are damaged.
        """
        damaged = []
        for path in resumable(self.save_dir):
            fault = fault_of(path)
            if fault is None:
                return str(path)
            damaged.append(f"{path.name} ({printable(fault, 200)})")
            logger.error(f"{self.save_dir}: {damaged[-1]} is damaged; trying the one before it")
        if damaged:
            raise UserError(
                f"{self.save_dir}: all checkpoints are damaged: {shorten(damaged)}; give another "
                "OUTPUT_DIR to start a new run."
            )
        return ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path:
            local_file(path)
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> Any:
        if filename.endswith(".pkl"):
            checkpoint = read_safely(filename)
        elif filename.endswith(".pyth"):  # of pycls
            weights = read_safely(filename).get("model_state")
            checkpoint = {"model": weights, "matching_heuristics": True}
        else:
            checkpoint = super()._load_file(filename)
        weights = checkpoint["model"]
        if not _are_weights(weights):
            content = shorten(weights) if isinstance(weights, dict) else type(weights).__name__
            raise UserError(
                f"MODEL.WEIGHTS: {filename} has no named arrays (it has {printable(content, 99)}); "
                'give a checkpoint of detectron2 or this plugin, or a dict of tensors, "model".'
            )
        return checkpoint

    def _torch_load(self, filename: str) -> Any:
        return read_safely(filename)

    def _load_model(self, checkpoint: Any) -> Any:
        classes = classes_in(checkpoint)
        different = difference(classes, self._classes)
        try:
            if different and not self.complete:
                weights, ours = checkpoint["model"], self._classes or []
                shared = take_shared_classes(weights, self.model, classes or [], ours)
                if shared is not None:
                    logger.info(
                        f"MODEL.WEIGHTS: the checkpoint was trained on other classes: {different}; "
                        "the classification layer keeps the classes that both have "
                        f"({shorten(shared) or 'none'}); the others start from the prior."
                    )
            incompatible = super()._load_model(checkpoint)
        except Exception as error:  # arrays of text, sparse tensors, ...
            reason = printable(str(error).strip().split("\n")[-1].strip(), 200)
            raise UserError(
                f"MODEL.WEIGHTS: the weights cannot be used ({reason}); give a checkpoint of "
                "detectron2 or this plugin."
            ) from None
        report = WeightsReport(self.model, incompatible)
        if report.missing or report.reshaped:
            if self.complete or not report.num_loaded:
                raise UserError(f"MODEL.WEIGHTS: {report}; {report.advice(classes)}.")
            is_new = any(name.startswith(SCORES) for name in report.reshaped)
            note = "; the classification layer starts from the prior" if is_new else ""
            logger.info(f"MODEL.WEIGHTS: {report}{note}.")
        if different and self.complete:
            raise UserError(
                f"MODEL.WEIGHTS: the checkpoint was trained on other classes: {different}; give "
                "the dataset its categories in its order, or weights trained on these."
            )
        return incompatible


def has_run(folder: str | Path) -> bool:
    """Whether a folder has a checkpoint of a run, damaged or not."""
    return bool(resumable(folder))


def resumable(folder: str | Path) -> list[Path]:
    """Returns the checkpoints of a run, newest first: what ``last_checkpoint`` names, then by step.

    ``model_final.pth``, which has no step in its name, comes first, but last if a numbered one is
    named, as after a run was extended.
    """
    steps, file = _steps(folder), Path(folder) / "last_checkpoint"
    last = ""
    if file.is_file():
        with file.open(errors="replace") as opened:
            last = opened.read(100)
    was_extended = any(path.name == last and math.isfinite(step) for path, step in steps.items())

    def newness(path: Path) -> tuple[bool, float]:
        is_old = was_extended and path.stem == "model_final"
        return path.name == last, -1 if is_old else steps[path]

    return sorted(steps, key=newness, reverse=True)


def remove_old(folder: str | Path, keep: int) -> None:
    """Removes the numbered checkpoints of a run except the last ``keep``; 0 keeps all."""
    steps = {path: step for path, step in _steps(folder).items() if math.isfinite(step)}
    for path in sorted(steps, key=steps.__getitem__)[:-keep]:
        path.unlink(missing_ok=True)


def _steps(folder: str | Path) -> dict[Path, float]:
    """The checkpoints of a run, except the best one, which may be old; infinite for the final."""
    name = re.compile(r"model_(?:final|(\d{7,}))\.pth")
    matches = {path: name.fullmatch(path.name) for path in Path(folder).glob("*.pth")}
    return {path: float(match[1] or "inf") for path, match in matches.items() if match}


def fault_of(path: Path) -> str | None:
    """Checks a file of ``torch.save`` by its checksums; returns what is wrong, or None.

    PyTorch's format is a zip archive with a CRC-32 of each tensor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a flipped bit can mean encrypted, compressed, ...
        return str(error) or type(error).__name__
    return f"wrong checksum of {damaged}" if damaged else None


def local_file(path: str, source: str = "MODEL.WEIGHTS") -> str:
    """Returns the local file for a path of weights, downloading it if it is remote.

    Args:
        path: a file, URL or ``detectron2://`` name, perhaps with ``?matching_heuristics=True``.
        source: the key or option that named it, for errors.

    Raises:
        UserError: if there is no such file.
    """
    try:
        local = PathManager.get_local_path(urlparse(path)._replace(query="").geturl())
    except Exception as error:  # no network, HTTP 404, ...
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{source}: cannot download {path} ({reason}); give a local file, or '' to train from "
            "random weights as Base-Scratch-R18.yaml does."
        ) from None
    if not os.path.isfile(local):
        raise UserError(f"{source}: no file {path}; give a local file.")
    return str(local)


def read_classes(path: str) -> list[str] | None:
    """Returns the names of the classes that a checkpoint file was trained on, if it has them."""
    return classes_in(read_safely(path)) if path.endswith(".pth") else None


def classes_in(checkpoint: dict[str, Any]) -> list[str] | None:
    """Returns the names of the classes that a checkpoint was trained on, if it has them."""
    classes = checkpoint.get("classes")
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return classes if is_list and classes else None


def read_safely(path: str, source: str = "MODEL.WEIGHTS") -> dict[str, Any]:
    """Returns the content of a ``.pkl``, or of a ``.pth`` of any framework.

    Args:
        source: the key or option that named the file, for errors.

    Raises:
        UserError: if the file cannot be read.
    """
    is_pickle = path.endswith(".pkl")
    try:
        with open(path, "rb") as file:
            if is_pickle:
                content = load_arrays(file)
            else:
                check_archive(file)
                content = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it is a {type(content).__name__}")
        return _from_zoo(content) if is_pickle else content
    except Exception as error:  # damaged files raise nearly anything
        reason = _short_reason(str(error)) or type(error).__name__
        raise UserError(
            f"{source}: {path} cannot be read safely ({reason}); give a .pth of tensors or a "
            ".pkl of numpy arrays, and download it again if it is incomplete."
        ) from None


def _short_reason(message: str) -> str:
    """The part of a message of ``torch.load`` that is about the file, without its advice."""
    if match := re.search(r"GLOBAL ([\w.]+)", message):
        return f"it asks for {match[1]}"
    if "TorchScript archive" in message:
        return "it is a TorchScript archive, which is a program"
    message = message.rpartition("WeightsUnpickler error: ")[2].strip()
    return printable(re.split(r"\n|\. (?=[A-Z])", message)[0], 200)


def _from_zoo(data: dict[Any, Any]) -> dict[str, Any]:
    """A pickle of detectron2's model zoo, or one of Caffe2 with the keys that detectron2 needs."""
    if "model" in data and "__author__" in data:
        return data
    weights = data.get("blobs", data)  # Caffe2's detection models nest them
    if isinstance(weights, dict):
        weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _are_weights(weights: object) -> bool:
    return (
        isinstance(weights, dict)
        and all(isinstance(k, str) for k in weights)
        and any(isinstance(v, torch.Tensor | np.ndarray) for v in weights.values())
        and not any(isinstance(v, dict) for v in weights.values())
    )
