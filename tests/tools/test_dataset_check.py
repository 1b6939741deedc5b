"""Each kind of fault is found where it was planted and nothing else; mended copies train."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import forget_new_sets
from conftest import small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from faulty_set import PLANT, picture, plant, write_clean_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from retinanet_plugin.tools.check_dataset.command.boxes import AnchorRule
from retinanet_plugin.tools.check_dataset.command.check import Checked, check
from retinanet_plugin.tools.check_dataset.command.draw import COLOURS, draw
from retinanet_plugin.tools.check_dataset.command.entries import (
    read_set,
    sources_of,
    sources_of_files,
)
from retinanet_plugin.tools.check_dataset.command.findings import KINDS
from retinanet_plugin.tools.check_dataset.command.fix import copies_of, mend, turned, write_mended
from retinanet_plugin.tools.check_dataset.command.page import html
from retinanet_plugin.tools.check_dataset.command.pictures import look_at_file
from retinanet_plugin.tools.check_dataset.command.table import report, terminal

from retinanet_plugin import UserError
from retinanet_plugin.data import ReadableDatasetMapper
from retinanet_plugin.data.coco_json import read_coco
from retinanet_plugin.data.images import check_pictures as check_own_pictures
from retinanet_plugin.data.own import register_own_datasets
from retinanet_plugin.tools.check_dataset.command import check_dataset as command


@cache
def rule() -> AnchorRule:
    return command.anchor_rule(small_config("INPUT.MIN_SIZE_TRAIN", "(144,)"))


def checked(folder: Path) -> Checked:
    files = [str(folder / name) for name in ("train.json", "val.json")]
    return check(sources_of_files(files, [str(folder / "pictures")]), rule(), 2)


def found(result: Checked) -> Counter[tuple[str, str]]:
    return Counter((finding.severity, finding.kind) for finding in result.findings)


@pytest.mark.parametrize("kinds", [(), *((kind,) for kind in PLANT), tuple(PLANT)], ids=str)
def test_what_was_planted_is_found_and_nothing_else(tmp_path: Path, kinds: tuple[str]) -> None:
    planted = plant(tmp_path, *kinds)
    result = checked(tmp_path)
    expected = Counter((severity, kind) for kind in kinds for severity, _ in planted[kind])
    assert found(result) == expected, [f.text for f in result.findings]
    for kind in kinds:
        assert kind in KINDS
        texts = [(f.severity, f.text) for f in result.findings if f.kind == kind]
        for severity, words in planted[kind]:
            assert any(s == severity and words in text for s, text in texts), (words, texts)


def test_files_of_any_content(tmp_path: Path) -> None:
    write_clean_set(tmp_path)
    for content in (
        *(b"", b"[]", b"{", b"\xff", b'{"images": 1}', b"1" * 5000, b"[" * 99_999, b"null"),
        *(b'{"images": [], "categories": [], "annotations": []}', b'{"images": [[[]], 1, null]}'),
        b'{"images": [{"id": 1, "file_name": "\\ud800/a\\u0000b.png"}], "annotations": [{"bbox": '
        + b"[" * 900
        + b"]" * 900
        + b'}], "categories": [{"id": [], "name": {}}]}',
    ):
        (tmp_path / "train.json").write_bytes(content)
        result = checked(tmp_path)
        train = [f for f in result.findings if f.file.endswith("train.json")]
        assert any(f.kind == "unusable file" for f in train), content[:50]
        assert result.count("error")
        assert "unusable file" in terminal(result)
        json.dumps(report(result), allow_nan=False)
        html(result).encode()
        with pytest.raises(UserError, match="--fix: "):
            mend(result)


# ---------------------------------------------------------------- mended copies


def mended(folder: Path, result: Checked) -> Path:
    """Writes the copies into a folder beside the same pictures; returns it."""
    out = folder / "mended"
    write_mended(mend(result), copies_of([one.source for one in result.sets], out, overwrite=True))
    (out / "pictures").exists() or (out / "pictures").symlink_to(folder / "pictures")
    return out


def test_mended_copies_are_accepted_and_train_a_step(tmp_path: Path) -> None:
    plant(tmp_path, *PLANT)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    out = mended(tmp_path, checked(tmp_path))
    again = checked(out)
    left = Counter(f.kind for f in again.findings if f.severity != "info")
    # What --fix leaves to people; the picture of which EXIF tells nothing stays, too.
    assert left == {
        "classes of one name": 2,
        "unused class": 2,
        "rare class": 1,
        "picture twice": 2,
        "EXIF rotation": 1,
        "large box": 1,
        "unmatched box": 2,
    }
    assert not again.count("error")
    read = [read_coco(out / "train.json"), read_coco(out / "val.json", for_training=False)]
    assert not any(coco.mended for coco in read)
    assert read[0].classes == read[1].classes
    assert before == {path: path.read_bytes() for path in before}
    cfg = small_config(
        *("DATASETS.OWN.ROOT", out, "DATASETS.OWN.TRAIN_JSON", "train.json"),
        *("DATASETS.OWN.TRAIN_IMAGES", "pictures", "DATASETS.OWN.TEST_JSON", "val.json"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.RETINANET.NUM_CLASSES", "-1"),
        *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", tmp_path),
    )
    with forget_new_sets():
        register_own_datasets(cfg)
        mapper = ReadableDatasetMapper(cfg, is_train=True)
        batch = [mapper(entry) for entry in DatasetCatalog.get("own_train")]
        losses = build_model(cfg)(batch[::4])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


def test_what_becomes_of_boxes(tmp_path: Path) -> None:
    plant(tmp_path, "box outside", "duplicate box", "EXIF rotation", "classes of one name")
    out = mended(tmp_path, checked(tmp_path))
    content = json.loads((out / "train.json").read_text())
    of_third = [row["bbox"] for row in content["annotations"] if row["image_id"] == 3]
    assert [60, 40, 36, 20] in of_third
    assert len(of_third) == 2 + 1 + 4
    of_fourth = [row["bbox"] for row in content["annotations"] if row["image_id"] == 4]
    assert [4, 5, 40, 30] in of_fourth
    assert len(of_fourth) == 2 + 4
    assert {row["category_id"] for row in content["annotations"]} == {1, 2, 12}
    assert [row["id"] for row in content["categories"]] == [1, 2, 12]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_are_turned_as_detectron2_turns_the_picture(tmp_path: Path, orientation: int) -> None:
    x, y, width, height = 10, 4, 25, 12
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[y : y + height, x : x + width] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    seen = np.argwhere(read_image(str(tmp_path / "a.png"), "RGB")[..., 0])
    (top, left), (bottom, right) = seen.min(axis=0), seen.max(axis=0) + 1
    file = look_at_file(tmp_path / "a.png")
    assert turned([x, y, width, height], file) == [left, top, right - left, bottom - top]


WILD: list[Any] = [
    *(None, True, -1, 0, 1, 2, 2**70, 1.5, float("nan"), float("inf"), 1e308, "", "1", "a.png"),
    *([], [1], [[1]], {}, {"id": 1}, [1, 2, 3, 4], ["1", 2, 3, 4], [5, 5, 20, 20], "\ud800"),
    *([1e308] * 4, [float("nan")] * 4, [90, 70, 30, 30], [-5, -5, 8, 8], [1, 1, 1e-9, 3]),
]


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in inner:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_error_is_what_training_accepts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """With anything in place of anything, it ends, and agrees with the check before training."""
    folder = tmp_path_factory.getbasetemp() / "wild"
    if folder.exists():
        content = json.loads((folder / "sound.json").read_text())
    else:
        content, _ = write_clean_set(folder)
        (folder / "sound.json").write_text(json.dumps(content))
    for *path, last in data.draw(
        st.lists(st.sampled_from(places(content)), min_size=1, max_size=4)
    ):
        place = content
        for key in path:
            place = place[key] if isinstance(place, dict | list) and _has(place, key) else None
        if isinstance(place, dict) or (isinstance(place, list) and _has(place, last)):
            place[last] = data.draw(st.sampled_from(WILD))
    file = folder / "train.json"
    file.write_text(json.dumps(content))
    result = checked(folder)
    refused = None
    try:
        coco = read_coco(file)
        check_own_pictures(coco.images, folder / "pictures")
    except UserError as error:
        refused = str(error)
    told = [f for f in result.findings if f.severity == "error" and f.kind != "classes differ"]
    assert bool(told) == bool(refused), (refused, told)
    json.dumps(report(result), allow_nan=False)
    terminal(result)
    try:
        out = mended(folder, result)
    except UserError:
        return
    read_coco(out / "train.json")
    assert not checked(out).count("error")


def _has(place: Any, key: Any) -> bool:
    return key in place if isinstance(place, dict) else isinstance(key, int) and key < len(place)


# ---------------------------------------------------------------- which sets, and the page


def test_a_registered_set_without_a_json(tmp_path: Path) -> None:
    """Boxes of both of detectron2's modes, as loaders of other formats give them."""
    plant(tmp_path, "unmatched box")
    with forget_new_sets():
        register_coco_instances(
            "theirs", {}, str(tmp_path / "train.json"), str(tmp_path / "pictures")
        )
        cfg = small_config("DATASETS.TRAIN", "('theirs',)", "DATASETS.TEST", "('other',)")
        entries = DatasetCatalog.get("theirs")
        for annotation in (a for entry in entries for a in entry["annotations"][:1]):
            x, y, width, height = annotation["bbox"]
            annotation |= {"bbox": [x, y, x + width, y + height], "bbox_mode": BoxMode.XYXY_ABS}
        DatasetCatalog.register("other", lambda: entries)
        MetadataCatalog.get("other").thing_classes = ["cat", "dog"]
        by_json, other = (read_set(source) for source in sources_of(cfg))
    assert other.source.folder == tmp_path / "pictures"
    assert not other.source.training
    assert not by_json.findings + other.findings
    for rows in (by_json, other):
        assert list(rows.categories.values()) == ["cat", "dog"]
    assert [
        (row["bbox"], other.categories[row["category_id"]]) for row in other.annotations.values()
    ] == [
        (row["bbox"], by_json.categories[row["category_id"]])
        for row in by_json.annotations.values()
    ]


