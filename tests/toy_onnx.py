"""An ONNX file as tools.export writes it, made in no time, whose detections are easily foretold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
toy (uint8[batch, height, width, 3] pictures) => (
    float[batch, 3, 4] boxes, float[batch, 3] scores, int64[batch, 3] classes,
    int64[batch] num_detections
) {
    pixels = Cast <to = 1> (pictures)
    inner = Constant <value_ints = [1, 2]> ()
    mean = ReduceMean <keepdims = 0> (pixels, inner)
    white = Constant <value_float = 255.0> ()
    share = Div (mean, white)
    three = Constant <value_ints = [3]> ()
    best, which = TopK <axis = 1> (share, three)
    least = Constant <value_float = 0.05> ()
    found = Greater (best, least)
    is_there = Cast <to = 1> (found)
    ones = Cast <to = 7> (found)
    scores = Mul (best, is_there)
    classes = Mul (which, ones)
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    num_detections = ReduceSum <keepdims = 0> (ones, one)
    height = Shape <start = 1, end = 2> (pictures)
    width = Shape <start = 2, end = 3> (pictures)
    half = Div (width, two)
    zero = Constant <value_ints = [0]> ()
    corners = Concat <axis = 0> (zero, zero, half, height)
    box = Cast <to = 1> (corners)
    columns = Unsqueeze (is_there, two)
    boxes = Mul (columns, box)
}
"""
METADATA: dict[str, Any] = {
    "format": "retinanet_plugin 1",
    "classes": ["blue", "green", "röd"],
    "category_ids": [3, 5, 9],
    "input": {"name": "pictures", "layout": "nhwc", "channels": "BGR", "dtype": "uint8"},
    "resize": {"short_side": 24, "long_side": 40},
    "score_threshold": 0.05,
}


def write_toy(path: Path, **metadata: Any) -> Path:
    """Class and score are a channel and its mean, where above 0.05; each box is the left half."""
    onnx = pytest.importorskip("onnx")
    metadata = {**METADATA, **metadata}
    graph = _GRAPH
    if metadata["input"]["layout"] == "nchw":
        given = "float[batch, 3, height, width] given"
        graph = graph.replace("uint8[batch, height, width, 3] pictures", given)
        turned = "pictures = Transpose <perm = [0, 2, 3, 1]> (given)"
        graph = graph.replace("{\n", f"{{\n    {turned}\n", 1)
    model = onnx.parser.parse_model(graph)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def foretold(picture: np.ndarray) -> tuple[list[list[float]], list[float], list[int]]:
    """Boxes, scores and classes that the file finds in a picture (H, W, 3) of its channels."""
    means = picture.reshape(-1, 3).mean(axis=0) / 255
    order = [i for i in np.argsort(-means).tolist() if means[i] > 0.05]
    height, width = picture.shape[:2]
    return [[0.0, 0.0, width // 2, height]] * len(order), means[order].tolist(), order
