"""Coverage by anchors against detectron2's resizing and ``pairwise_iou``, and planted data."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from coco_sets import forget_new_sets
from conftest import small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import (
    annotations_to_instances,
    build_augmentation,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_model
from detectron2.structures import Boxes, BoxMode, ImageList, pairwise_iou

from retinanet_plugin import UserError
from retinanet_plugin.tools.anchors import command
from retinanet_plugin.tools.anchors import search as anchor_search
from retinanet_plugin.tools.anchors.coverage import Anchors, measure, positive_threshold
from retinanet_plugin.tools.anchors.dataset_boxes import (
    DatasetBoxes,
    ImageScale,
    read_boxes,
    training_scales,
)
from retinanet_plugin.tools.anchors.search import (
    AnchorKeys,
    cluster_shapes,
    iou_of_shapes,
    score,
    suggest,
)
from retinanet_plugin.tools.anchors.tables import CoverageReport, group_boxes

CLASSES = ["cat", "dog", "absent"]
SCALES = [ImageScale(256, 256)]


@pytest.fixture(autouse=True)
def _catalogs() -> Iterator[None]:
    with forget_new_sets():
        yield


@pytest.fixture
def _quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor_search, "_SCALES", (1, 2, 4))
    monkeypatch.setattr(anchor_search, "_MOST_RATIOS", 2)
    monkeypatch.setattr(anchor_search, "_SAMPLE", 300)


def register(name: str, entries: list[dict[str, Any]]) -> None:
    DatasetCatalog.register(name, lambda: entries)
    MetadataCatalog.get(name).set(thing_classes=CLASSES)


def entries_of(seed: int, images: int = 6, sizes: tuple[float, float] = (3, 200)) -> list[Any]:
    """Images with boxes in both of detectron2's usual modes; some reach outside."""
    rng = np.random.default_rng(seed)
    entries = []
    for i in range(images):
        height, width = (int(x) for x in rng.integers(90, 260, 2))
        side = np.exp(rng.uniform(*np.log(sizes), (9, 2)))
        corner = rng.uniform(-0.1, 0.9, (9, 2)) * (width, height)
        boxes = np.concatenate((corner, side), axis=1).tolist()
        annotations = [
            {
                "bbox": BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode(i % 2)),
                "bbox_mode": BoxMode(i % 2),
                "category_id": int(j % 4 == 0),
                "iscrowd": int(j == 8),
            }
            for j, box in enumerate(boxes)
        ]
        entry = {"file_name": f"{i}.png", "image_id": 100 + i, "height": height, "width": width}
        entries.append(entry | {"annotations": annotations})
    return entries


def by_detectron2(cfg: Any, entries: list[dict[str, Any]]) -> Iterator[tuple[Any, torch.Tensor]]:
    """Each image's instances as its mapper returns them, and the resized image."""
    for entry in entries:
        given = AugInput(np.zeros((entry["height"], entry["width"], 3), np.uint8))
        transforms = AugmentationList(build_augmentation(cfg, is_train=True))(given)
        annotations = [
            transform_instance_annotations(dict(a), transforms, given.image.shape[:2])
            for a in entry["annotations"]
            if not a["iscrowd"]
        ]
        instances = annotations_to_instances(annotations, given.image.shape[:2])
        yield filter_empty_instances(instances), torch.zeros(3, *given.image.shape[:2])


@cache
def cached_model() -> torch.nn.Module:
    return build_model(small_config("MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE", 3.0))


@pytest.mark.parametrize("short, longest", [(120, 1333), (200, 210), (0, 1333)])
def test_equal_to_all_anchors_of_the_model(short: int, longest: int) -> None:
    """Boxes of detectron2's mapper against every anchor of the model.

    The mapper adds sides to corners in float32, hence the tolerance.
    """
    cfg = small_config(
        *("INPUT.MIN_SIZE_TRAIN", (short,), "INPUT.MAX_SIZE_TRAIN", longest),
        *("INPUT.RANDOM_FLIP", "none", "MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE", 3.0),
    )
    entries, model, ours = entries_of(0), cached_model(), Anchors.of(cfg)
    register("random", entries)
    shapes, ious, classes, padded = [], [], [], []
    for instances, image in by_detectron2(cfg, entries):
        images = ImageList.from_tensors([image], model.backbone.size_divisibility)
        levels = model.backbone(images.tensor)
        anchors = model.anchor_generator([levels[f] for f in model.head_in_features])
        grid = ours.grid(*images.tensor.shape[-2:])
        assert torch.equal(grid.boxes_of(torch.arange(grid.num_anchors)), Boxes.cat(anchors).tensor)
        padded += [list(images.tensor.shape[-2:])] * len(instances)
        iou = pairwise_iou(instances.gt_boxes, Boxes.cat(anchors))
        shapes.append(instances.gt_boxes.tensor[:, 2:] - instances.gt_boxes.tensor[:, :2])
        ious.append(iou.amax(1))
        classes.append(instances.gt_classes)
    coverage = measure(read_boxes(["random"]), ours, training_scales(cfg))
    assert coverage.padded.tolist() == padded
    sides = np.stack((coverage.width, coverage.height), 1)
    np.testing.assert_allclose(sides, torch.cat(shapes), atol=1e-4)
    np.testing.assert_allclose(coverage.iou, torch.cat(ious), atol=1e-5)
    assert np.array_equal(coverage.data.classes[coverage.box], torch.cat(classes))
    assert 30 < len(coverage.iou) <= 48 and 0 < coverage.iou.min() < 0.4 < 0.6 < coverage.iou.max()


