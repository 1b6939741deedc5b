"""Exported models run behind one interface: ``load(path)(images)``.

    from retinanet_plugin.runtimes.exported_files import load

    detect = load("model.onnx")
    boxes, scores, classes = detect(image[None])[0]
    names = [detect.classes[i] for i in classes]

``.pt2`` and TorchScript files are programs: load only files that you would also run.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ..errors import UserError, did_you_mean, printable
from .backends import BACKENDS, Run

FORMATS = ("onnx", "pt2", "torchscript")  # also the suffixes of the files
ONNX_RUNTIMES = ("onnxruntime", "openvino")
LAYOUTS, CHANNELS, INPUT_DTYPES = ("nhwc", "nchw"), ("BGR", "RGB"), ("uint8", "float32")


class Detections(NamedTuple):
    """The D detections of one image, by descending score."""

    boxes: np.ndarray  # (D, 4) float32, XYXY in pixels of the image
    scores: np.ndarray  # (D,) float32
    classes: np.ndarray  # (D,) int64


class Runtime:
    """An exported detector.

    Args:
        run: maps an input that the metadata describe to the arrays named in ``OUTPUTS``.
        metadata: the file's own description of itself, see docs/deploy.md.
        name: the runtime's name.

    Attributes:
        classes: names by class index.
    """

    def __init__(self, run: Run, metadata: dict[str, Any], name: str) -> None:
        self._run, self.metadata, self.name = run, metadata, name
        self.classes: list[str] = metadata["classes"]

    def __call__(self, images: np.ndarray) -> list[Detections]:
        """Returns the detections of each image.

        Args:
            images: (N, H, W, 3) uint8 with the channels ``metadata["input"]["channels"]``, resized
                as ``metadata["resize"]`` says.
        """
        expected = self.metadata["input"]
        if expected["layout"] == "nchw":
            images = images.transpose(0, 3, 1, 2)
        outputs = self._run(np.ascontiguousarray(images, dtype=expected["dtype"]))
        boxes, scores, classes, counts = outputs
        return [
            Detections(boxes[i, :count], scores[i, :count], classes[i, :count])
            for i, count in enumerate(counts.tolist())
        ]


class DetectronModel:
    """A :class:`Runtime` with the calling convention of detectron2's models, for its evaluators.

    Args:
        channels: channel order of the given images, ``INPUT.FORMAT``.
    """

    def __init__(self, runtime: Runtime, channels: str) -> None:
        self._runtime = runtime
        self._flip = channels != runtime.metadata["input"]["channels"]

    def __call__(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Returns ``{"instances": Instances}`` per input.

        Images of one size form a batch, others go through the file one by one.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W) and optionally the ``height`` and
                ``width`` that the boxes are scaled to.
        """
        images = [x["image"].permute(1, 2, 0).numpy() for x in batched_inputs]
        if self._flip:
            images = [x[:, :, ::-1] for x in images]
        same_size = len({x.shape for x in images}) == 1
        batches = [np.stack(images)] if same_size else [x[None] for x in images]
        detections = [x for batch in batches for x in self._runtime(batch)]
        return [
            {"instances": _to_instances(*pair)}
            for pair in zip(detections, batched_inputs, strict=True)
        ]


def _to_instances(detections: Detections, given: dict[str, Any]) -> Instances:
    height, width = given["image"].shape[1:]
    instances = Instances(
        (height, width),
        pred_boxes=Boxes(torch.from_numpy(detections.boxes.copy())),
        scores=torch.from_numpy(detections.scores.copy()),
        pred_classes=torch.from_numpy(detections.classes.copy()),
    )
    size = given.get("height", height), given.get("width", width)
    return detector_postprocess(instances, *size)


def load(path: str | Path, device: str = "cpu", runtime: str = "onnxruntime") -> Runtime:
    """Loads an exported file; its content, not its suffix, decides what runs it.

    Args:
        device: "cpu" or "cuda"; .pt2 and TorchScript files run on the one they were exported for.
        runtime: runs ONNX files: "onnxruntime", or "openvino", which always uses the CPU.

    Raises:
        UserError: if this plugin did not export the file, or its runtime is not installed.
    """
    path = Path(path).expanduser()
    if runtime not in ONNX_RUNTIMES:
        raise UserError(
            f'runtime: unknown value "{runtime}"{did_you_mean(runtime, ONNX_RUNTIMES)}; known: '
            f"{', '.join(ONNX_RUNTIMES)}."
        )
    name = _program_format(path) or runtime
    try:
        run, metadata = BACKENDS[name](path, device)
    except UserError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        reason = printable(str(error).strip().split("\n")[0], 200) or type(error).__name__
        raise UserError(f"{path}: {name} cannot load it ({reason}); export it again.") from None
    if not _is_valid(metadata):
        raise UserError(f"{path}: `retinanet export` did not write its metadata; export it again.")
    return Runtime(run, metadata, name)


def _is_valid(metadata: dict[str, Any]) -> bool:
    try:
        given, resize = metadata["input"], metadata["resize"]
        return (
            isinstance(metadata["classes"], list)
            and all(isinstance(x, str) for x in metadata["classes"])
            and all(isinstance(x, int) for x in metadata["category_ids"])
            and len(metadata["category_ids"]) == len(metadata["classes"])
            and given["layout"] in LAYOUTS
            and given["channels"] in CHANNELS
            and given["dtype"] in INPUT_DTYPES
            and all(isinstance(resize[side], int) for side in ("short_side", "long_side"))
            and isinstance(metadata["score_threshold"], int | float)
        )
    except (KeyError, TypeError):
        return False


def _program_format(path: Path) -> str | None:
    """Returns which of PyTorch's zip archives a file is; None for all others, so for ONNX."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that `retinanet export` wrote.")
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    return "aotinductor" if any("/data/aotinductor/" in name for name in names) else "pt2"
