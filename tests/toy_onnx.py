"""A tiny ONNX file in the format of ``retinanet export``, with predictable detections."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
toy (uint8[batch, height, width, 3] images) => (
    float[batch, 3, 4] boxes, float[batch, 3] scores, int64[batch, 3] classes,
    int64[batch] num_detections
) {
    pixels = Cast <to = 1> (images)
    inner = Constant <value_ints = [1, 2]> ()
    mean = ReduceMean <keepdims = 0> (pixels, inner)
    white = Constant <value_float = 255.0> ()
    share = Div (mean, white)
    three = Constant <value_ints = [3]> ()
    best, index = TopK <axis = 1> (share, three)
    threshold = Constant <value_float = 0.05> ()
    above = Greater (best, threshold)
    is_there = Cast <to = 1> (above)
    ones = Cast <to = 7> (above)
    scores = Mul (best, is_there)
    classes = Mul (index, ones)
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    num_detections = ReduceSum <keepdims = 0> (ones, one)
    height = Shape <start = 1, end = 2> (images)
    width = Shape <start = 2, end = 3> (images)
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
    "input": {"name": "images", "layout": "nhwc", "channels": "BGR", "dtype": "uint8"},
    "resize": {"short_side": 24, "long_side": 40},
    "score_threshold": 0.05,
}


def write_toy(path: Path, **metadata: Any) -> Path:
    """Writes a detector: per channel with a mean above 0.05, its mean as score, the left half."""
    onnx = pytest.importorskip("onnx")
    metadata = {**METADATA, **metadata}
    graph = _GRAPH
    if metadata["input"]["layout"] == "nchw":
        given = "float[batch, 3, height, width] given"
        graph = graph.replace("uint8[batch, height, width, 3] images", given)
        transposed = "images = Transpose <perm = [0, 2, 3, 1]> (given)"
        graph = graph.replace("{\n", f"{{\n    {transposed}\n", 1)
    model = onnx.parser.parse_model(graph)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, str(path))
    return path


def predicted(image: np.ndarray) -> tuple[list[list[float]], list[float], list[int]]:
    """Returns the boxes, scores and classes that the file detects in an image (H, W, 3)."""
    means = image.reshape(-1, 3).mean(axis=0) / 255
    order = [i for i in np.argsort(-means).tolist() if means[i] > 0.05]
    height, width = image.shape[:2]
    return [[0.0, 0.0, width // 2, height]] * len(order), means[order].tolist(), order
