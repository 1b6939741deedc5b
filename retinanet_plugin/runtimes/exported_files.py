"""Exported files run behind one interface: ``load(path)(pictures)``.

    from retinanet_plugin.runtimes.exported_files import load

    detect = load("model.onnx")
    boxes, scores, classes = detect(picture[None])[0]
    names = [detect.classes[i] for i in classes]

A ``.pt2`` or TorchScript file is a program: load those alone that you would also run.
"""

import functools
import importlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ..errors import UserError, printable
from ..modeling.registry import one_of
from ..tools.export.detector import LAYOUTS, OUTPUTS

# Outputs, by the order of OUTPUTS, of an input as the file wants it.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]

METADATA = "metadata.json"  # in the zip archives that .pt2 and TorchScript files are
_LARGEST_METADATA = 2**24  # bytes; a thousand classes' names are far less


class Detections(NamedTuple):
    """Of one picture, by falling score."""

    boxes: np.ndarray  # (D, 4) float32, XYXY in pixels of the picture
    scores: np.ndarray  # (D,) float32
    classes: np.ndarray  # (D,) int64


class Runtime:
    """An exported detector.

    Args:
        run: the outputs, named in ``detector.OUTPUTS``, of an input as the metadata describe it.
        metadata: what the file says of itself, see docs/export.md.
        name: of what runs it.

    Attributes:
        classes: names by class index.
    """

    def __init__(self, run: Run, metadata: dict[str, Any], name: str) -> None:
        self._run, self.metadata, self.name = run, metadata, name
        self.classes: list[str] = metadata["classes"]

    def __call__(self, pictures: np.ndarray) -> list[Detections]:
        """Detections of each picture.

        Args:
            pictures: (N, H, W, 3), uint8, in the order ``metadata["input"]["channels"]``, already
                resized as ``metadata["resize"]`` says.
        """
        wanted = self.metadata["input"]
        if wanted["layout"] == "nchw":
            pictures = pictures.transpose(0, 3, 1, 2)
        outputs = self._run(np.ascontiguousarray(pictures, dtype=wanted["dtype"]))
        boxes, scores, classes, counts = outputs
        return [
            Detections(boxes[i, :count], scores[i, :count], classes[i, :count])
            for i, count in enumerate(counts.tolist())
        ]


class DetectronModel:
    """A :class:`Runtime` called as detectron2 calls a model: for its evaluators.

    Args:
        channels: of the pictures that it is given, ``INPUT.FORMAT``.
    """

    def __init__(self, runtime: Runtime, channels: str) -> None:
        self._runtime = runtime
        self._flips = channels != runtime.metadata["input"]["channels"]

    def __call__(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Of each dict with an ``image`` (3, H, W), and perhaps ``height`` and ``width``.

        Pictures of one size go through the file together, others one by one.
        """
        images = [x["image"].permute(1, 2, 0).numpy() for x in batched_inputs]
        if self._flips:
            images = [x[:, :, ::-1] for x in images]
        alike = len({x.shape for x in images}) == 1
        batches = [np.stack(images)] if alike else [x[None] for x in images]
        found = [one for batch in batches for one in self._runtime(batch)]
        return [
            {"instances": _instances(one, given)}
            for one, given in zip(found, batched_inputs, strict=True)
        ]


def _instances(found: Detections, given: dict[str, Any]) -> Instances:
    """As detectron2's models give them, at the size that is asked for."""
    height, width = given["image"].shape[1:]
    instances = Instances(
        (height, width),
        pred_boxes=Boxes(torch.from_numpy(found.boxes.copy())),
        scores=torch.from_numpy(found.scores.copy()),
        pred_classes=torch.from_numpy(found.classes.copy()),
    )
    size = given.get("height", height), given.get("width", width)
    return detector_postprocess(instances, *size)


def load(path: str | Path, device: str = "cpu", runtime: str = "onnxruntime") -> Runtime:
    """What runs an exported file, told by its content.

    Args:
        device: "cpu", or "cuda" where the file and its runtime can: what .pt2 and TorchScript files
            were exported for.
        runtime: of ONNX files, "onnxruntime" or "openvino", which always works on the CPU.

    Raises:
        UserError: for a file that is none of ours, or whose runtime is not installed.
    """
    path = Path(path).expanduser()
    kind = kind_of(path)
    one_of(runtime, ONNX_RUNTIMES, "runtime")
    if kind == "onnx":
        kind = runtime
    try:
        run, metadata = RUNTIMES[kind](path, device)
    except UserError:
        raise
    except Exception as error:  # what is damaged raises nearly anything
        reason = printable(str(error).strip().split("\n")[0], 200) or type(error).__name__
        raise UserError(
            f"{path}: {kind} cannot load it ({reason}); export the model anew, with the versions "
            "that it is to run on."
        ) from None
    lacking = [key for key in _NEEDED if not _is_right(key, metadata)]
    if lacking:
        raise UserError(
            f"{path}: its metadata lack {', '.join(lacking)} as retinanet_plugin.tools.export.command "
            "writes them; export the model anew."
        )
    return Runtime(run, metadata, kind)


# What others rely on, and whether a value is such.
_NEEDED: dict[str, Callable[[Any], bool]] = {
    "format": lambda x: isinstance(x, str),
    "classes": lambda x: isinstance(x, list) and all(isinstance(name, str) for name in x),
    "category_ids": lambda x: isinstance(x, list) and all(isinstance(i, int) for i in x),
    "input": lambda x: (
        x["layout"] in LAYOUTS
        and x["channels"] in ("BGR", "RGB")
        and x["dtype"] in ("uint8", "float32")
    ),
    "resize": lambda x: all(isinstance(x[side], int) for side in ("short_side", "long_side")),
    "score_threshold": lambda x: isinstance(x, int | float),
}


def _is_right(key: str, metadata: dict[str, Any]) -> bool:
    try:
        return _NEEDED[key](metadata[key])
    except (KeyError, TypeError):
        return False


def kind_of(path: Path) -> str:
    """Of ONNX files "onnx", of others a key of ``RUNTIMES``.

    Raises:
        UserError: if the file is not there.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give one that retinanet_plugin.tools.export.command wrote."
        )
    if not zipfile.is_zipfile(path):
        return "onnx"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    is_script = any(name.endswith("/constants.pkl") for name in names)
    is_compiled = any("/data/aotinductor/" in name for name in names)
    return "torchscript" if is_script else "aotinductor" if is_compiled else "pt2"


def needed(module: str, package: str) -> ModuleType:
    """An optional library.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{package} is not installed; `pip install {package}`.") from None


def _onnx(path: Path, device: str) -> tuple[Run, dict[str, Any]]:
    runtime = needed("onnxruntime", "onnxruntime")
    providers = ["CPUExecutionProvider"]
    if device != "cpu":
        providers.insert(0, "CUDAExecutionProvider")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=providers)
    stored = session.get_modelmeta().custom_metadata_map
    (given,) = session.get_inputs()
    metadata = {key: json.loads(value) for key, value in stored.items() if key in stored}
    return lambda pictures: session.run(None, {given.name: pictures}), metadata


