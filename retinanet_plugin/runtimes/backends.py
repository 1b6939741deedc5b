"""Loaders of exported files, one per runtime."""

import functools
import importlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..errors import UserError

OUTPUTS = ("boxes", "scores", "classes", "num_detections")
METADATA = "metadata.json"  # within .pt2 and TorchScript files, which are zip archives
_MAX_METADATA_BYTES = 2**24  # the names of a thousand classes are far fewer

# Maps the input of an exported model to its OUTPUTS.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


def optional_import(module: str) -> ModuleType:
    """Imports an optional dependency.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(f"{package} is not installed; run `pip install {package}`.") from None


def _load_onnxruntime(path: Path, device: str) -> tuple[Run, dict[str, Any]]:
    onnxruntime = optional_import("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CUDAExecutionProvider"] * (device != "cpu") + ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    stored = session.get_modelmeta().custom_metadata_map
    (given,) = session.get_inputs()
    metadata = {key: json.loads(value) for key, value in stored.items()}
    return lambda images: session.run(None, {given.name: images}), metadata


def _load_openvino(path: Path, device: str) -> tuple[Run, dict[str, Any]]:
    core = _openvino_core(optional_import("openvino"))
    model = core.read_model(path)
    # Without the hint it computes in bfloat16 on processors that support it.
    threads = torch.get_num_threads()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", settings)
    stored = model.get_rt_info()["framework"] if model.has_rt_info(["framework"]) else {}
    metadata = {key: json.loads(value.astype(str)) for key, value in stored.items()}

    def run(images: np.ndarray) -> list[np.ndarray]:
        outputs = compiled(images)
        return [outputs[name] for name in OUTPUTS]

    return run, metadata


@functools.cache
def _openvino_core(openvino: Any) -> Any:
    """Returns the one Core of this process, which is never destroyed.

    A Core installs an alternate signal stack and restores the previous one when it ends. With two
    of them, the second restores a stack that the first has freed: the next signal would crash.
    """
    return openvino.Core()


def _load_program(path: Path, device: str, load: Callable[..., Any]) -> tuple[Run, dict[str, Any]]:
    metadata = _stored_metadata(path)
    module = load(path, device)

    @torch.inference_mode()
    def run(images: np.ndarray) -> list[np.ndarray]:
        return [x.cpu().numpy() for x in module(torch.from_numpy(images).to(device))]

    return run, metadata


def _stored_metadata(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            is_metadata = entry.filename.endswith(f"extra/{METADATA}")
            if is_metadata and entry.file_size <= _MAX_METADATA_BYTES:
                metadata: dict[str, Any] = json.loads(archive.read(entry))
                return metadata
    return {}


# Each takes a path and a device, and returns what runs the file and its metadata.
BACKENDS: dict[str, Callable[[Path, str], tuple[Run, dict[str, Any]]]] = {
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
    "pt2": functools.partial(_load_program, load=lambda path, _: torch.export.load(path).module()),
    "torchscript": functools.partial(_load_program, load=torch.jit.load),
}