def test_groups_equal_a_loop_over_boxes() -> None:
    register("random", entries_of(1, images=12))
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", (100, 160))
    data = read_boxes(["random"])
    coverage = measure(data, Anchors.of(cfg), training_scales(cfg), (0.3, 0.5))

    def octaves(name: str) -> float:
        return round(2 * np.log2(float(name))) / 2

    def names_of(i: int) -> Iterator[tuple[str, Any]]:
        """How each table names the group of a box, as a test of the name."""
        width, height = float(coverage.width[i]), float(coverage.height[i])
        size, ratio = np.log2(width * height) / 2, np.clip(np.log2(height / width), -2, 2)
        yield "all", lambda name: name == "all"
        yield "size", lambda name: octaves(name.split()[0]) <= size < octaves(name.split()[2])
        yield "height / width", lambda name: octaves(name) == round(2 * ratio) / 2
        yield "class", lambda name: name == CLASSES[data.classes[coverage.box[i]]]

    groups = group_boxes(coverage)
    mean = groups["all"].pop()
    members: dict[tuple[str, str], list[int]] = {}
    for i in range(len(coverage.iou)):
        for by, is_name in names_of(i):
            (row,) = (row for row in groups[by] if is_name(row["group"]))
            members.setdefault((by, row["group"]), []).append(i)
    assert {(by, row["group"]) for by, rows in groups.items() for row in rows} == members.keys()
    for (by, name), mine in members.items():
        (row,) = (row for row in groups[by] if row["group"] == name)
        assert row["boxes"] == len(mine)
        for at in (0.3, 0.5):
            share = np.mean(coverage.iou[mine] >= np.float32(at))
            assert row[f"IoU >= {at}"] == pytest.approx(share)
        assert row["mean best IoU"] == pytest.approx(coverage.iou[mine].mean())
    shares = [row["IoU >= 0.5"] for row in groups["class"]]
    assert mean["IoU >= 0.5"] == pytest.approx(np.mean(shares)) != coverage.share(0.5)


@pytest.mark.parametrize(
    "sampling, sizes, expected",
    [
        ("choice", "(800, 640)", [640, 800]),
        ("range", "(640, 800)", [640, 680, 720, 760, 800]),
        ("choice", "()", None),
        ("choice", "(640, -5)", None),
    ],
)
def test_training_scales(sampling: str, sizes: str, expected: list[int] | None) -> None:
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", sizes, "INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling)
    if expected:
        assert training_scales(cfg) == [ImageScale(size, 1333) for size in expected]
    else:
        with pytest.raises(UserError, match=r"INPUT\.MIN_SIZE_TRAIN"):
            training_scales(cfg)


def test_positive_threshold() -> None:
    assert positive_threshold(small_config()) == 0.5
    with pytest.raises(UserError, match=r"MODEL\.RETINANET\.IOU_LABELS"):
        positive_threshold(small_config("MODEL.RETINANET.IOU_LABELS", "[0, -1, -1]"))


# ---------------------------------------------------------------- clusters and suggestions


def test_iou_of_shapes() -> None:
    shapes = torch.rand(20, 2) * 50 + 1
    others = torch.rand(5, 2) * 50 + 1
    expected = pairwise_iou(
        Boxes(torch.cat((-shapes, shapes), 1)), Boxes(torch.cat((-others, others), 1))
    )
    torch.testing.assert_close(iou_of_shapes(shapes, others), expected)


def test_planted_clusters() -> None:
    planted = torch.tensor([[10.0, 12.0], [40.0, 20.0], [30.0, 90.0]], dtype=torch.float64)
    around = torch.linspace(-0.05, 0.05, 21, dtype=torch.float64)
    shapes = torch.cat([planted * x.exp() for x in around])
    assert torch.allclose(cluster_shapes(shapes, 3), planted)
    assert len(cluster_shapes(planted.repeat(4, 1), 5)) == 3


def test_clusters_fit_no_worse_than_any_partition() -> None:
    """Compares with all partitions of eight boxes in two, within 0.01."""
    shapes = torch.rand(8, 2, dtype=torch.float64) * 60 + 4

    def quality(centers: torch.Tensor) -> float:
        return float(iou_of_shapes(shapes, centers).amax(1).mean())

    partitions = [torch.tensor([i >> j & 1 for j in range(8)]) == 1 for i in range(1, 128)]
    best = max(
        quality(torch.stack([shapes[p].log().mean(0).exp(), shapes[~p].log().mean(0).exp()]))
        for p in partitions
    )
    assert quality(cluster_shapes(shapes, 2)) >= best - 0.01


