"""Checkpoints read without running what they hold, and mistakes about them as sentences."""

import os
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from ..errors import UserError

# All that the pickles of detectron2's model zoo need: numpy arrays, in numpy 1's and 2's spelling.
_HARMLESS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and plain containers; anything else could run code when loaded."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _load_arrays(file: BinaryIO) -> Any:
    return _ArrayUnpickler(file, encoding="latin1").load()


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer for files of unknown origin.

    ``.pth`` files are read with ``weights_only``, ``.pkl`` files by an unpickler that admits numpy
    arrays and plain containers alone. A file that cannot be had or read is a :class:`UserError`.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path:
            local_file(path)
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> Any:
        if filename.endswith(".pkl"):
            data = self._read(filename, _load_arrays)
            if not isinstance(data, dict):
                raise UserError(f"MODEL.WEIGHTS: {filename} holds no mapping of names to arrays.")
            if "model" in data and "__author__" in data:  # detectron2's model zoo
                return data
            weights = data.get("blobs", data)  # Caffe2's detection models nest them
            weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        return self._read(filename, lambda _: super(SafeCheckpointer, self)._load_file(filename))

    def _torch_load(self, filename: str) -> Any:
        with PathManager.open(filename, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)

    def _read(self, filename: str, read: Callable[[BinaryIO], Any]) -> Any:
        try:
            with open(filename, "rb") as file:
                return read(file)
        except (
            *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError),
            *(AssertionError, AttributeError, IndexError, ImportError, OSError, zipfile.BadZipFile),
        ) as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(
                f"MODEL.WEIGHTS: {filename} is no checkpoint that can be read safely ({reason}); "
                "give a .pth of tensors or a .pkl of numpy arrays, or fetch the file anew if it is "
                "cut short."
            ) from None


def local_file(path: str) -> str:
    """The file on this machine for ``MODEL.WEIGHTS``, downloaded if it is remote.

    Raises:
        UserError: if there is none.
    """
    try:
        local = PathManager.get_local_path(path)
    except Exception as error:  # whatever the handler of a scheme raises: no network, 404, ...
        reason = str(error).split("\n")[0]
        raise UserError(
            f"MODEL.WEIGHTS: {path} cannot be downloaded ({reason}); give a file on this machine, "
            "or '' to start from random weights, as Base-Scratch-R18.yaml does."
        ) from None
    if not os.path.isfile(local):
        raise UserError(
            f"MODEL.WEIGHTS: no file {path}; give a file on this machine, or '' to start from "
            "random weights."
        )
    return str(local)
