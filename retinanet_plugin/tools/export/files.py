"""A detector written as ONNX, as a program of ``torch.export``, or as traced TorchScript."""

import copy
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...runtimes.exported_files import METADATA, needed
from .detector import OUTPUTS, PictureDetector
from .onnx_nms import select_by_onnx, translations

FORMATS = ("onnx", "pt2", "torchscript")
INPUT = "pictures"
_DIMENSIONS = ("batch", "height", "width")


@torch.no_grad()
def write(
    detector: PictureDetector,
    path: Path,
    file_format: str,
    metadata: Mapping[str, Any],
    *,
    input_dtype: torch.dtype = torch.uint8,
    compiled: bool = False,
) -> None:
    """Writes one file, which takes batches of any number, height and width of pictures.

    Args:
        detector: in evaluation mode.
        file_format: one of ``FORMATS``.
        metadata: that JSON can hold; the file holds it, each value as JSON.
        input_dtype: of the pictures, uint8 or float32.
        compiled: of a .pt2, for this kind of machine, by AOTInductor: needs a C++ compiler.

    Raises:
        UserError: if what writes it is not installed, or cannot.
    """
    example = example_of(detector, input_dtype)
    try:
        with _quiet():
            if file_format == "torchscript":
                script = torch.jit.trace(detector, example, check_trace=False)
                script.save(str(path), _extra_files={METADATA: _text(metadata)})
            elif file_format == "pt2":
                _write_pt2(detector, example, path, metadata, compiled=compiled)
            else:
                _write_onnx(detector, example, path, metadata)
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters raise nearly anything
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--format {file_format}: PyTorch {torch.__version__} cannot export this model "
            f"({type(error).__name__}: {reason}); with PyTorch 2.14 it can, unless a part of your "
            "own cannot be traced: docs/export.md."
        ) from error


def example_of(detector: PictureDetector, dtype: torch.dtype) -> Tensor:
    """Two black pictures to trace it with, so large that the last level has 2 rows and 3 columns.

    That is 224 x 288 pixels with the usual levels.
    """
    sides = detector.last_stride * 7 // 4, detector.last_stride * 9 // 4
    example = torch.zeros((2, *sides, 3), dtype=dtype, device=detector.pixel_mean.device)
    return example.permute(0, 3, 1, 2).contiguous() if detector.layout == "nchw" else example


def _write_pt2(
    detector: PictureDetector,
    example: Tensor,
    path: Path,
    metadata: Mapping[str, Any],
    *,
    compiled: bool,
) -> None:
    program = _program(detector, example)
    text = _text(metadata)
    if not compiled:
        torch.export.save(program, path, extra_files={METADATA: text})
        return
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--compile: AOTInductor cannot compile the model here ({type(error).__name__}: "
            f"{reason}); install a C++ compiler such as g++, or leave --compile out."
        ) from None
    with zipfile.ZipFile(path, "a") as archive:
        top = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{top}/extra/{METADATA}", text)


def _write_onnx(
    detector: PictureDetector, example: Tensor, path: Path, metadata: Mapping[str, Any]
) -> None:
    onnx = needed("onnx", "onnx")
    needed("onnxscript", "onnxscript")
    detector = copy.copy(detector)
    detector.select = select_by_onnx(detector.decoder.num_classes)
    program = torch.onnx.export(
        _program(detector, example),
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
        model.metadata_props.add(key=key, value=_text(value))
    onnx.save(model, str(path))


def _text(value: Any) -> str:
    """As JSON, in which names stay readable in any language."""
    return json.dumps(value, ensure_ascii=False)


def _program(detector: PictureDetector, example: Tensor) -> Any:
    """Of ``torch.export``, without the traces that name files of this machine."""
    places = (0, 1, 2) if detector.layout == "nhwc" else (0, 2, 3)
    least = (1, detector.smallest_side, detector.smallest_side)
    dynamic = {
        place: torch.export.Dim(name, min=smallest)
        for place, name, smallest in zip(places, _DIMENSIONS, least, strict=True)
    }
    program = torch.export.export(detector, (example,), dynamic_shapes=(dynamic,), strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _clean(model: Any) -> None:
    """Names of dimensions for people, and nothing of this machine's files."""
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.metadata_props[:]
    sizes = [x for x in graph.input[0].type.tensor_type.shape.dim if x.dim_param]
    names = {x.dim_param: name for x, name in zip(sizes, _DIMENSIONS, strict=True)}
    for value in (*graph.value_info, *graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(
                    r"\w+", lambda word: names.get(word[0], word[0]), size.dim_param
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