def _openvino(path: Path, device: str) -> tuple[Run, dict[str, Any]]:
    openvino = needed("openvino", "openvino")
    core = _core_of(openvino)
    model = core.read_model(path)
    # Without the hint it computes in bfloat16 where the processor can.
    threads = torch.get_num_threads()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", settings)
    stored = model.get_rt_info()["framework"] if model.has_rt_info(["framework"]) else {}
    metadata = {key: json.loads(value.astype(str)) for key, value in stored.items()}

    def run(pictures: np.ndarray) -> list[np.ndarray]:
        outputs = compiled(pictures)
        return [outputs[name] for name in OUTPUTS]

    return run, metadata


@functools.cache
def _core_of(openvino: Any) -> Any:
    """The one of this process, which stays.

    Each sets the stack that signals are handled on, and restores the one before as it ends. Of two,
    the second would restore what the first has freed: the next signal were a segmentation fault.
    """
    return openvino.Core()


def _pt2(path: Path, device: str) -> tuple[Run, dict[str, Any]]:
    metadata = _metadata_in(path)
    module = torch.export.load(path).module()
    return _by_torch(module, device), metadata


def _aotinductor(path: Path, device: str) -> tuple[Run, dict[str, Any]]:
    metadata = _metadata_in(path)
    return _by_torch(torch._inductor.aoti_load_package(str(path)), device), metadata


def _torchscript(path: Path, device: str) -> tuple[Run, dict[str, Any]]:
    metadata = _metadata_in(path)
    return _by_torch(torch.jit.load(path, map_location=device), device), metadata


ONNX_RUNTIMES = ("onnxruntime", "openvino")
# By name: the function and the metadata of the file at a path, on a device.
RUNTIMES: dict[str, Callable[[Path, str], tuple[Run, dict[str, Any]]]] = {
    "onnxruntime": _onnx,
    "openvino": _openvino,
    "pt2": _pt2,
    "aotinductor": _aotinductor,
    "torchscript": _torchscript,
}


def _by_torch(module: Callable[..., Sequence[torch.Tensor]], device: str) -> Run:
    @torch.inference_mode()
    def run(pictures: np.ndarray) -> list[np.ndarray]:
        outputs = module(torch.from_numpy(pictures).to(device))
        return [x.cpu().numpy() for x in outputs]

    return run


def _metadata_in(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            is_ours = entry.filename.endswith(f"extra/{METADATA}")
            if is_ours and entry.file_size <= _LARGEST_METADATA:
                metadata: dict[str, Any] = json.loads(archive.read(entry))
                return metadata
    return {}
