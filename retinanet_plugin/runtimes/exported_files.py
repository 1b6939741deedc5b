"""Exported files as models with the calling convention of detectron2.

``.pt2`` and TorchScript files are programs: load only files that you would also run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ..errors import UserError, did_you_mean, printable
from .backends import BACKENDS, Run

FORMATS = ("onnx", "pt2", "torchscript")  # also the suffixes of the files
ONNX_RUNTIMES = ("onnxruntime", "openvino")
LAYOUTS, CHANNELS, INPUT_DTYPES = ("nhwc", "nchw"), ("BGR", "RGB"), ("uint8", "float32")


class ExportedModel:
    """An exported detector, called like detectron2's models.

    Args:
        run: maps an input that the metadata describe to the arrays named in ``OUTPUTS``.
        metadata: the file's own description of itself, see docs/deploy.md.
        runtime: the name of what runs it.

    Attributes:
        classes: names by class index.
        input_format: channels of the images that it is called with; initially the file's own.
    """

    def __init__(self, run: Run, metadata: dict[str, Any], runtime: str) -> None:
        self._run, self.metadata, self.runtime = run, metadata, runtime
        self.classes: list[str] = metadata["classes"]
        self.input_format: str = metadata["input"]["channels"]

    def __call__(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Returns ``{"instances": Instances}`` per input, on the CPU.

        Images of one size form a batch, others go through the file one by one.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W) and optionally the ``height`` and
                ``width`` that the boxes are scaled to.
        """
        expected = self.metadata["input"]
        images = [x["image"].numpy() for x in batched_inputs]
        if self.input_format != expected["channels"]:
            images = [x[::-1] for x in images]
        if expected["layout"] == "nhwc":
            images = [x.transpose(1, 2, 0) for x in images]
        same_size = len({x.shape for x in images}) == 1
        batches = [np.stack(images)] if same_size else [x[None] for x in images]
        results: list[tuple[Any, ...]] = []
        for batch in batches:
            outputs = self._run(np.ascontiguousarray(batch, dtype=expected["dtype"]))
            results += zip(*outputs, strict=True)
        return [
            {"instances": _to_instances(x, *result)}
            for x, result in zip(batched_inputs, results, strict=True)
        ]


def _to_instances(
    given: dict[str, Any], boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, count: int
) -> Instances:
    height, width = given["image"].shape[1:]
    instances = Instances(
        (height, width),
        pred_boxes=Boxes(torch.from_numpy(boxes[:count].copy())),
        scores=torch.from_numpy(scores[:count].copy()),
        pred_classes=torch.from_numpy(classes[:count].copy()),
    )
    size = given.get("height", height), given.get("width", width)
    return detector_postprocess(instances, *size)


def is_exported(path: str | Path) -> bool:
    """Returns whether a file name has the suffix of an exported model."""
    return Path(path).suffix.removeprefix(".") in FORMATS


def load(path: str | Path, device: str = "cpu", runtime: str = "onnxruntime") -> ExportedModel:
    """Loads an exported file.

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
    file_format = path.suffix.removeprefix(".")
    name = runtime if file_format == "onnx" else file_format
    try:
        run, metadata = BACKENDS[name](path, device)
    except UserError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        reason = printable(str(error).strip().split("\n")[0], 200) or type(error).__name__
        raise UserError(f"{path}: {name} cannot load it ({reason}); export it again.") from None
    if not _is_valid(metadata):
        raise UserError(f"{path}: `retinanet export` did not write its metadata; export it again.")
    return ExportedModel(run, metadata, name)


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
