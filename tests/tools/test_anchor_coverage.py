"""Coverage by anchors against detectron2's resizing, its ``pairwise_iou``, and planted data."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, ImageList, pairwise_iou

from retinanet_plugin import UserError
from retinanet_plugin.data.dataset_boxes import (
    DatasetBoxes,
    PictureScale,
    read_boxes,
    training_scales,
)
from retinanet_plugin.evaluation.anchor_coverage import (
    AnchorKeys,
    Anchors,
    measure,
    resized_boxes,
)
from retinanet_plugin.tools.anchors import command
from retinanet_plugin.tools.anchors import search as anchor_search
from retinanet_plugin.tools.anchors.report import Findings, markdown, report
from retinanet_plugin.tools.anchors.search import (
    cluster_shapes,
    describe_clusters,
    iou_of_shapes,
    score,
    suggest,
)

CLASSES = ["cat", "dog", "absent"]


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


def entries_of(
    seed: int, pictures: int = 6, sizes: tuple[float, float] = (3, 200)
) -> list[dict[str, Any]]:
    """Pictures with boxes of both of detectron2's usual modes, some reaching outside."""
    rng = np.random.default_rng(seed)
    entries = []
    for i in range(pictures):
        height, width = (int(x) for x in rng.integers(90, 260, 2))
        side = np.exp(rng.uniform(*np.log(sizes), (9, 2)))
        corner = rng.uniform(-0.1, 0.9, (9, 2)) * (width, height)
        boxes = np.concatenate((corner, side), axis=1)
        annotations = [
            {
                "bbox": BoxMode.convert(box.tolist(), BoxMode.XYWH_ABS, BoxMode(i % 2)),
                "bbox_mode": BoxMode(i % 2),
                "category_id": int(j % 4 == 0),
                "iscrowd": int(j == 8),
            }
            for j, box in enumerate(boxes)
        ]
        entries.append(
            {
                "file_name": f"{i}.png",
                "image_id": 100 + i,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
    return entries


def by_detectron2(cfg: Any, entries: list[dict[str, Any]]) -> Iterator[tuple[Any, torch.Tensor]]:
    """Each picture's instances as its mapper gives them, and the resized picture."""
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


@pytest.mark.parametrize("short, longest", [(120, 1333), (200, 210), (0, 1333)])
def test_equal_to_all_anchors_of_the_model(short: int, longest: int) -> None:
    """The boxes that detectron2's mapper makes, against each anchor of the real features.

    The mapper adds sides to corners in float32, hence the tolerance.
    """
    cfg = small_config(
        *("INPUT.MIN_SIZE_TRAIN", (short,), "INPUT.MAX_SIZE_TRAIN", longest),
        *("INPUT.RANDOM_FLIP", "none", "MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE", 3.0),
    )
    entries = entries_of(0)
    register("random", entries)
    model = build_model(cfg)
    shapes, ious, classes, padded = [], [], [], []
    for instances, picture in by_detectron2(cfg, entries):
        images = ImageList.from_tensors([picture], model.backbone.size_divisibility)
        levels = model.backbone(images.tensor)
        anchors = model.anchor_generator([levels[f] for f in model.head_in_features])
        grid = Anchors.of(cfg).grid(*images.tensor.shape[-2:])
        assert torch.equal(grid.boxes_of(torch.arange(grid.num_anchors)), Boxes.cat(anchors).tensor)
        padded += [list(images.tensor.shape[-2:])] * len(instances)
        iou = pairwise_iou(instances.gt_boxes, Boxes.cat(anchors))
        shapes.append(instances.gt_boxes.tensor[:, 2:] - instances.gt_boxes.tensor[:, :2])
        ious.append(iou.amax(1))
        classes.append(instances.gt_classes)
    data, scales = read_boxes(["random"]), training_scales(cfg)
    assert resized_boxes(data, scales[0], 32)[2].tolist() == padded
    found = measure(data, Anchors.of(cfg), scales)
    sides = np.stack((found.width, found.height), 1)
    np.testing.assert_allclose(sides, torch.cat(shapes), atol=1e-4)
    np.testing.assert_allclose(found.iou, torch.cat(ious), atol=1e-5)
    assert np.array_equal(found.data.classes[found.box], torch.cat(classes))
    assert 30 < len(found.iou) <= 48 and 0 < found.iou.min() < 0.4 < 0.6 < found.iou.max()


def test_the_groups_are_those_of_a_loop() -> None:
    register("random", entries_of(1, pictures=12))
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", (100, 160))
    data = read_boxes(["random"])
    found = measure(data, Anchors.of(cfg), training_scales(cfg), (0.3, 0.5))
    assert [s.short for s in found.scales] == [100, 160]

    def check(rows: list[dict[str, Any]], group: Any) -> None:
        seen = 0
        for row in rows:
            mine = [i for i in range(len(found.iou)) if group(i, row["name"])]
            assert row["boxes"] == len(mine) > 0
            for at in ("0.3", "0.5"):
                share = np.mean([found.iou[i] >= np.float32(at) for i in mine])
                assert row["covered"][at] == pytest.approx(share)
            assert row["mean_best_iou"] == pytest.approx(found.iou[mine].mean())
            seen += len(mine)
        assert seen == len(found.iou)

    def area_of(i: int) -> float:
        x1, y1, x2, y2 = data.boxes[found.box[i]]
        return (x2 - x1) * (y2 - y1)

    def coco_size(i: int, name: str) -> bool:
        area = area_of(i)
        return name == ("small" if area < 32**2 else "medium" if area < 96**2 else "large")

    def size(i: int, name: str) -> bool:
        low, high = (round(2 * np.log2(float(x))) / 2 for x in name.split(" to "))
        return low <= np.log2(float(found.width[i]) * float(found.height[i])) / 2 < high

    def ratio(i: int, name: str) -> bool:
        octave = np.clip(np.log2(float(found.height[i]) / float(found.width[i])), -2, 2)
        return round(2 * np.log2(float(name))) == round(2 * octave)

    check([found.all()], lambda i, name: True)
    check(found.by_coco_size(), coco_size)
    check(found.by_size(), size)
    check(found.by_ratio(), ratio)
    check(found.by_class(), lambda i, name: CLASSES[data.classes[found.box[i]]] == name)
    check(found.by_scale(), lambda i, name: str(found.scales[found.scale[i]].short) == name)
    check(
        found.by_size_and_ratio(),
        lambda i, name: size(i, name.split(", ")[0]) and ratio(i, name.split(", ")[1]),
    )
    shares = [row["covered"]["0.5"] for row in found.by_class()]
    assert found.class_mean(0.5) == pytest.approx(np.mean(shares)) != found.share(0.5)
    assert found.num_classes == 2
    worst = found.worst(5)
    assert [w["best_iou"] for w in worst] == pytest.approx(np.sort(found.iou)[:5], abs=1e-4)


def test_pictures_are_opened_only_for_sizes_not_told(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    entries = entries_of(2, pictures=2)
    del entries[1]["height"]
    entries[1]["file_name"] = str(tmp_path / "a.png")
    register("random", entries)
    data = read_boxes(["random"])
    assert data.picture_sizes[1].tolist() == [40, 50]
    assert data.files[0] == "0.png" and data.image_ids == [100, 101]


@pytest.mark.parametrize(
    "entries, sentence", [(entries_of(0, 1), "no boxes"), ([{"file_name": "x"}], "no annotations")]
)
def test_nothing_to_cover(entries: list[dict[str, Any]], sentence: str) -> None:
    for entry in entries:
        entry |= {"height": 9, "width": 9}
        for annotation in entry.get("annotations", []):
            annotation["iscrowd"] = 1
    register("bare", entries)
    with pytest.raises(UserError, match=f"bare: {sentence}"):
        read_boxes(["bare"])


@pytest.mark.parametrize(
    "sampling, sizes, expected",
    [("choice", (800, 640), [640, 800]), ("range", (640, 800), [640, 680, 720, 760, 800])],
)
def test_scales_of_training(sampling: str, sizes: tuple[int, ...], expected: list[int]) -> None:
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", sizes, "INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling)
    assert training_scales(cfg) == [PictureScale(size, 1333) for size in expected]


@pytest.mark.parametrize("sizes", ["()", "(640, -5)"])
def test_sizes_that_no_picture_has(sizes: str) -> None:
    with pytest.raises(UserError, match=r"INPUT.MIN_SIZE_TRAIN: \(.* given; give the pixels"):
        training_scales(small_config("INPUT.MIN_SIZE_TRAIN", sizes))


# ---------------------------------------------------------------- clusters and suggestions


def test_iou_of_shapes() -> None:
    shapes = torch.rand(20, 2) * 50 + 1
    others = torch.rand(5, 2) * 50 + 1
    expected = pairwise_iou(
        Boxes(torch.cat((-shapes, shapes), 1)), Boxes(torch.cat((-others, others), 1))
    )
    torch.testing.assert_close(iou_of_shapes(shapes, others), expected)


def test_planted_clusters_are_found() -> None:
    planted = torch.tensor([[10.0, 12.0], [40.0, 20.0], [30.0, 90.0]], dtype=torch.float64)
    around = torch.linspace(-0.05, 0.05, 21, dtype=torch.float64)
    shapes = torch.cat([planted * x.exp() for x in around])
    assert torch.allclose(cluster_shapes(shapes, 3), planted)
    assert len(cluster_shapes(planted.repeat(4, 1), 5)) == 3


def test_clusters_fit_no_worse_than_any_partition() -> None:
    """Of eight boxes, all partitions in two with geometric means, but for a hundredth."""
    shapes = torch.rand(8, 2, dtype=torch.float64) * 60 + 4

    def quality(centres: torch.Tensor) -> float:
        return float(iou_of_shapes(shapes, centres).amax(1).mean())

    partitions = [torch.tensor([i >> j & 1 for j in range(8)]) == 1 for i in range(1, 128)]
    best = max(
        quality(torch.stack([shapes[p].log().mean(0).exp(), shapes[~p].log().mean(0).exp()]))
        for p in partitions
    )
    assert quality(cluster_shapes(shapes, 2)) >= best - 0.01


def small_boxes(side: float, ratio: float = 1.0) -> DatasetBoxes:
    """Two classes of boxes of about one size in pictures of 256 pixels."""
    rng = np.random.default_rng(0)
    sides = side * np.exp(rng.normal(0, 0.1, (200, 2))) * (ratio**-0.5, ratio**0.5)
    corner = rng.uniform(0, 256 - sides)
    return DatasetBoxes(
        np.concatenate((corner, corner + sides), axis=1),
        rng.integers(0, 2, 200),
        rng.integers(0, 9, 200),
        np.full((9, 2), 256),
        [f"{i}.png" for i in range(9)],
        list(range(9)),
        ("a", "b"),
    )


@pytest.mark.usefixtures("_quick_search")
@pytest.mark.parametrize("side, ratio", [(17.0, 1.0), (12.0, 0.9), (60.0, 4.0)])
def test_a_suggestion_covers_more(side: float, ratio: float) -> None:
    """Boxes too small, or too long, for the default anchors."""
    cfg = small_config()
    data, keys = small_boxes(side, ratio), AnchorKeys.of(cfg)
    assert keys == AnchorKeys(4.0, 3, (0.5, 1.0, 2.0))
    found = measure(data, Anchors.of(cfg), [PictureScale(256, 256)])
    other = suggest(found, Anchors.of(cfg), keys)
    assert other is not None
    words = [word for pair in other.keys.items().items() for word in pair]
    again = small_config(*words)  # what a person would paste
    assert AnchorKeys.of(again) == other.keys
    model = build_model(again)
    levels = model.backbone(torch.zeros(1, 3, 256, 256))
    anchors = model.anchor_generator([levels[f] for f in model.head_in_features])
    iou = pairwise_iou(Boxes(torch.from_numpy(data.boxes).float()), Boxes.cat(anchors)).amax(1)
    assert np.array_equal(other.coverage.iou, iou)
    assert (iou >= 0.5).double().mean() > found.share(0.5) + 0.1
    tried = [AnchorKeys(s, p, keys.ratios) for s in (1.0, 2.0, 4.0) for p in (1, 2, 3, 4)]
    scores = [
        score(measure(data, Anchors.of(cfg).with_keys(k), found.scales), k.a_place) for k in tried
    ]
    assert score(other.coverage, other.keys.a_place) > max(scores) - 0.02
    if ratio == 4:
        assert max(other.keys.ratios) > 2
    else:
        assert other.keys.scale < 4


@pytest.mark.usefixtures("_quick_search")
def test_nothing_is_suggested_without_need_or_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small_config()
    good = measure(small_boxes(50.0), Anchors.of(cfg), [PictureScale(256, 256)])
    keys = AnchorKeys.of(cfg)
    assert keys is not None
    assert suggest(good, Anchors.of(cfg), keys, lambda share: pytest.fail("searched")) is None
    monkeypatch.setattr(anchor_search, "_GOOD_COVERAGE", 2.0)  # searched for all the same
    assert suggest(good, Anchors.of(cfg), keys) is None
    tiny = measure(small_boxes(2.0), Anchors.of(cfg), [PictureScale(256, 256)])
    monkeypatch.setattr(anchor_search, "_SCALES", (8, 16))
    assert suggest(tiny, Anchors.of(cfg), keys) is None


@pytest.mark.parametrize(
    "shares, value, better",
    [
        ([0.8, 0.6], 1.1, True),
        ([0.8, 0.6], 1.0, False),  # no higher score
        ([0.8, 0.4], 1.1, False),  # covers less at one threshold
        ([0.701, 0.501], 1.1, False),  # not worth the change
    ],
)
def test_better_anchors_cover_no_less_anywhere(
    shares: list[float], value: float, better: bool
) -> None:
    present = np.array([0.7, 0.5]), 1.0
    assert anchor_search._is_better((np.array(shares), value), present) is better


def test_what_a_suggestion_loses_is_said() -> None:
    cfg = small_config()
    anchors, scales = Anchors.of(cfg), [PictureScale(256, 256)]
    present = measure(small_boxes(50.0), anchors, scales)
    keys = AnchorKeys(12.0, 1, (1.0,))
    other = anchor_search.Suggestion(
        keys, anchors.with_keys(keys), measure(small_boxes(50.0), anchors.with_keys(keys), scales)
    )
    losses = other.losses(present)
    assert any(x.startswith("class a") for x in losses)
    assert any(x.startswith("size 45 to 64") for x in losses)
    findings = Findings(present, anchors, AnchorKeys.of(cfg), describe_clusters(present), other)
    assert "They cover less of size" in markdown(findings)
    assert report(findings)["suggestion"]["covers_less_of"] == losses


def test_other_generators_are_measured() -> None:
    cfg = small_config("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16.0], [32.0], [64.0], [128.0], [256.0]]
    anchors = Anchors.of(cfg)
    assert AnchorKeys.of(cfg) is None
    assert anchors.a_place == 3
    found = measure(small_boxes(17.0), anchors, [PictureScale(256, 256)])
    assert found.share(0.5) > 0.8
    assert "only for RetinaNetAnchorGenerator" in Findings(found, anchors, None, [], None).verdict


# ---------------------------------------------------------------- the command


def run(*words: object) -> None:
    command.main(["--config-file", "Base-Scratch-R18.yaml", *map(str, words)])


@pytest.mark.usefixtures("_quick_search")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register("tiny", entries_of(3, sizes=(15, 22)))
    out = tmp_path / "out"
    words = ["--dataset", "tiny", "--out", out, "INPUT.MIN_SIZE_TRAIN", "(128,)"]
    run(*words)
    printed = capsys.readouterr().out
    assert "SCALES_PER_OCTAVE: " in printed and "| dog |" in printed
    assert (out / "anchor_coverage.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "anchor_coverage.json").read_text())
    assert found["data_sets"] == ["tiny"]
    present, other = found["coverage"], found["suggestion"]["coverage"]
    for at in ("0.4", "0.5"):
        assert other["all"]["covered"][at] > present["all"]["covered"][at]
    assert sum(row["boxes"] for row in present["by_class"]) == present["all"]["boxes"]
    worst = found["worst_boxes"][0]
    assert worst["file"].endswith(".png") and worst["image_id"] >= 100
    with pytest.raises(UserError, match=r"already holds anchor_coverage.png"):
        run(*words)
    run(*words, "--overwrite", "MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE", 2.0)
    assert "present anchors cover" in capsys.readouterr().out


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'--dataset: no data set "coco_2017_trian".*did you mean'):
        run("--dataset", "coco_2017_trian")
    register("tiny", entries_of(3, pictures=1))
    with pytest.raises(UserError, match=r"MODEL\.RETINANET\.IOU_LABELS"):
        run(*("--dataset", "tiny", "--out", tmp_path, "MODEL.RETINANET.IOU_LABELS", "[0, -1, -1]"))
