"""One fault at a time in a valid file: each error names the file, the entry and the field."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_sets import any_faults, box, valid_content, write_json
from detectron2.data.datasets import load_coco_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet_plugin.data import coco_json
from retinanet_plugin.data.coco_json import read_coco
from retinanet_plugin.errors import UserError, printable

Content = dict[str, Any]


def error_of(path: Path, **options: Any) -> str:
    """The message of the error, without the file that it must begin with."""
    with pytest.raises(UserError) as raised:
        read_coco(path, **options)
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert text == printable(text)
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "JSON"),
        (b'{\n  "images": oops}', "line 2 column 13"),
        (b"\xff\xd8\xff\xe0", "utf-8"),
        (b"[" * 200_000, "nested"),
        (b'{"images": ' + b"9" * 5000 + b"}", "JSON"),
        (b"[1, 2]", "top level"),
        (b"null", "top level"),
        (b'{"images": [{"id": 1', "JSON"),
    ],
)
def test_files_that_are_no_coco_json(tmp_path: Path, raw: bytes, named: str) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(raw)
    assert named in error_of(path)


def test_missing_folder_and_oversized_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in error_of(tmp_path / "train.json")
    assert "no such file" in error_of(tmp_path)
    path = write_json(tmp_path, valid_content())
    monkeypatch.setattr(coco_json, "MAX_BYTES", path.stat().st_size - 1)
    assert "GiB" in error_of(path)


def put(*keys: Any) -> Callable[[Content], None]:
    """Sets the last of ``keys`` where the others lead to; ``...`` deletes it."""
    *path, last, value = keys

    def change(content: Content) -> None:
        target: Any = content
        for key in path:
            target = target[key]
        if value is ...:
            del target[last]
        else:
            target[last] = value

    return change


NAN, INF = float("nan"), float("inf")
FAULTS: list[tuple[Callable[[Content], None], str, str]] = [
    *[(put(name, ...), f'"{name}"', "") for name in ("images", "annotations", "categories")],
    *[(put(name, {"a": 1}), f'"{name}"', "") for name in ("images", "annotations")],
    *[(put(name, []), f'"{name}"', "") for name in ("images", "annotations", "categories")],
    (put("annotations", [box(1, 10, 2, [1, 1, 5, 5]) | {"iscrowd": 1}]), '"annotations"', ""),
    (put("images", 1, 7), "images[1]: 7", ""),
    (put("annotations", 0, [1]), "annotations[0]: [1]", ""),
    (put("categories", 1, None), "categories[1]: null", ""),
    *[(put("categories", 0, "id", x), "categories[0]", ": id ") for x in (..., "7")],
    *[(put("categories", 0, "name", x), "categories[0] (id 7)", ": name ") for x in (..., " ")],
    (put("categories", 0, "id", 2), "categories[1] (id 2)", ": id 2 "),
    (put("categories", 0, "name", "cat"), "categories[1] (id 2)", ': name "cat" '),
    *[(put("images", 2, "id", x), "images[2]", ": id ") for x in (..., 12.0, True, 2**63)],
    (put("images", 2, "id", 10), "images[2] (id 10)", ": id 10 "),
    *[
        (put("images", 0, "file_name", x), "images[0] (id 10)", ": file_name ")
        for x in (..., 5, "../a.png", "sub/../../a.png", "/etc/passwd", "C:\\a.png", "..\\a.png")
    ],
    *[
        (put("images", 0, side, x), 'images[0] (id 10) "a.png"', f": {side} ")
        for side in ("width", "height")
        for x in (..., 0, -5, "40")
    ],
    *[
        (put("annotations", 1, key, x), "annotations[1] (id 2)", f": {key} ")
        for key in ("image_id", "category_id")
        for x in (..., 99, "10", 2.0)
    ],
    *[
        (put("annotations", 2, "bbox", x), 'annotations[2] (id 3) in "b.png"', ": bbox ")
        for x in (
            *(..., [], [1, 2, 3], "1,2,3,4", [1, 2, 3, "4"], [1, 2, 3, True], [1, 2, 3, None]),
            *([1, NAN, 3, 4], [1, 2, INF, 4], [1, 2, 3, 1e308], [10**400, 2, 3, 4]),
            *([1, 2, 0, 4], [1, 2, 3, -4], [1, 2, 1e-20, 4]),  # empty
            *([1, 2, 30.5, 4], [1, -1.5, 3, 4], [30, 2, 1, 4]),  # outside
        )
    ],
    *[
        (put("annotations", 2, key, x), 'annotations[2] (id 3) in "b.png"', f": {key} ")
        for key, x in (
            *(("area", "9"), ("area", NAN)),
            *(("iscrowd", 2), ("iscrowd", [0]), ("ignore", 1)),
        )
    ],
]


@pytest.mark.parametrize(("change", "entry", "field"), FAULTS)
def test_one_fault(
    tmp_path: Path, change: Callable[[Content], None], entry: str, field: str
) -> None:
    content = valid_content()
    change(content)
    text = error_of(write_json(tmp_path, content))
    assert text.startswith(entry)
    assert field in text


def test_a_test_set_may_have_no_boxes(tmp_path: Path) -> None:
    path = write_json(tmp_path, valid_content() | {"annotations": []})
    assert read_coco(path, for_training=False).annotations == {}


@pytest.mark.parametrize("bad_boxes", ["error", "fix"])
def test_one_pixel_outside_is_tolerated(tmp_path: Path, bad_boxes: str) -> None:
    content = valid_content()
    content["annotations"][2]["bbox"] = [-1, 39, 32, 2]
    coco = read_coco(write_json(tmp_path, content), bad_boxes=bad_boxes)
    assert coco.changes == ()
    assert coco.content == content


def test_fixed_boxes(tmp_path: Path) -> None:
    content = valid_content()
    content["annotations"] = [
        box(1, 10, 2, [-5, -6.5, 10, 20]),
        box(2, 10, 2, [35, 25, 1e6, 1e6]),
        box(3, 10, 2, [5, 5, 0, 4]),
        box(4, 10, 2, [5, 5, 4, -1]),
        box(5, 10, 2, [40, 5, 4, 4]),  # completely outside
        box(6, 10, 2, [1, 2, 3, 4]),
    ]
    path = write_json(tmp_path, content)
    before = path.read_bytes()
    coco = read_coco(path, bad_boxes="fix")
    assert [(row["id"], row["bbox"], row["area"]) for row in coco.content["annotations"]] == [
        (1, [0, 0, 5, 13.5], 67.5),
        (2, [35, 25, 5, 5], 25),
        (6, [1, 2, 3, 4], 12),
    ]
    assert set(coco.changes) == {
        "annotations changed (box-outside): 2",
        "annotations removed (box-outside): 1",
        "annotations removed (empty-box): 2",
        "areas filled in: 2",
    }
    assert path.read_bytes() == before
    content["annotations"][0]["bbox"] = [NAN, 0, 5, 5]
    assert ": bbox " in error_of(write_json(tmp_path, content), bad_boxes="fix")


def test_what_can_be_derived_is_filled_in(tmp_path: Path) -> None:
    content = valid_content()
    content["annotations"][3]["iscrowd"] = True
    for row in content["annotations"]:
        del row["area"], row["id"]
    del content["annotations"][0]["iscrowd"]
    content["annotations"][1].update(iscrowd=None, area=-1)
    coco = read_coco(write_json(tmp_path, content))
    assert coco.content == valid_content()
    assert [change.split(": ")[1] for change in coco.changes] == ["4", "3", "4"]


@pytest.mark.parametrize("number", [2, 0, -1, "2", None, [2], 10**30])
def test_unusable_annotation_ids(tmp_path: Path, number: object) -> None:
    content = valid_content()
    content["annotations"][2]["id"] = number
    coco = read_coco(write_json(tmp_path, content))
    assert coco.content == valid_content()
    assert coco.changes == ("annotation ids numbered anew: 4",)


def test_ids_from_zero_would_cost_precision(tmp_path: Path) -> None:
    """The boxes themselves as detections, by pycocotools."""
    content = valid_content()
    content["annotations"].pop()  # the crowd
    for i, row in enumerate(content["annotations"]):
        row["id"] = i
    path = write_json(tmp_path, content)
    precision = []
    for file in (path, write_json(tmp_path, read_coco(path).content, "completed.json")):
        truth = COCO(str(file))
        detections = [row | {"score": 0.9} for row in copy.deepcopy(truth.dataset["annotations"])]
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        precision.append(evaluation.stats[0])
    assert precision[0] < 0.9
    assert precision[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("segmentation", [[]]),
        ("segmentation", [[10, 10, 20, 30]]),
        ("segmentation", [[10, 10, 20, 30, 5, None]]),
        ("segmentation", "10,10"),
        ("segmentation", {"size": [40, 30]}),
        ("segmentation", {"size": [40, 30], "counts": [600, -1]}),
        ("segmentation", {"size": "big", "counts": [1200]}),
        ("keypoints", ["a", "b", 2]),
        ("keypoints", 5),
        ("keypoints", [10**400, 1, 2]),
    ],
)
def test_boxes_are_kept_that_detectron2_would_drop(tmp_path: Path, key: str, value: object) -> None:
    content = valid_content()
    content["annotations"][1][key] = value
    coco = read_coco(write_json(tmp_path, content))
    assert len(coco.changes) == 1
    out = write_json(tmp_path, coco.content, "out.json")
    records = load_coco_json(str(out), "", "kept")
    assert sum(len(record["annotations"]) for record in records) == 4


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(valid_content()).encode())
    coco = read_coco(path)
    assert len(coco.changes) == 1
    assert coco.content == valid_content()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=any_faults(valid_content()), bad_boxes=st.sampled_from(["error", "fix"]))
def test_whatever_passes_loads_in_detectron2(
    tmp_path_factory: pytest.TempPathFactory, content: Content, bad_boxes: str
) -> None:
    path = write_json(tmp_path_factory.getbasetemp(), content, "fuzzed.json")
    try:
        coco = read_coco(path, bad_boxes=bad_boxes)
    except UserError as error:
        assert str(path) in str(error)
        return
    path.write_text(json.dumps(coco.content))
    records = load_coco_json(str(path), "")
    assert sum(len(record["annotations"]) for record in records) == len(coco.annotations)
    COCO(str(path))
