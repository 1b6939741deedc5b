"""Writers of a detector as ONNX, as a ``torch.export`` program or as traced TorchScript."""

import copy
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...runtimes.backends import METADATA, OUTPUTS, optional_import
from .detector import ImageDetector
from .onnx_nms import onnx_nms, translations

INPUT = "images"
_DIMENSIONS = ("batch", "height", "width")


@torch.no_grad()
def write(
    detector: ImageDetector,
    path: Path,
    file_format: str,
    metadata: Mapping[str, Any],
    input_dtype: torch.dtype = torch.uint8,
) -> None:
    """Writes one file, which accepts batches of any number, height and width of images.

    Args:
        detector: in eval mode.
        file_format: one of ``exported_files.FORMATS``.
        metadata: stored in the file, each value as JSON.
        input_dtype: of the images, uint8 or float32.

    Raises:
        UserError: if a required package is not installed, or the model cannot be exported.
    """
    example = _example_input(detector, input_dtype)
    extra = {METADATA: json.dumps(metadata, ensure_ascii=False)}
    try:
        with _quiet_exporters():
            if file_format == "torchscript":
                script = torch.jit.trace(detector, example, check_trace=False)
                script.save(str(path), _extra_files=extra)
            elif file_format == "onnx":
                _write_onnx(detector, example, path, metadata)
            else:
                program = _export_program(detector, example)
                torch.export.save(program, path, extra_files=extra)
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters raise nearly anything
        first_line = str(error).strip().split("\n")[0]
        raise UserError(
            f"--format {file_format}: PyTorch {torch.__version__} cannot export this model "
            f"({type(error).__name__}: {first_line}); use PyTorch 2.14, and traceable code for "
            "your own parts (docs/export.md)."
        ) from error


def _example_input(detector: ImageDetector, dtype: torch.dtype) -> Tensor:
    """Returns two black images for tracing, with 2 rows and 3 columns in the last level.

    They have 224 x 288 pixels with the usual levels.
    """
    stride = max(x.stride for x in detector.backbone.output_shape().values())
    size = (2, stride * 7 // 4, stride * 9 // 4, 3)
    example = torch.zeros(size, dtype=dtype, device=detector.pixel_mean.device)
    return example.permute(0, 3, 1, 2).contiguous() if detector.layout == "nchw" else example


def _export_program(detector: ImageDetector, example: Tensor) -> Any:
    """Runs ``torch.export`` and removes stack traces, which name files of this machine."""
    dims = (0, 1, 2) if detector.layout == "nhwc" else (0, 2, 3)
    dynamic = {
        dim: torch.export.Dim(name, min=1) for dim, name in zip(dims, _DIMENSIONS, strict=True)
    }
    program = torch.export.export(detector, (example,), dynamic_shapes=(dynamic,), strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _write_onnx(
    detector: ImageDetector, example: Tensor, path: Path, metadata: Mapping[str, Any]
) -> None:
    onnx = optional_import("onnx")
    optional_import("onnxscript")
    detector = copy.copy(detector)
    detector.nms = partial(onnx_nms, num_classes=detector.decoder.num_classes)
    program = torch.onnx.export(
        _export_program(detector, example),
        dynamo=True,
        custom_translation_table=translations(),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _clean(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    onnx.save(model, str(path))


def _clean(model: Any) -> None:
    """Gives dimensions readable names and removes what refers to this machine's files."""
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.metadata_props[:]
    symbols = [x.dim_param for x in graph.input[0].type.tensor_type.shape.dim if x.dim_param]
    names = dict(zip(symbols, _DIMENSIONS, strict=True))
    for value in (*graph.value_info, *graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda x: names.get(x[0], x[0]), size.dim_param)


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Suppresses the exporters' messages to their own developers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
