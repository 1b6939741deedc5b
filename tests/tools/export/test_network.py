"""Exported files in the place of the network, by each runtime of ONNX files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_onnx import METADATA, foretold, write_toy

from retinanet_plugin import UserError, get_config
from retinanet_plugin.runtimes.exported_files import ONNX_RUNTIMES, DetectronModel, Runtime, load
from retinanet_plugin.runtimes.network import is_exported, load_network

each_runtime = pytest.mark.parametrize("name", ONNX_RUNTIMES)


def toy(tmp_path: Path, name: str, **metadata: object) -> Runtime:
    pytest.importorskip(name)
    return load(write_toy(tmp_path / "toy.onnx", **metadata), runtime=name)


@each_runtime
def test_detections_of_batches_of_any_size(tmp_path: Path, name: str) -> None:
    detect = toy(tmp_path, name)
    assert (detect.name, detect.metadata, detect.classes) == (name, METADATA, METADATA["classes"])
    for shape in ((1, 4, 6), (3, 9, 5), (2, 30, 40)):
        pictures = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        pictures[0, :, :, 1] = 0
        pictures[-1:] //= 40 if shape[0] > 1 else 1  # the last holds nothing
        found = detect(pictures)
        assert len(found) == shape[0] and len(found[0].scores) == 2
        for one, picture in zip(found, pictures, strict=True):
            boxes, scores, classes = foretold(picture)
            assert one.boxes.tolist() == boxes and one.classes.tolist() == classes
            np.testing.assert_allclose(one.scores, scores, atol=1e-6)


def network(path: Path, *overrides: str, **options: object) -> object:
    keys = ["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu", *overrides]
    return load_network(get_config(overrides=keys), **options)


@each_runtime
def test_in_the_place_of_the_network(tmp_path: Path, name: str) -> None:
    """Channels are those of the config, and boxes at the size that is asked for."""
    pytest.importorskip(name)
    path = write_toy(tmp_path / "toy.onnx")
    image = torch.zeros((3, 20, 10), dtype=torch.uint8)
    image[2] = 51
    for channels, kind in (("BGR", 2), ("RGB", 0)):
        model, runs, classes = network(path, "INPUT.FORMAT", channels, runtime=name)
        assert (runs, classes) == (name, METADATA["classes"])
        (one, two) = model([{"image": image, "height": 40, "width": 30}, {"image": image}])
        assert one["instances"].pred_classes.tolist() == [kind]
        assert one["instances"].scores.tolist() == pytest.approx([0.2])
        assert one["instances"].pred_boxes.tensor.tolist() == [[0, 0, 15, 40]]
        assert two["instances"].pred_boxes.tensor.tolist() == [[0, 0, 5, 20]]


def test_pictures_of_one_size_go_through_it_together(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    runtime, sizes = toy(tmp_path, "onnxruntime"), []
    run, runtime._run = runtime._run, lambda x: sizes.append(len(x)) or run(x)
    model = DetectronModel(runtime, "BGR")
    images = torch.arange(0, 250, 50, dtype=torch.uint8).reshape(5, 1, 1, 1).repeat(1, 3, 4, 6)
    found = model([{"image": image, "height": 8, "width": 6} for image in images])
    assert sizes == [5] and found[0]["instances"].scores.numel() == 0
    assert [x["instances"].scores[0].item() for x in found[1:]] == pytest.approx(
        [50 / 255, 100 / 255, 150 / 255, 200 / 255]
    )
    assert found[1]["instances"].pred_boxes.tensor[0].tolist() == [0, 0, 3, 8]
    model([{"image": images[0]}, {"image": images[1, :, 1:]}])
    assert sizes == [5, 1, 1]


def test_signals_are_handled_after_files_are_gone(tmp_path: Path) -> None:
    """As of a loader's worker that ends: OpenVINO, loaded twice, once left them no stack."""
    pytest.importorskip("openvino")
    path = write_toy(tmp_path / "toy.onnx")
    script = f"""
import gc, os, signal
from retinanet_plugin.runtimes.exported_files import load
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
one, two = (load({str(path)!r}, runtime="openvino") for _ in range(2))
del one
gc.collect()
del two
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


def test_files_are_told_by_their_endings() -> None:
    assert all(is_exported(f"a/b.{x}") for x in ("onnx", "pt2", "torchscript"))
    assert not any(is_exported(x) for x in ("a.pth", "a.onnx/model.pkl", "detectron2://a", "onnx"))


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy(tmp_path / "toy.onnx")
    with pytest.raises(UserError, match=r'runtime: unknown value "openvin" .*"openvino"'):
        load(path, runtime="openvin")
    with pytest.raises(UserError, match=r"toy.onnx: exported for the classes blue, green, r"):
        network(path, classes=["green", "blue", "röd"])
    for name in ONNX_RUNTIMES:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=f"{name} is not installed; `pip install {name}`"):
            load(path, runtime=name)


@each_runtime
def test_a_file_of_others(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"bad.onnx: \w+ cannot load it"):
        load(tmp_path / "bad.onnx", runtime=name)
    for key, value in (
        ("classes", "cat"),
        ("category_ids", [1, "2"]),
        ("resize", {"short_side": "800", "long_side": 1333}),
        ("resize", [800, 1333]),
        ("score_threshold", None),
        ("input", {**METADATA["input"], "channels": "BRG"}),
        ("input", {"name": "pictures", "layout": "nhwc"}),
    ):
        with pytest.raises(UserError, match=rf"toy.onnx: its metadata lack {key} as"):
            toy(tmp_path, name, **{key: value})
