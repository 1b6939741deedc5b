"""Exported files in place of a checkpoint, in each runtime for ONNX."""

import gc
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_onnx import METADATA, predicted, write_toy

from retinanet_plugin import UserError, get_config
from retinanet_plugin.runtimes.exported_files import (
    ONNX_RUNTIMES,
    ExportedModel,
    is_exported,
    load,
)
from retinanet_plugin.runtimes.network import load_network

each_runtime = pytest.mark.parametrize("name", ONNX_RUNTIMES)


def toy(tmp_path: Path, name: str, **metadata: object) -> ExportedModel:
    pytest.importorskip(name)
    return load(write_toy(tmp_path / "toy.onnx", **metadata), runtime=name)


@each_runtime
def test_batches_of_any_size(tmp_path: Path, name: str) -> None:
    model = toy(tmp_path, name)
    assert (model.runtime, model.metadata, model.classes) == (name, METADATA, METADATA["classes"])
    for shape in ((1, 4, 6), (3, 9, 5), (2, 30, 40)):
        images = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        images[0, :, :, 1] = 0
        images[-1:] //= 40 if shape[0] > 1 else 1  # nothing to detect in the last one
        results = model([{"image": torch.from_numpy(x).permute(2, 0, 1)} for x in images])
        assert len(results) == shape[0] and len(results[0]["instances"]) == 2
        for result, image in zip(results, images, strict=True):
            boxes, scores, classes = predicted(image)
            assert result["instances"].pred_boxes.tensor.tolist() == boxes
            assert result["instances"].pred_classes.tolist() == classes
            np.testing.assert_allclose(result["instances"].scores, scores, atol=1e-6)


def network(path: Path, *overrides: str, **options: object) -> object:
    keys = ["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu", *overrides]
    return load_network(get_config(overrides=keys), **options)


@each_runtime
def test_in_place_of_the_network(tmp_path: Path, name: str) -> None:
    """Channels are the config's, and boxes refer to the requested size."""
    pytest.importorskip(name)
    path = write_toy(tmp_path / "toy.onnx")
    image = torch.zeros((3, 20, 10), dtype=torch.uint8)
    image[2] = 51
    for channels, class_id in (("BGR", 2), ("RGB", 0)):
        model, runtime, classes = network(path, "INPUT.FORMAT", channels, runtime=name)
        assert (runtime, classes) == (name, METADATA["classes"])
        (one, two) = model([{"image": image, "height": 40, "width": 30}, {"image": image}])
        assert one["instances"].pred_classes.tolist() == [class_id]
        assert one["instances"].scores.tolist() == pytest.approx([0.2])
        assert one["instances"].pred_boxes.tensor.tolist() == [[0, 0, 15, 40]]
        assert two["instances"].pred_boxes.tensor.tolist() == [[0, 0, 5, 20]]


def test_images_of_one_size_form_a_batch(tmp_path: Path) -> None:
    model, sizes = toy(tmp_path, "onnxruntime"), []
    run, model._run = model._run, lambda x: sizes.append(len(x)) or run(x)
    image = torch.zeros((3, 4, 6), dtype=torch.uint8)
    for images in ([image] * 5, [image, image[:, 1:]]):
        model([{"image": x} for x in images])
    assert sizes == [5, 1, 1]


def test_signals_after_openvino_models_are_gone(tmp_path: Path) -> None:
    """Two of OpenVINO's cores would leave a freed signal stack behind, and the signal crash."""
    handled: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))
    models = [toy(tmp_path, "openvino"), toy(tmp_path, "openvino")]
    while models:
        del models[0]
        gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, previous)
    assert handled == [signal.SIGUSR1]


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_exported("a/b.torchscript") and not is_exported("a.onnx/model.pkl")
    path = write_toy(tmp_path / "toy.onnx")
    with pytest.raises(UserError, match=r'"openvin".*"openvino"'):
        load(path, runtime="openvin")
    with pytest.raises(UserError, match=r"toy\.onnx: .*blue, green.*green, blue"):
        network(path, classes=["green", "blue", "röd"])
    for name in ONNX_RUNTIMES:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=f"pip install {name}"):
            load(path, runtime=name)


@each_runtime
def test_files_of_others(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    for file in ("bad.onnx", "bad.pt2", "bad.torchscript"):
        (tmp_path / file).write_bytes(b"no model")
        with pytest.raises(UserError, match=f"{file}: "):
            load(tmp_path / file, runtime=name)
    for key, value in (
        ("classes", "cat"),
        ("category_ids", [1, "2"]),
        ("resize", {"short_side": "800", "long_side": 1333}),
        ("resize", [800, 1333]),
        ("score_threshold", None),
        ("input", {**METADATA["input"], "channels": "BRG"}),
        ("input", {"name": "images", "layout": "nhwc"}),
    ):
        with pytest.raises(UserError, match=r"toy\.onnx: .*metadata"):
            toy(tmp_path, name, **{key: value})
