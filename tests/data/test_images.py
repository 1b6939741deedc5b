"""Images that are missing, damaged, resized or rotated by EXIF: found before or while decoding."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import SIZES, forget_new_sets, own_config, valid_content, write_set
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image as read_image_of_detectron2
from PIL import Image

from retinanet_plugin.data import ReadableDatasetMapper, image_rules, register_own_datasets
from retinanet_plugin.data.coco_rules import CocoDataset
from retinanet_plugin.data.image_rules import check_image_files
from retinanet_plugin.data.images import read_image
from retinanet_plugin.errors import UserError, printable, sentence_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path)
    return tmp_path / "images"


@pytest.fixture
def registered(folder: Path) -> Iterator[CfgNode]:
    cfg = own_config(folder.parent, TRAIN_JSON="train.json", TRAIN_IMAGES="images")
    with forget_new_sets():
        register_own_datasets(cfg)
        yield cfg


def dataset(*images: dict[str, Any]) -> CocoDataset:
    rows = list(images) or valid_content()["images"]
    result = CocoDataset(Path("train.json"), {"images": rows})
    list(result.check())
    return result


def error_of(data: CocoDataset, folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        check_image_files(data, folder)
    text = str(raised.value)
    assert text == printable(text)
    assert text.startswith("train.json: images[")
    return text


def cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def test_sound_images_are_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self))
    check_image_files(dataset(), folder)
    assert not decoded


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", None])
def test_unreadable_header(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / "b.png").unlink()
        (folder / "b.png").mkdir()
    else:
        (folder / "b.png").write_bytes(content)
    text = error_of(dataset(), folder)
    assert 'images[1] (id 11) "b.png": cannot be read' in text
    assert content is not None or "not a regular file" in text


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", np.uint16), ("a.tif", np.uint16), ("a.tif", np.int32), ("a.tif", np.float32)],
)
def test_gray_levels_that_would_turn_white(tmp_path: Path, name: str, dtype: type) -> None:
    deep = np.linspace(0, 60_000, 30 * 40).reshape(30, 40).astype(dtype)
    Image.fromarray(deep).save(tmp_path / name)
    white = read_image_of_detectron2(str(tmp_path / name), format="BGR") == 255
    assert white.mean() > 0.99
    with pytest.raises(OSError, match="8 bits"):
        read_image(str(tmp_path / name), "BGR")
    row = {"id": 1, "file_name": name, "width": 40, "height": 30}
    assert "8 bits" in error_of(dataset(row), tmp_path)


@pytest.mark.parametrize("name", ["gray.png", "gray.tif"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_are_read(tmp_path: Path, name: str, mode: str) -> None:
    shades = Image.linear_gradient("L").resize((40, 30))
    shades.convert(mode).save(tmp_path / name)
    expected = np.asarray(shades.convert(mode).convert("RGB"))
    np.testing.assert_array_equal(read_image(str(tmp_path / name), "RGB"), expected)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(9))
def test_size_is_what_detectron2_reads(tmp_path: Path, extension: str, orientation: int) -> None:
    file = tmp_path / f"a.{extension}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    height, width = read_image_of_detectron2(str(file), format="BGR").shape[:2]
    row = {"id": 1, "file_name": file.name}
    check_image_files(dataset(row | {"width": width, "height": height}), tmp_path)
    text = error_of(dataset(row | {"width": height, "height": width}), tmp_path)
    assert f"is {width} x {height}" in text
    assert ("EXIF" in text) == (5 <= orientation <= 8)


def test_only_a_sample_of_headers_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_rules, "MAX_HEADERS", 2)  # of three: the first and the last
    (folder / "b.png").write_bytes(b"")
    check_image_files(dataset(), folder)
    (folder / "b.png").unlink()
    text = error_of(dataset(), folder)  # all names are checked
    assert 'images[1] (id 11) "b.png"' in text and f"in {folder};" in text
    (folder / "b.png").touch()
    (folder / "sub" / "c.png").write_bytes(b"")
    assert '"sub/c.png": cannot be read' in error_of(dataset(), folder)


# ---------------------------------------------------------------- while decoding


def mapper(is_train: bool, *augmentations: Any) -> ReadableDatasetMapper:
    return ReadableDatasetMapper(is_train, augmentations=list(augmentations), image_format="BGR")


def record(folder: Path, **changes: object) -> dict[str, Any]:
    width, height = SIZES["a.png"]
    return {"file_name": str(folder / "a.png"), "width": width, "height": height, **changes}


@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_returns_what_detectron2s_returns(registered: CfgNode, is_train: bool) -> None:
    ours = pickle.loads(pickle.dumps(ReadableDatasetMapper(registered, is_train)))
    theirs = DatasetMapper(registered, is_train)
    for row in DatasetCatalog.get("own_train"):
        np.random.seed(0)  # detectron2's augmentations use it
        actual = ours(row)
        np.random.seed(0)
        expected = theirs(row)
        assert actual.keys() == expected.keys()
        assert torch.equal(actual["image"], expected["image"])
        if is_train:
            boxes = [x["instances"].gt_boxes.tensor for x in (actual, expected)]
            assert torch.equal(*boxes)


@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_names_what_it_cannot_read(folder: Path, is_train: bool) -> None:
    read = mapper(is_train)
    with pytest.raises(UserError, match=r"a\.png: .* 40 x 30, .* 41 x 30"):
        read(record(folder, width=41))
    cut(folder / "a.png", 0.6)
    check_image_files(dataset(), folder)  # the header is in order
    with pytest.raises(UserError, match=rf"^{folder}/a\.png: "):
        read(record(folder))
    (folder / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png: .*No such file"):
        read(record(folder))


def test_other_errors_are_not_blamed_on_the_image(folder: Path) -> None:
    class Broken(T.Augmentation):
        def get_transform(self, image: object) -> object:
            raise OSError("disk of the augmentation")

    with pytest.raises(OSError, match="disk of the augmentation"):
        mapper(True, Broken())(record(folder))
    with pytest.raises(KeyError, match="file_name"):
        mapper(True)({"width": 40})


def test_the_error_survives_the_data_loader(registered: CfgNode, folder: Path) -> None:
    registered.DATALOADER.NUM_WORKERS = 1
    cut(folder / "a.png", 0.6)
    mapper = ReadableDatasetMapper(registered, is_train=False)
    with pytest.raises(UserError) as raised:
        list(build_detection_test_loader(registered, "own_train", mapper=mapper))
    message = sentence_of(raised.value)
    assert message is not None
    assert message.startswith(f"{folder}/a.png: ")
    assert "\n" not in message