def small_boxes(side: float, ratio: float = 1.0) -> DatasetBoxes:
    """Two classes of boxes of similar size in images of 256 pixels."""
    rng = np.random.default_rng(0)
    sides = side * np.exp(rng.normal(0, 0.1, (200, 2))) * (ratio**-0.5, ratio**0.5)
    corner = rng.uniform(0, 256 - sides)
    return DatasetBoxes(
        np.concatenate((corner, corner + sides), axis=1),
        rng.integers(0, 2, 200),
        rng.integers(0, 9, 200),
        np.full((9, 2), 256),
        ("a", "b"),
    )


@pytest.mark.usefixtures("_quick_search")
@pytest.mark.parametrize("side, ratio", [(17.0, 1.0), (60.0, 4.0)])
def test_a_suggestion_covers_more(side: float, ratio: float) -> None:
    """Boxes that are too small, or too long, for the default anchors."""
    cfg = small_config()
    data, keys = small_boxes(side, ratio), AnchorKeys.of(cfg)
    assert keys == AnchorKeys(4.0, 3, (0.5, 1.0, 2.0))
    anchors = Anchors.of(cfg)
    present = measure(data, anchors, SCALES)
    other = suggest(present, keys)
    assert other is not None
    lines = yaml.safe_load(other.keys.to_yaml())["MODEL"]["ANCHOR_GENERATOR"].items()
    pasted = small_config(*(x for k, v in lines for x in (f"MODEL.ANCHOR_GENERATOR.{k}", v)))
    assert AnchorKeys.of(pasted) == other.keys
    generator = build_anchor_generator(pasted, [ShapeSpec(stride=s) for s in anchors.strides])
    boxes = generator([torch.zeros(1, 1, 256 // s, 256 // s) for s in anchors.strides])
    iou = pairwise_iou(Boxes(torch.from_numpy(data.boxes).float()), Boxes.cat(boxes)).amax(1)
    assert np.array_equal(other.coverage.iou, iou)
    assert (iou >= 0.5).double().mean() > present.share(0.5) + 0.1
    tried = [AnchorKeys(s, p, keys.ratios) for s in (1.0, 2.0, 4.0) for p in (1, 2, 3, 4)]
    scores = [score(measure(data, k.anchors(anchors), SCALES), k.per_location) for k in tried]
    for at in (0.4, 0.5):
        assert other.coverage.class_mean(at) >= present.class_mean(at)
    assert score(other.coverage, other.keys.per_location) > max(scores) - 0.02
    assert max(other.keys.ratios) > 2 if ratio == 4 else other.keys.scale < 4


@pytest.mark.usefixtures("_quick_search")
def test_no_suggestion_without_need_or_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small_config()
    anchors, keys = Anchors.of(cfg), AnchorKeys.of(cfg)
    assert keys is not None
    with monkeypatch.context() as patch:
        patch.setattr(anchor_search, "_finalists", lambda *args: pytest.fail("searched"))
        assert suggest(measure(small_boxes(50.0), anchors, SCALES), keys) is None
    monkeypatch.setattr(anchor_search, "_GOOD_COVERAGE", 2.0)
    assert suggest(measure(small_boxes(50.0), anchors, SCALES), keys) is None
    monkeypatch.setattr(anchor_search, "_SCALES", (8, 16))
    assert suggest(measure(small_boxes(2.0), anchors, SCALES), keys) is None


def test_other_generators_are_measured() -> None:
    cfg = small_config("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16.0], [32.0], [64.0], [128.0], [256.0]]
    anchors = Anchors.of(cfg)
    assert AnchorKeys.of(cfg) is None
    assert anchors.per_location == 3
    coverage = measure(small_boxes(17.0), anchors, SCALES)
    assert coverage.share(0.5) > 0.8
    assert "RetinaNetAnchorGenerator" in CoverageReport(coverage, None, None).verdict


# ---------------------------------------------------------------- the command


def run(*args: object) -> None:
    command.main(["--config-file", "Base-Scratch-R18.yaml", *map(str, args)])


@pytest.mark.usefixtures("_quick_search")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register("tiny", entries_of(3, sizes=(15, 22)))
    args = ["--dataset", "tiny", "--output", tmp_path, "INPUT.MIN_SIZE_TRAIN", "(128,)"]
    run(*args)
    table = (tmp_path / "anchors.md").read_text()
    assert "SCALES_PER_OCTAVE: " in table and "| dog |" in table
    assert table in capsys.readouterr().out
    assert (tmp_path / "anchors.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"--output: .*anchors\.md"):
        run(*args)
    run(*args, "--overwrite", "MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE", 2.0)


def test_unknown_and_empty_datasets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--dataset: .*coco_2017_trian"):
        run("--dataset", "coco_2017_trian")
    (entry,) = entries_of(2, images=1)
    register("bare", [entry | {"annotations": entry["annotations"][8:]}])  # a crowd
    with pytest.raises(UserError, match="bare"):
        run("--dataset", "bare", "--output", tmp_path)
