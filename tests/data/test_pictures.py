"""Pictures absent, damaged, of another size or turned by EXIF: found before or while decoding."""

import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import SIZES, forget_new_sets, own_config, valid_content, write_set
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from PIL import Image

from retinanet_plugin.data import images as pictures
from retinanet_plugin.data.coco_entries import Entries
from retinanet_plugin.data.images import ReadableDatasetMapper, check_pictures, read_picture
from retinanet_plugin.data.own import register_own_datasets
from retinanet_plugin.errors import UserError, sentence_of


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    with forget_new_sets():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path)
    return tmp_path / "images"


def entries(*names: str) -> Entries:
    rows = [row for row in valid_content()["images"] if row["file_name"] in (names or SIZES)]
    return Entries(Path("train.json"), "images", rows)


def sentence(images: Entries, folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        check_pictures(images, folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def huge_png(side: int) -> bytes:
    """A few bytes that claim to be a picture of ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99))


def cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def test_pictures_in_order(folder: Path) -> None:
    check_pictures(entries(), folder)


def test_absent(folder: Path) -> None:
    (folder / "a.png").unlink()
    assert sentence(entries(), folder) == (
        f'train.json: images[0] (id 10): no picture "a.png" in {folder}; '
        f"add it, correct the folder or remove the entry"
    )
    (folder / "sub" / "c.png").unlink()
    assert sentence(entries(), folder).endswith("remove the entry (1 more like it)")
    assert "(2 more like it)" in sentence(entries(), folder / "nowhere")
    assert "(2 more like it)" in sentence(entries(), folder / "b.png")


@pytest.mark.parametrize("found", ["sub/a.png", "a.PNG", "a.jpg", "../a.png"])
def test_absent_but_near_by(folder: Path, found: str) -> None:
    (folder / "a.png").rename(folder / found)
    assert f"(there is {(folder / found).resolve()})" in sentence(entries(), folder)


def test_name_with_too_many_folders(folder: Path) -> None:
    images = entries("a.png")
    images.rows[0]["file_name"] = "images/a.png"
    assert f"(there is {folder}/a.png)" in sentence(images, folder)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", huge_png(60_000)]
)
def test_unreadable_header(folder: Path, content: bytes) -> None:
    (folder / "b.png").write_bytes(content)
    text = sentence(entries(), folder)
    assert f"images[1] (id 11): {folder}/b.png cannot be read as a picture (" in text
    assert text.endswith("); replace it or its entry")


def test_folder_in_place_of_a_picture(folder: Path) -> None:
    (folder / "b.png").unlink()
    (folder / "b.png").mkdir()
    assert "cannot be read as a picture (Is a directory)" in sentence(entries(), folder)


@pytest.mark.parametrize(
    "name, dtype",
    [("a.png", np.uint16), ("a.tif", np.uint16), ("a.tif", np.int32), ("a.tif", np.float32)],
)
def test_grey_that_would_turn_white(tmp_path: Path, name: str, dtype: type) -> None:
    deep = np.linspace(0, 60_000, 30 * 40).reshape(30, 40).astype(dtype)
    Image.fromarray(deep).save(tmp_path / name)
    white = read_image(str(tmp_path / name), format="BGR") == 255
    assert white.mean() > 0.99  # as detectron2 reads it
    with pytest.raises(OSError, match=r"its grey has more than 8 bits .* save it with 8"):
        read_picture(str(tmp_path / name), "BGR")
    row = {"id": 1, "file_name": name, "width": 40, "height": 30}
    rows = Entries(Path("a.json"), "images", [row])
    assert f"{name} cannot be read as a picture (its grey has more" in sentence(rows, tmp_path)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_are_read(tmp_path: Path, name: str, mode: str) -> None:
    shades = Image.linear_gradient("L").resize((40, 30))
    shades.convert(mode).save(tmp_path / name)
    expected = np.asarray(shades.convert(mode).convert("RGB"))
    np.testing.assert_array_equal(read_picture(str(tmp_path / name), "RGB"), expected)


def test_other_size(folder: Path) -> None:
    Image.new("RGB", (31, 40)).save(folder / "b.png")
    assert sentence(entries(), folder) == (
        f"train.json: images[1] (id 11): {folder}/b.png is 31 x 40, but the JSON says 30 x 40; "
        f"correct width and height there, or the picture"
    )


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(9))
def test_size_is_what_detectron2_will_read(
    tmp_path: Path, extension: str, orientation: int
) -> None:
    file = tmp_path / f"a.{extension}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    height, width = read_image(str(file), format="BGR").shape[:2]
    row = {"id": 1, "file_name": file.name}
    right = Entries(Path("a.json"), "images", [row | {"width": width, "height": height}])
    check_pictures(right, tmp_path)
    wrong = Entries(Path("a.json"), "images", [row | {"width": height, "height": width}])
    text = sentence(wrong, tmp_path)
    assert f"{file} is {width} x {height}" in text
    assert ("after its EXIF rotation" in text) == (5 <= orientation <= 8)


def test_no_picture_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self))
    check_pictures(entries(), folder)
    assert not decoded


def test_of_many_pictures_a_sample_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_HEADERS", 2)  # of three: the first and the last
    (folder / "b.png").write_bytes(b"")
    check_pictures(entries(), folder)
    (folder / "b.png").unlink()
    assert 'no picture "b.png"' in sentence(entries(), folder)  # names are all looked at
    (folder / "b.png").touch()
    (folder / "sub" / "c.png").write_bytes(b"")
    assert "c.png cannot be read" in sentence(entries(), folder)


# ---------------------------------------------------------------- while decoding


def mapper(is_train: bool, *augmentations: Any) -> ReadableDatasetMapper:
    return ReadableDatasetMapper(is_train, augmentations=list(augmentations), image_format="BGR")


def record(folder: Path, **changes: object) -> dict[str, Any]:
    return {"file_name": str(folder / "a.png"), "width": 40, "height": 30, **changes}


@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_gives_what_detectron2s_gives(tmp_path: Path, is_train: bool) -> None:
    write_set(tmp_path)
    cfg = own_config(tmp_path, TRAIN_JSON="train.json", TRAIN_IMAGES="images")
    register_own_datasets(cfg)
    ours = pickle.loads(pickle.dumps(ReadableDatasetMapper(cfg, is_train)))
    theirs = DatasetMapper(cfg, is_train)
    for row in DatasetCatalog.get("own_train"):
        np.random.seed(0)  # which detectron2's augmentations draw from
        mine = ours(row)
        np.random.seed(0)
        expected = theirs(row)
        assert mine.keys() == expected.keys()
        assert torch.equal(mine["image"], expected["image"])
        if is_train:
            boxes, theirs_boxes = mine["instances"].gt_boxes, expected["instances"].gt_boxes
            assert torch.equal(boxes.tensor, theirs_boxes.tensor)


@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_names_what_it_cannot_read(folder: Path, is_train: bool) -> None:
    read = mapper(is_train)
    with pytest.raises(UserError, match=r"a\.png: the picture is 40 x 30, .* say 41 x 30; correct"):
        read(record(folder, width=41))
    cut(folder / "a.png", 0.6)
    check_pictures(entries(), folder)  # the header is in order
    with pytest.raises(UserError) as raised:
        read(record(folder))
    assert str(raised.value).startswith(f"{folder}/a.png: the picture cannot be read (")
    assert str(raised.value).endswith("); replace the file or its entry")
    (folder / "a.png").write_bytes(huge_png(60_000))
    with pytest.raises(UserError, match=r"a\.png: the picture cannot be read \(.*exceeds limit"):
        read(record(folder))
    (folder / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png: .* \(No such file or directory\); replace"):
        read(record(folder))


def test_other_errors_are_not_blamed_on_the_picture(folder: Path) -> None:
    class Broken(T.Augmentation):
        def get_transform(self, image: object) -> object:
            raise OSError("disk of the augmentation")

    with pytest.raises(OSError, match="disk of the augmentation"):
        mapper(True, Broken())(record(folder))
    with pytest.raises(KeyError, match="file_name"):
        mapper(True)({"width": 40})


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("is_train", [True, False])
def test_sentence_survives_the_data_loader(tmp_path: Path, workers: int, is_train: bool) -> None:
    write_set(tmp_path)
    cfg = own_config(tmp_path, TRAIN_JSON="train.json", TRAIN_IMAGES="images")
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SOLVER.IMS_PER_BATCH = 2
    register_own_datasets(cfg)
    damaged = tmp_path / "images" / "a.png"
    cut(damaged, 0.6)
    read = ReadableDatasetMapper(cfg, is_train)
    if is_train:
        loader = build_detection_train_loader(cfg, mapper=read)
    else:
        loader = build_detection_test_loader(cfg, "own_train", mapper=read)
    with pytest.raises(UserError) as raised:
        for _ in range(20):
            for _batch in loader:
                pass
    found = sentence_of(raised.value)
    assert found is not None
    assert found.startswith(f"{damaged}: the picture cannot be read (")
    assert found.endswith("; replace the file or its entry")