def test_page_shows_every_kind_and_runs_nothing_of_the_data(tmp_path: Path) -> None:
    plant(tmp_path, *PLANT)
    file = tmp_path / "train.json"
    hostile = "<script>alert(1)</script>\"'&.png"
    content = json.loads(file.read_text())
    content["images"][-1]["file_name"] = hostile
    content["images"].append({"id": 99, "file_name": "\u001b[31m", "width": 1, "height": 1})
    content["categories"][0]["name"] = hostile
    file.write_text(json.dumps(content))
    result = checked(tmp_path)
    document = html(result)
    assert document.count("<script>") == 1  # of the shell, which is empty here
    assert "<script></script>" in document
    assert "\x1b" not in document + terminal(result)
    for kind in (*PLANT, "absent picture"):
        assert f"-{kind.replace(' ', '-')}" in document
    assert document.count("<img ") > len(PLANT)
    assert len(document) < 5e6


@pytest.mark.parametrize("box", [(-300.0, -9.0, 700.0, 20.0), (0.0, 0.0, 1e9, 1e9), (5, 5, 5, 9)])
def test_any_box_can_be_drawn(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    picture(0).save(tmp_path / "a.png")
    drawn = draw(str(tmp_path / "a.png"), "error", box, [box, (1, 1, 9, 9)])
    assert (drawn == COLOURS["error"]).all(axis=2).any()


def test_nothing_is_done_before_the_files_are_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "a.json").touch()
    with pytest.raises(
        UserError, match=r"--json: .*b\.json is not there \(did you mean \"a\.json\""
    ):
        sources_of_files([str(tmp_path / "b.json")], [str(tmp_path / "images")])
    with pytest.raises(UserError, match=r"--images: .*image is not there"):
        sources_of_files([str(tmp_path / "a.json")], [str(tmp_path / "image")])
    with pytest.raises(UserError, match="--images: given 2 times for 1 --json"):
        sources_of_files([str(tmp_path / "a.json")], [str(tmp_path / "images")] * 2)


def test_originals_are_never_replaced(tmp_path: Path) -> None:
    write_clean_set(tmp_path)
    sources = [one.source for one in checked(tmp_path).sets]
    with pytest.raises(UserError, match=r"--fix: .*train\.json is one of the files to be checked"):
        copies_of(sources, tmp_path, overwrite=True)
    out = tmp_path / "out"
    assert [path.name for path in copies_of([*sources, sources[0]], out, overwrite=False)] == [
        *("train.json", "val.json", "train_2.json")
    ]
    (out / "val.json").touch()
    with pytest.raises(UserError, match=r"--fix: .*out already holds val\.json"):
        copies_of(sources, out, overwrite=False)
