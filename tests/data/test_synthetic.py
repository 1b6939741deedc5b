"""The synthetic dataset, judged by its pixels and files, OpenCV's contours and pycocotools."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from retinanet_plugin.data import synthetic
from retinanet_plugin.data.shapes import CLASSES, Difficulty, draw_image
from retinanet_plugin.data.synthetic import draw_dataset
from retinanet_plugin.errors import UserError

DISTRACTIONS = (
    *("empty_share", "max_cut", "object_texture", "background_texture", "max_clutter_below"),
    *("max_clutter_above", "max_shade", "max_noise", "max_blur"),
)
PLAIN = replace(Difficulty(max_objects=1), **dict.fromkeys(DISTRACTIONS, 0))
small_dataset = partial(draw_dataset, num_train=3, num_test=2, size=64)


def rng_of(index: int) -> np.random.Generator:
    return np.random.default_rng([7, index])


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------- images


def foreground(image: np.ndarray) -> np.ndarray:
    """Where a plain image differs from its background, which its corner shows."""
    return (image != image[0, 0]).any(axis=-1)


@pytest.mark.parametrize("size", [64, 160])
def test_box_is_tight_around_the_pixels_that_show_the_object(size):
    seen = 0
    for index in range(60):
        image, objects = draw_image(rng_of(index), size, PLAIN)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        for _, (x0, y0, x1, y1) in objects:
            rows, columns = np.nonzero(foreground(image))
            # A box edge inside a pixel gives that pixel a share of the object.
            assert (columns.min(), rows.min()) == (np.floor(x0), np.floor(y0))
            assert (columns.max() + 1, rows.max() + 1) == (np.ceil(x1), np.ceil(y1))
            seen += 1
    assert seen > 50


def shape_from_pixels(mask: np.ndarray) -> str:
    """Recognizes a shape by its hole, its convexity and its corners, as a person would."""
    large = cv2.resize(mask.astype(np.uint8) * 255, None, fx=4, fy=4)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = next(c for c, links in zip(contours, hierarchy[0], strict=True) if links[3] < 0)
    if len(contours) == 2:
        return "ring"
    if cv2.contourArea(outer) < 0.85 * cv2.contourArea(cv2.convexHull(outer)):
        return "cross"
    corners = cv2.approxPolyDP(outer, 0.03 * cv2.arcLength(outer, True), True)
    return "triangle" if len(corners) == 3 else "disc"


def test_label_is_the_shape_that_the_pixels_show():
    difficulty = replace(PLAIN, min_side=50)
    labels = []
    for index in range(80):
        image, objects = draw_image(rng_of(index), 160, difficulty)
        for class_index, _ in objects:
            labels.append(CLASSES[class_index])
            assert shape_from_pixels(foreground(image)) == labels[-1], f"image {index}"
    assert set(labels) == set(CLASSES)


def test_distribution_of_sizes_classes_and_counts():
    drawn = [draw_image(rng_of(index), 128)[1] for index in range(250)]
    counts = np.array([len(objects) for objects in drawn])
    assert 0.05 < np.mean(counts == 0) < 0.18
    assert 4 < counts.max() <= Difficulty().max_objects
    boxes = np.array([box for objects in drawn for _, box in objects])
    assert (boxes >= 0).all() and (boxes <= 128).all()
    side = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert side.min() < 17 and side.max() > 65
    assert 0.1 < np.mean(side < 20) < 0.45
    assert 0.15 < np.mean(side > 45) < 0.4
    per_class = np.bincount([c for objects in drawn for c, _ in objects], minlength=len(CLASSES))
    assert per_class.min() > 0.2 * per_class.sum()


# ---------------------------------------------------------------- on disk


def test_seed_and_index_determine_the_bytes(tmp_path):
    small_dataset(tmp_path / "a", seed=3)
    small_dataset(tmp_path / "made/on/the/way", seed=3)
    small_dataset(tmp_path / "more", seed=3, num_train=6, num_test=4)
    small_dataset(tmp_path / "other", seed=4)
    first = files_of(tmp_path / "a")
    assert first == files_of(tmp_path / "made/on/the/way")
    assert len(first) == len(set(first.values())) == 3 + 2 + 2, "no image occurs twice"
    images = {item for item in first.items() if item[0].endswith(".png")}
    assert images <= files_of(tmp_path / "more").items()
    assert not set(first.values()) & set(files_of(tmp_path / "other").values())


def test_detectron2_reads_what_was_drawn(tmp_path):
    draw_dataset(tmp_path / "set", num_train=12, num_test=1, size=128, seed=5)
    json_file, images = tmp_path / "set/annotations/train.json", tmp_path / "set/train"
    records = load_coco_json(str(json_file), str(images), "test_synthetic_reading")
    metadata = MetadataCatalog.pop("test_synthetic_reading")
    assert metadata.thing_classes == list(CLASSES)
    assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(len(CLASSES))}
    assert len(records) == 12
    for index, record in enumerate(records):
        image, objects = draw_image(np.random.default_rng([5, 0, index]), 128)
        np.testing.assert_array_equal(cv2.imread(record["file_name"]), image)
        assert (record["height"], record["width"]) == (128, 128)
        boxes = [(a["category_id"], a["bbox"]) for a in record["annotations"]]
        assert boxes == [(c, [x0, y0, x1 - x0, y1 - y0]) for c, (x0, y0, x1, y1) in objects]


@pytest.mark.parametrize(
    ("name", "text"),
    [("test.json", None), ("test.json", "{"), ("train.json", "[]"), ("train.json", '{"info": {}}')],
)
def test_anything_else_is_an_error_and_stays(tmp_path, name, text):
    root = tmp_path / "set"
    small_dataset(root)
    with pytest.raises(UserError, match=str(root)):
        small_dataset(root, seed=2)
    file = root / "annotations" / name
    file.write_text(text) if text else file.unlink()
    before = files_of(root)
    for path in (root, file.parent, file.parent / "train.json", file.parent / "train.json/set"):
        with pytest.raises(UserError, match=str(path)):
            small_dataset(path)
    assert files_of(root) == before


def test_interrupted_drawing_leaves_no_images_behind(tmp_path, monkeypatch):
    drawn = []

    def draw_two_then_stop(*arguments):
        drawn.append(draw_image(*arguments))
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return drawn[-1]

    monkeypatch.setattr(synthetic, "draw_image", draw_two_then_stop)
    with pytest.raises(KeyboardInterrupt):
        small_dataset(tmp_path / "set")
    assert {path.name for path in tmp_path.iterdir()} <= {".set.lock"}


def test_processes_that_start_together_draw_once(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(small_dataset, [tmp_path / "set"] * 2))
    assert len(files_of(tmp_path / "set")) == 3 + 2 + 2
    assert {path.name for path in tmp_path.iterdir()} <= {"set", ".set.lock"}
    monkeypatch.setattr(synthetic, "draw_image", None)  # would fail if it were called
    small_dataset(tmp_path / "set")


# ---------------------------------------------------------------- detectron2's catalogs


def test_register_is_lazy_and_idempotent_and_loading_draws(tmp_path, monkeypatch):
    for folder in (None, tmp_path / "sets"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            monkeypatch.setattr(catalog, "data", {})
        if folder:
            monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
        else:
            monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
        synthetic.register()
        root = Path(folder or "datasets") / "retinanet_quickstart"
        assert MetadataCatalog.get("retinanet_quickstart_train").image_root == str(root / "train")
    synthetic.register()
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(synthetic, "draw_dataset", small_dataset)
    monkeypatch.setenv("DETECTRON2_DATASETS", "/too/late")
    for split, count in (("train", 3), ("test", 2)):
        name = f"retinanet_quickstart_{split}"
        records = DatasetCatalog.get(name)
        assert [Path(r["file_name"]).parent for r in records] == [root / split] * count
        assert all(Path(r["file_name"]).is_file() for r in records)
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file == str(root / f"annotations/{split}.json")
        assert metadata.image_root == str(root / split)
        assert metadata.evaluator_type == "coco"
        assert metadata.thing_classes == list(CLASSES)
