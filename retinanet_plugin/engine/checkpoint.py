"""Checkpoints read without running what they hold, and mistakes about them as sentences."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from ..errors import UserError, printable
from .atomic_io import fault_of, has_run, resumable, written_whole
from .safe_pickle import check_stored, load_arrays

_SCORES = "head.cls_score.weight"


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer for files of unknown origin.

    ``.pth`` and ``.pyth`` files are read with ``weights_only``, ``.pkl`` files by an unpickler that
    admits numpy arrays and plain containers alone.

    Args:
        complete: refuse weights that leave any parameter as it was, or are of other ``classes``, as
            evaluation must.
        classes: names of the model's classes, saved beside it under "classes"; None: unknown.

    Raises:
        UserError: when loading a file that cannot be had, read, or fits nothing in the model.
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
        """Writes ``name.pth``, which is whole or absent whatever happens meanwhile.

        Raises:
            OSError: if it cannot be written; what was there before is left as it was.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data |= {"classes": self._classes} if self._classes else {}
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {file}")
        try:
            with written_whole(file) as whole:
                torch.save({**data, **kwargs}, whole)
        except RuntimeError as error:  # by which PyTorch says that the file refused
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(f"{file}: {str(error).splitlines()[0]}") from None
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with written_whole(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        return bool(self.save_dir) and has_run(self.save_dir)

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint in the folder that is whole; damaged ones are reported.

        Raises:
            UserError: if there are some, and all are damaged.
        """
        faults = []
        for file in resumable(Path(self.save_dir)):
            fault = fault_of(file)
            if fault is None:
                return str(file)
            faults.append(f"{file} is damaged ({printable(fault, 200)})")
            logging.getLogger("retinanet_plugin").error(
                f"{faults[-1]}; the checkpoint before it is used, if there is one"
            )
        if faults:
            raise UserError(
                f"{self.save_dir}: no checkpoint is whole: {'; '.join(faults[:3])}; give another "
                "OUTPUT_DIR to start anew."
            )
        return ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path:
            local_file(path)
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # which the base leaves set when it fails

    def _load_file(self, filename: str) -> Any:
        kind = Path(filename).suffix
        if kind == ".pkl":
            checkpoint = _of_zoo(self._read(filename, load_arrays), filename)
        elif kind == ".pyth":
            weights = self._read(filename, lambda _: self._torch_load(filename)).get("model_state")
            checkpoint = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        else:
            checkpoint = self._read(filename, lambda _: self._load_tensors(filename))
        weights = checkpoint["model"]
        if not _are_weights(weights):
            found = (
                f"it holds {_shortened(weights)}" if isinstance(weights, dict) else "it holds none"
            )
            raise UserError(
                f"MODEL.WEIGHTS: {filename} is no checkpoint of named arrays ({found}); give one "
                'written by detectron2 or this plugin, or a dictionary of tensors under "model".'
            )
        return checkpoint

    def _load_tensors(self, filename: str) -> Any:
        return super()._load_file(filename)

    def _torch_load(self, filename: str) -> Any:
        check_stored(filename)
        with PathManager.open(filename, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)

    def _read(self, filename: str, read: Callable[[BinaryIO], Any]) -> Any:
        try:
            with open(filename, "rb") as file:
                content = read(file)
            if not isinstance(content, dict):
                raise TypeError(f"it holds a {type(content).__name__}")
            return content
        except Exception as error:  # what is damaged raises nearly anything
            reason = _why_unreadable(str(error)) or type(error).__name__
            raise UserError(
                f"MODEL.WEIGHTS: {filename} is no checkpoint that can be read safely ({reason}); "
                "give a .pth of tensors or a .pkl of numpy arrays, or fetch the file anew if it is "
                "cut short."
            ) from None

    def _load_model(self, checkpoint: Any) -> Any:
        theirs = classes_in(checkpoint)
        differing = _differing(theirs, self._classes)
        try:
            if differing and not self.complete:
                self._take_shared_classes(checkpoint["model"], theirs or [], differing)
            incompatible = super()._load_model(checkpoint)
        except Exception as error:  # of arrays of text, sparse tensors, ...
            reason = printable(str(error).strip().split("\n")[-1].strip(), 200)
            raise UserError(
                f"MODEL.WEIGHTS: the checkpoint's weights cannot be used ({reason}); give one "
                'written by detectron2 or this plugin, or a dictionary of tensors under "model".'
            ) from None
        parameters = [name for name, _ in self.model.named_parameters()]
        shapes = {name: others for name, *others in incompatible.incorrect_shapes}
        absent = [x for x in parameters if x in set(incompatible.missing_keys) - shapes.keys()]
        reshaped = [x for x in parameters if x in shapes]
        used = len(parameters) - len(absent) - len(reshaped)
        if used < len(parameters):
            counts = _counted(len(parameters), absent, reshaped, shapes, incompatible)
            if self.complete or not used:
                raise UserError(
                    f"MODEL.WEIGHTS: {counts}; {self._remedy(absent, reshaped, theirs)}."
                )
            initial = "; the class convolution starts from the prior" if _SCORES in shapes else ""
            logging.getLogger("retinanet_plugin").info(f"MODEL.WEIGHTS: {counts}{initial}.")
        if differing and self.complete:
            raise UserError(
                f"MODEL.WEIGHTS: the checkpoint was trained on other classes: {differing}; name "
                "the categories of the data set as there and in that order, or give weights that "
                "were trained on these."
            )
        return incompatible

    def _take_shared_classes(
        self, weights: dict[str, Any], theirs: list[str], differing: str
    ) -> None:
        """Makes the class convolution that of the classes here.

        Those that the checkpoint has under their names keep their outputs; the others get the
        initial ones, at the prior.
        """
        names, ours = self._classes or [], self.model.state_dict()
        shared = [name for name in names if name in theirs]
        here, there = ([x.index(name) for name in shared] for x in (names, theirs))
        moved = {}
        for name in (_SCORES, _SCORES.replace("weight", "bias")):
            initial, given = ours.get(name), weights.get(name)
            if initial is None or given is None:
                return
            num_anchors = len(initial) // len(names)
            if given.shape != (num_anchors * len(theirs), *initial.shape[1:]):
                return  # other anchors, which fit nowhere
            moved[name] = initial.unflatten(0, (num_anchors, -1)).clone()  # (A, K, ...)
            given = torch.as_tensor(given).unflatten(0, (num_anchors, -1))
            moved[name][:, here] = given[:, there].to(initial)
        weights.update({name: rows.flatten(0, 1) for name, rows in moved.items()})
        how = "starts from the prior"
        if shared:
            how = (
                f"keeps, by name, the outputs of {len(shared)} classes ({_shortened(shared)}), and "
                "starts from the prior for others"
            )
        logging.getLogger("retinanet_plugin").info(
            f"MODEL.WEIGHTS: the checkpoint was trained on other classes: {differing}; the class "
            f"convolution {how}."
        )

    def _remedy(self, absent: list[str], reshaped: list[str], theirs: list[str] | None) -> str:
        """What to do about weights that do not fit."""
        if reshaped and not absent and all(x.startswith("head.") for x in reshaped):
            known = f" (there: {len(theirs)}, {_shortened(theirs)})" if theirs else ""
            return (
                f"the backbone fits, but not the head: give the config that they were trained "
                f"with, above all MODEL.RETINANET.NUM_CLASSES{known} and the anchors"
            )
        if any(x.startswith("backbone.") for x in (*absent, *reshaped)):
            return (
                "that is another backbone, or another kind of model: give the config that they "
                "were trained with (MODEL.RESNETS.DEPTH and NORM, MODEL.FPN), or weights of this "
                "model"
            )
        return "give weights of this model, or the config that they were trained with"


def _why_unreadable(said: str) -> str:
    """The part of an error of reading that a person can use; PyTorch's is advice on its options."""
    if asked := re.search(r"GLOBAL ([\w.]+)", said):
        return f"it asks for {asked[1]}"
    if "TorchScript archive" in said:
        return "it is a TorchScript archive, which is a program"
    said = said.rpartition("WeightsUnpickler error: ")[2].strip()
    if said.startswith("Unsupported operand"):
        return "PyTorch has not written it"
    return printable(re.split(r"\n|\. (?=[A-Z])", said)[0], 200)


def classes_in(checkpoint: dict[str, Any]) -> list[str] | None:
    """The names of the classes that a checkpoint was trained on; None where it does not tell."""
    classes = checkpoint.get("classes")
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return classes if is_list and classes else None


def _counted(
    num_parameters: int,
    absent: list[str],
    reshaped: list[str],
    shapes: dict[str, Any],
    incompatible: Any,
) -> str:
    """How many parameters of the model the checkpoint gives, with the first of those it lacks."""
    parts = [
        f"the checkpoint gives {num_parameters - len(absent) - len(reshaped)} of the model's "
        f"{num_parameters} parameters"
    ]
    if reshaped:
        there, here = shapes[reshaped[0]]
        parts.append(
            f"{len(reshaped)} are of another shape there ({reshaped[0]} is {tuple(there)} there "
            f"and {tuple(here)} here)"
        )
    if absent:
        parts.append(f"{len(absent)} are absent there ({_shortened(absent)})")
    if unexpected := incompatible.unexpected_keys:
        parts.append(f"{len(unexpected)} of its own are not used ({_shortened(unexpected)})")
    return ", ".join(parts)


def _differing(theirs: list[str] | None, ours: list[str] | None) -> str:
    """In what two lists of classes differ, in words; nothing where they do not, or are unknown."""
    if not theirs or not ours or theirs == ours:
        return ""
    if len(theirs) != len(ours):
        return f"{len(theirs)} ({_shortened(theirs)}), here {len(ours)} ({_shortened(ours)})"
    pairs = [(i, a, b) for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
    number, there, here = pairs[0]
    return f'{len(pairs)} of {len(ours)} differ, class {number} is "{there}" there, "{here}" here'


def _of_zoo(data: dict[Any, Any], filename: str) -> dict[str, Any]:
    """A pickle of detectron2's zoo as it is, or one of Caffe2's under the names it needs."""
    if "model" in data and "__author__" in data:
        return data
    weights = data.get("blobs", data)  # Caffe2's detection models nest them
    if isinstance(weights, dict):
        weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _are_weights(weights: object) -> bool:
    return (
        isinstance(weights, dict)
        and len(weights) > 0
        and all(isinstance(k, str) for k in weights)
        and any(isinstance(v, torch.Tensor | np.ndarray) for v in weights.values())
        and not any(isinstance(v, dict) for v in weights.values())
    )


def _shortened(names: Iterable[Any], most: int = 3) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def local_file(path: str, source: str = "MODEL.WEIGHTS") -> str:
    """The file on this machine for a path of weights, downloaded if it is remote.

    Args:
        path: file, URL or ``detectron2://`` name, perhaps with ``?matching_heuristics=True``.
        source: the key or file that names it.

    Raises:
        UserError: if there is none.
    """
    is_start = source == "MODEL.WEIGHTS"  # of training, which can begin without
    otherwise = ", or '' to start from random weights" if is_start else ""
    try:
        local = PathManager.get_local_path(urlparse(path)._replace(query="").geturl())
    except Exception as error:  # whatever the handler of a scheme raises: no network, 404, ...
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{source}: {path} cannot be downloaded ({reason}); give a file on this machine"
            f"{otherwise and f'{otherwise}, as Base-Scratch-R18.yaml does'}."
        ) from None
    if not os.path.isfile(local):
        raise UserError(f"{source}: no file {path}; give a file on this machine{otherwise}.")
    return str(local)


def read_classes(path: str) -> list[str] | None:
    """The names of the classes that the checkpoint in a file was trained on, if it tells.

    Raises:
        UserError: if the file cannot be read.
    """
    return classes_in(read_safely(path)) if Path(path).suffix == ".pth" else None


def read_safely(path: str) -> dict[str, Any]:
    """What a ``.pkl``, or a ``.pth`` of whatever framework, holds.

    Raises:
        UserError: if the file cannot be read.
    """
    checkpointer = SafeCheckpointer(nn.Module())
    if Path(path).suffix == ".pkl":
        return _of_zoo(checkpointer._read(path, load_arrays), path)
    content: dict[str, Any] = checkpointer._read(path, lambda _: checkpointer._torch_load(path))
    return content
