"""Exported files against the model: written by the command, at sizes they were not traced with."""

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_sets import forget_new_sets
from exported_run import CLASSES, blocks, grey, write_run
from retinanet_plugin.tools.export.command.checking import Comparison, eager
from retinanet_plugin.tools.export.command.detector import PictureDetector
from retinanet_plugin.tools.export.command.exporting import Options, export

from retinanet_plugin import Predictor, UserError
from retinanet_plugin.runtimes.exported_files import Detections, Runtime, load
from retinanet_plugin.tools.export.command import command, exporting, int8
from retinanet_plugin.tools.export.command import files as writing

SHAPES = [(64, 80), (33, 47), (90, 61), (128, 32), (150, 170)]
# Older versions only trace.
EXPORTS = hasattr(torch.compiler, "is_exporting")
FORMATS = ["onnx", "pt2", "torchscript"] if EXPORTS else ["torchscript"]
exports = pytest.mark.skipif(not EXPORTS, reason="torch.export is too old")
each_format = pytest.mark.parametrize("kind", FORMATS)

# A head that is none of ours, and a loss that is not.
OWN_CODE = """
import torch
from retinanet_plugin import CLS_LOSS_REGISTRY
from retinanet_plugin.losses import BinaryLoss
from retinanet_plugin.modeling import DENSE_HEAD_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform


class Hinge(BinaryLoss):
    def value(self, logits, positive):
        return (1 + (-logits if positive else logits)).clamp(min=0)


@CLS_LOSS_REGISTRY.register()
def hinge_of_a_test(cfg):
    return Hinge()


@DENSE_HEAD_REGISTRY.register()
class OneConvolution(torch.nn.Module):
    class_agnostic_bbox_reg = True

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.num_classes, self.num_anchors = cfg.MODEL.RETINANET.NUM_CLASSES, 9
        self.box2box_transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
        self.cls_score = torch.nn.Conv2d(32, 9 * self.num_classes, 3, padding=1)
        self.bbox_pred = torch.nn.Conv2d(32, 9 * 4, 1)

    def forward(self, features):
        features = [8 * torch.tanh(x) for x in features]
        return [self.cls_score(x) for x in features], [self.bbox_pred(x) for x in features]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # Two levels, the last of a place or a few: torch's exporter to ONNX takes its time.
    with forget_new_sets():
        yield write_run(tmp_path_factory.mktemp("run"), levels=["p3", "p7"])


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return exporting.load_model(run / "config.yaml", run / "model_final.pth", [])


@pytest.fixture(scope="module")
def files(run: Path) -> dict[str, Path]:
    """Made by the command, which also compares and evaluates."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    made = {}
    for kind in FORMATS:
        path = made[kind] = run / f"model.{kind}"
        words = ["--format", kind, "--output", str(path), "--evaluate"]
        command.main([str(run / "config.yaml"), str(run / "model_final.pth"), *words])
    return made


def compare(runtime: Runtime, predictor: Predictor, pictures: np.ndarray) -> Comparison:
    comparison = Comparison(0.05, 0.7, 100)
    for one, other in zip(runtime(pictures), eager(predictor.model, pictures), strict=True):
        comparison.add(one, other, "", partial(Detections, *other))
    return comparison


@each_format
def test_detections_are_the_models_at_other_sizes_and_batches(
    files: dict[str, Path], predictor: Predictor, kind: str
) -> None:
    runtime = load(files[kind])
    assert runtime.classes == CLASSES
    for number in (1, 4):
        for shape in SHAPES:
            result = compare(runtime, predictor, blocks(number, *shape))
            assert result.missed == [] and result.at_edge == 0 and result.detections > 20 * number
    full = runtime(blocks(4, *SHAPES[0]))
    assert max(len(x.scores) for x in full) == 100
    mixed = np.concatenate([grey(2, 64, 80), blocks(1, 64, 80)])
    assert [len(x.scores) > 0 for x in runtime(mixed)] == [False, False, True]
    assert compare(runtime, predictor, mixed).missed == []
    assert compare(runtime, predictor, blocks(1, 1, 1)).missed == []


@each_format
def test_a_file_says_what_it_is_to_those_without_the_package(
    files: dict[str, Path], kind: str
) -> None:
    if kind == "onnx":
        import onnx

        model = onnx.load(str(files[kind]))
        onnx.checker.check_model(model, full_check=True)
        told = {x.key: json.loads(x.value) for x in model.metadata_props}
        sizes = model.graph.input[0].type.tensor_type.shape.dim
        assert [x.dim_param or x.dim_value for x in sizes] == ["batch", "height", "width", 3]
        names = [x.name for x in model.graph.output]
        assert names == ["boxes", "scores", "classes", "num_detections"] == told["outputs"]
    else:
        archive = zipfile.ZipFile(files[kind])
        (name,) = [x for x in archive.namelist() if x.endswith("extra/metadata.json")]
        told = json.loads(archive.read(name))
    assert told["classes"] == CLASSES and told["category_ids"] == [2, 7, 9]
    assert told["resize"] == {"short_side": 64, "long_side": 1333}
    assert told["score_threshold"] == 0.05 and told["nms_threshold"] == 0.7
    assert told["input"] == {
        "name": "pictures",
        "layout": "nhwc",
        "channels": "BGR",
        "dtype": "uint8",
    }
    raw = files[kind].read_bytes()
    assert str(Path(exporting.__file__).parent).encode() not in raw


