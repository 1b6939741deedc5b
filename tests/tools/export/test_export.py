"""Exported files against their model, at sizes they were not traced with."""

import hashlib
import json
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_sets import forget_new_sets
from exported_run import CLASSES, blocks, write_run

from retinanet_plugin import Predictor, UserError
from retinanet_plugin.runtimes.exported_files import ExportedModel, load
from retinanet_plugin.tools.export import command, exporting, int8, writers
from retinanet_plugin.tools.export.comparison import TOLERANCES, Comparison, compare, detect
from retinanet_plugin.tools.export.detector import ImageDetector
from retinanet_plugin.tools.export.exporting import comparison_images, export

SHAPES = [(64, 80), (33, 47), (90, 61), (128, 32), (150, 170)]
HAS_EXPORT = hasattr(torch.compiler, "is_exporting")
FORMATS = ["onnx", "pt2", "torchscript"] if HAS_EXPORT else ["torchscript"]
each_format = pytest.mark.parametrize("file_format", FORMATS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # Two levels, of which the last has few cells: torch's ONNX exporter is slow.
    with forget_new_sets():
        yield write_run(tmp_path_factory.mktemp("run"), levels=["p3", "p7"])


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return exporting.load_model(None, run / "model_final.pth")


@pytest.fixture(scope="module")
def files(run: Path) -> dict[str, Path]:
    """Exports each format with the command, which also compares the file."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    paths = {x: run / f"model.{x}" for x in FORMATS}
    for name, path in paths.items():
        weights = str(run / "model_final.pth")
        command.main(["--weights", weights, "--format", name, "--output", str(path)])
    return paths


def compared(
    exported: ExportedModel, predictor: Predictor, images: np.ndarray, precision: str = "float32"
) -> Comparison:
    """Compares both on images (N, H, W, 3)."""
    given = torch.from_numpy(images).permute(0, 3, 1, 2)
    return compare(exported, predictor.model, TOLERANCES[precision], [given])


def torchscript(*args: str) -> Namespace:
    required = ["--format", "torchscript", "--weights", "", "--output", ""]
    return command.parser().parse_args([*required, *args])


@each_format
def test_detections_are_the_models_in_other_sizes_and_batches(
    files: dict[str, Path], predictor: Predictor, file_format: str
) -> None:
    exported = load(files[file_format])
    gray = np.full((2, 64, 80, 3), (104, 116, 124), np.uint8)  # in which nothing is detected
    mixed = np.concatenate([gray, blocks(1, 64, 80)])
    batches = [blocks(number, *shape) for number in (1, 4) for shape in SHAPES]
    for images in (*batches, mixed, blocks(1, 1, 1)):
        result = compared(exported, predictor, images)
        assert result.same == result.detections and result.images == len(images)
        given = torch.from_numpy(images).permute(0, 3, 1, 2)
        counts = [len(x) for x in detect(exported, given)]
        assert counts == [len(x) for x in detect(predictor.model, given)]
        if images is mixed:
            assert [x > 0 for x in counts] == [False, False, True]
        elif len(images[0]) > 1:
            assert min(counts) > 5 and max(counts) <= 100


@each_format
def test_metadata_and_model_card(files: dict[str, Path], file_format: str) -> None:
    if file_format == "onnx":
        import onnx

        model = onnx.load(str(files[file_format]))
        onnx.checker.check_model(model, full_check=True)
        metadata = {x.key: json.loads(x.value) for x in model.metadata_props}
        sizes = model.graph.input[0].type.tensor_type.shape.dim
        assert [x.dim_param or x.dim_value for x in sizes] == ["batch", "height", "width", 3]
        names = [x.name for x in model.graph.output]
        assert names == ["boxes", "scores", "classes", "num_detections"] == metadata["outputs"]
    else:
        archive = zipfile.ZipFile(files[file_format])
        (name,) = [x for x in archive.namelist() if x.endswith("extra/metadata.json")]
        metadata = json.loads(archive.read(name))
    assert metadata["classes"] == CLASSES and metadata["category_ids"] == [2, 7, 9]
    assert metadata["resize"] == {"short_side": 64, "long_side": 1333}
    assert metadata["score_threshold"] == 0.05 and metadata["nms_threshold"] == 0.7
    expected = {"name": "images", "layout": "nhwc", "channels": "BGR", "dtype": "uint8"}
    assert metadata["input"] == expected
    content = files[file_format].read_bytes()
    assert str(Path(exporting.__file__).parent).encode() not in content
    card = files[file_format].with_name(f"model.{file_format}.md").read_text(encoding="utf-8")
    assert "dög" in card and "own_test" in card and "<b>" not in card
    assert hashlib.sha256(content).hexdigest() in card


@pytest.mark.skipif(not HAS_EXPORT, reason="torch.export is too old")
def test_int8(files: dict[str, Path], predictor: Predictor, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "small.onnx"
    int8.quantize(files["onnx"], path, [blocks(1, 64, 80), blocks(1, 90, 61)])
    exported = load(path)
    assert exported.metadata == load(files["onnx"]).metadata
    assert path.stat().st_size < 0.4 * files["onnx"].stat().st_size
    graph = onnx.load(str(path)).graph
    assert len([x for x in graph.initializer if x.data_type == 3]) > 20
    weights = {x.input[1] for x in graph.node if x.op_type == "Conv"}
    in_float = {x.name.split(".", 1)[-1] for x in graph.initializer if x.name in weights}
    assert in_float == {"bottom_up.stem.conv1.weight", "cls_score.weight", "bbox_pred.weight"}
    assert compared(exported, predictor, blocks(1, 64, 80), "int8").share > 0.5


def test_bfloat16_with_float_rgb_nchw_input(predictor: Predictor, tmp_path: Path) -> None:
    args = "--dtype bfloat16 --layout nchw --channels RGB --input float32"
    options = torchscript(*args.split())
    images = comparison_images(predictor.cfg)
    exported, result = export(predictor, tmp_path / "half.torchscript", options, images)
    assert result.share > 0.9 and result.detections > 100
    given = torch.from_numpy(blocks(1, 64, 80)[..., ::-1].transpose(0, 3, 1, 2).copy()).float()
    boxes, *_, counts = torch.jit.load(tmp_path / "half.torchscript")(given)
    exported.input_format = "BGR"
    (detections,) = detect(exported, given.flip(1))
    assert counts.tolist() == [len(detections)]
    assert torch.equal(detections.pred_boxes.tensor, boxes[0, : counts[0]])


def test_untraceable_head(predictor: Predictor, tmp_path: Path) -> None:
    class DataDependent(torch.nn.Module):
        def forward(self, features: list[torch.Tensor]) -> object:
            return predictor.model.head(features if features[0].sum() > 0 else features[::-1])

    detector = ImageDetector(predictor.model).eval()
    detector.head = DataDependent()
    with pytest.raises(UserError, match="--format pt2: PyTorch"):
        writers.write(detector, tmp_path / "model.pt2", "pt2", {})


def test_no_file_is_left_that_differs_from_the_model(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(model: torch.nn.Module, **options: object) -> torch.nn.Module:
        detector = ImageDetector(model, **options)
        detector.pixel_mean += 4
        return detector

    monkeypatch.setattr(exporting, "ImageDetector", shifted)
    images = comparison_images(predictor.cfg)
    with pytest.raises(UserError, match=r"model\.torchscript: not written"):
        export(predictor, tmp_path / "model.torchscript", torchscript(), images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("--format onnx --dtype bfloat16", "--dtype"),
        ("--format onnx --dtype int8", "DATASETS.TRAIN"),
        ("--format torchscript", "--output"),
        ("--format onnx --weights model.onnx", "--weights"),
        ("--format onnx", "--output: .*model.onnx.md"),
    ],
)
def test_mistakes(run: Path, tmp_path: Path, args: str, named: str) -> None:
    """Also: an existing card is not replaced."""
    if args == "--format onnx":
        (tmp_path / "model.onnx.md").touch()
    before = list(tmp_path.iterdir())
    output = ["--output", str(tmp_path / "model.onnx"), "DATASETS.TRAIN", "()"]
    with pytest.raises(UserError, match=named):
        command.main(["--weights", str(run / "model_final.pth"), *args.split(), *output])
    assert list(tmp_path.iterdir()) == before