@each_format
def test_the_card_beside_it(files: dict[str, Path], run: Path, kind: str) -> None:
    card = files[kind].with_name(f"model.{kind}.md").read_text(encoding="utf-8")
    for words in ("dög", "own_test", "100 detections", "| the model |", "| this file |", "AP50"):
        assert words in card, words
    assert "<b>" not in card
    for path in (files[kind], run / "model_final.pth"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card


@exports
def test_8_bits(files: dict[str, Path], predictor: Predictor, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "small.onnx"
    int8.quantise(files["onnx"], path, [blocks(1, 64, 80), blocks(1, 90, 61)])
    runtime = load(path)
    assert runtime.metadata == load(files["onnx"]).metadata
    assert path.stat().st_size < 0.4 * files["onnx"].stat().st_size
    model = onnx.load(str(path))
    assert len([x for x in model.graph.initializer if x.data_type == 3]) > 20
    assert [x.domain for x in model.opset_import] == [""]
    assert compare(runtime, predictor, blocks(1, 64, 80)).agreement > 0.5


def test_half_precision_float_rgb_and_channels_first(predictor: Predictor, tmp_path: Path) -> None:
    options = Options("torchscript", "bfloat16", "nchw", "RGB", "float32")
    runtime, _ = export(predictor, tmp_path / "half.torchscript", options)
    assert runtime.metadata["input"]["channels"] == "RGB"
    pictures = blocks(1, 64, 80)
    (found,), (expected,) = runtime(pictures[..., ::-1]), eager(predictor.model, pictures)
    result = Comparison(0.05, 0.7, 100)
    result.add(found, expected, "", partial(Detections, *expected))
    assert result.agreement > 0.8 > compare(runtime, predictor, pictures).agreement


@exports
@torch.no_grad()
def test_what_a_compiler_gets(tmp_path: Path) -> None:
    """Compiling takes minutes; what is compiled must be right, though the last level is unused."""
    model = exporting.load_model(
        (run := write_run(tmp_path, levels=["p4"])) / "config.yaml", run / "model_final.pth", []
    ).model
    detector = PictureDetector(model.to(memory_format=torch.contiguous_format), compiled=True)
    assert detector.smallest_side == 129
    program = writing._program(detector.eval(), writing.example_of(detector, torch.uint8))
    for shape in ((1, 129, 129), (3, 150, 301)):
        boxes, _, _, counts = program.module()(torch.from_numpy(blocks(*shape)))
        expected = eager(model, blocks(*shape))
        assert counts.tolist() == [len(x.scores) for x in expected] and counts.min() > 10
        np.testing.assert_allclose(boxes[0, : counts[0]].numpy(), expected[0].boxes, atol=0.01)


def test_a_head_and_a_loss_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code = tmp_path / "my_head_of_a_test.py"
    code.write_text(OWN_CODE)
    command.import_code([str(code)])
    run = write_run(
        tmp_path,
        *("MODEL.RETINANET.CLS_LOSS", "hinge_of_a_test"),
        *("MODEL.RETINANET.HEAD_NAME", "OneConvolution"),
    )
    path = run / "own.torchscript"
    words = ["--format", "torchscript", "--output", str(path), "--import", str(code)]
    command.main([str(run / "config.yaml"), str(run / "model_final.pth"), *words])
    printed = capsys.readouterr()
    assert printed.out.split() == [str(path), f"{path}.md"]
    assert "deprecated" in printed.err and "found nothing" not in printed.err
    sys.modules.pop("my_head_of_a_test")


def test_a_head_that_cannot_be_traced_is_one_sentence(predictor: Predictor, tmp_path: Path) -> None:
    class Choosy(torch.nn.Module):
        def forward(self, features: list[torch.Tensor]) -> object:
            return predictor.model.head(features if features[0].sum() > 0 else features[::-1])

    detector = PictureDetector(predictor.model).eval()
    detector.head = Choosy()
    with pytest.raises(UserError, match=r"--format pt2: PyTorch .* cannot export") as error:
        writing.write(detector, tmp_path / "model.pt2", "pt2", {})
    assert "\n" not in str(error.value)


def test_a_file_that_differs_is_not_left(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting.PictureDetector

    def shifted(model: torch.nn.Module, **options: object) -> torch.nn.Module:
        detector = real(model, **options)
        detector.pixel_mean += 4
        return detector

    monkeypatch.setattr(exporting, "PictureDetector", shifted)
    path = tmp_path / "model.torchscript"
    with pytest.raises(UserError, match="not written, for it would differ") as error:
        export(predictor, path, Options("torchscript"))
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onnx", "--dtype", "bfloat16"], "bfloat16 is not for --format onnx"),
        (["--format", "pt2", "--dtype", "int8"], "int8 is not for --format pt2"),
        (["--format", "onnx", "--compile"], "only pt2 is compiled"),
        (["--format", "torchscript"], "ends in .torchscript"),
        (["--format", "pt2", "--compile"], "from 129 pixels a side on"),
    ],
)
def test_mistakes(run: Path, tmp_path: Path, words: list[str], message: str) -> None:
    suffix = "pt2" if "pt2" in words else "onnx"
    given = [str(run / "config.yaml"), str(run / "model_final.pth"), *words]
    with pytest.raises(UserError, match=message):
        command.main([*given, "--output", str(tmp_path / f"model.{suffix}")])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx.md").write_text("mine")
    words = ["--format", "onnx", "--output", str(tmp_path / "model.onnx")]
    with pytest.raises(UserError, match="is there already"):
        command.main([str(run / "config.yaml"), str(run / "model_final.pth"), *words])


def test_pictures_are_noise_where_the_test_set_is_not_here(predictor: Predictor) -> None:
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.DATASETS.OWN.TEST_JSON, cfg.DATASETS.TEST = "", ("nowhere",)
    other = object.__new__(Predictor)
    other.cfg = cfg
    pictures, what = exporting.pictures_to_compare(other)
    assert "noise" in what and len({x.shape for x in pictures}) == 1
    assert cv2.meanStdDev(pictures[0])[1].min() > 10 and pictures[-1].std() == 0
