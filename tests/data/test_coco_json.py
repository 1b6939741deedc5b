"""One fault at a time in a valid file: each a sentence that names file, entry and remedy."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_sets import box, valid_content, write_json
from detectron2.data.datasets import load_coco_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet_plugin.data import coco_json
from retinanet_plugin.data.coco_json import read_coco
from retinanet_plugin.errors import UserError

Content = dict[str, Any]


def sentence(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        read_coco(path, **options)
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


FILES = {
    "empty": (b"", "the file is empty; "),
    "blank": (b" \n\t ", "the file is empty; "),
    "no json": (b'{\n  "images": oops}', "not valid JSON at line 2, column 13 (Expecting value)"),
    "binary": (b"\xff\xd8\xff\xe0", "byte 0 is not UTF-8 text; "),
    "nested": (b"[" * 200_000, "nested too deeply"),
    "digits": (b'{"images": ' + b"9" * 5000 + b"}", "not usable as JSON"),
    "list": (b"[1, 2]", 'the top level is a list; it must be an object with "images"'),
    "number": (b"5", "the top level is a number; "),
    "null": (b"null", "the top level is null; "),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_coco_json(tmp_path: Path, case: str) -> None:
    raw, words = FILES[case]
    path = tmp_path / "train.json"
    path.write_bytes(raw)
    assert words in sentence(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.77, 0.99])
def test_file_cut_short(tmp_path: Path, share: float) -> None:
    whole = json.dumps(valid_content(), ensure_ascii=False).encode()
    path = tmp_path / "train.json"
    path.write_bytes(whole[: int(len(whole) * share)])
    text = sentence(path)
    assert "ends in the middle" in text or "not valid JSON at line 1" in text
    path.write_bytes(whole[: whole.index("ö".encode()) + 1])
    assert f"ends in the middle, after {path.stat().st_size} bytes; copy it again" in sentence(path)


def test_absent_folder_and_oversized_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file; correct the path" in sentence(tmp_path / "train.json")
    assert "no such file" in sentence(tmp_path)
    path = write_json(tmp_path, valid_content())
    monkeypatch.setattr(coco_json, "MAX_BYTES", path.stat().st_size - 1)
    assert "that a COCO JSON may have; leave out" in sentence(path)


def put(*keys: Any) -> Callable[[Content], None]:
    """Puts the last of ``keys`` at the place in the content that the others lead to."""
    *way, last, value = keys

    def plant(content: Content) -> None:
        target: Any = content
        for key in way:
            target = target[key]
        target[last] = value

    return plant


def drop(*keys: Any) -> Callable[[Content], None]:
    *way, last = keys

    def plant(content: Content) -> None:
        target: Any = content
        for key in way:
            target = target[key]
        del target[last]

    return plant


def each_annotation(key: str, value: Any) -> Callable[[Content], None]:
    def plant(content: Content) -> None:
        for row in content["annotations"]:
            row[key] = value

    return plant


MUST_BE_LIST = "; it must be a list of objects"
BOX = "; it must be four finite numbers [x, y, width, height]"
FAULTS: list[tuple[Callable[[Content], None], str]] = [
    (drop("images"), '"images" is missing' + MUST_BE_LIST),
    (drop("annotations"), '"annotations" is missing' + MUST_BE_LIST),
    (drop("categories"), '"categories" is missing' + MUST_BE_LIST),
    (put("images", {"a": 1}), '"images" is {"a": 1}' + MUST_BE_LIST),
    (put("annotations", None), '"annotations" is null' + MUST_BE_LIST),
    (put("categories", "cat"), '"categories" is "cat"' + MUST_BE_LIST),
    (put("images", []), '"images" is empty; it must name at least one'),
    (put("categories", []), '"categories" is empty; it must name at least one'),
    (put("annotations", []), '"annotations" holds no box to train on; label some'),
    (each_annotation("iscrowd", 1), '"annotations" holds no box to train on; label some'),
    (put("images", 1, 7), "images[1]: 7 is not an object; write it as {...}"),
    (put("annotations", 0, [1]), "annotations[0]: [1] is not an object; write it"),
    (put("categories", 1, None), "categories[1]: null is not an object; write it"),
    (drop("categories", 0, "id"), "categories[0]: id is missing; it must be a whole number"),
    (put("categories", 0, "id", "7"), 'categories[0] (id "7"): id is "7"; it must be a whole'),
    (drop("categories", 0, "name"), "categories[0] (id 7): name is missing; it must be a text"),
    (put("categories", 0, "name", " "), 'categories[0] (id 7): name is " "; it must be a text'),
    (put("categories", 0, "id", 2), "categories[1] (id 2): id 2 is taken by categories[0] already"),
    (
        put("categories", 0, "name", "cat"),
        'categories[1] (id 2): name "cat" is taken by categories[0] already; each entry needs its',
    ),
    (drop("images", 2, "id"), "images[2]: id is missing; it must be a whole number"),
    (put("images", 2, "id", 12.0), "images[2] (id 12.0): id is 12.0; it must be a whole number"),
    (put("images", 2, "id", True), "images[2] (id true): id is true; it must be a whole number"),
    (put("images", 2, "id", 2**63), "it must be a whole number"),
    (put("images", 2, "id", 10), "images[2] (id 10): id 10 is taken by images[0] already; each"),
    (drop("images", 0, "file_name"), "images[0] (id 10): file_name is missing; it must be a text"),
    (put("images", 0, "file_name", 5), "images[0] (id 10): file_name is 5; it must be a text"),
    (
        put("images", 0, "file_name", "../a.png"),
        'images[0] (id 10): file_name is "../a.png"; it must be relative to the image folder',
    ),
    (put("images", 0, "file_name", "sub/../../a.png"), "must be relative to the image folder"),
    (put("images", 0, "file_name", "/etc/passwd"), "must be relative to the image folder"),
    (put("images", 0, "file_name", "C:\\a.png"), "must be relative to the image folder"),
    (put("images", 0, "file_name", "..\\a.png"), "must be relative to the image folder"),
    (drop("images", 0, "width"), "images[0] (id 10): width is missing; it must be a whole number"),
    (drop("images", 0, "height"), "images[0] (id 10): height is missing; it must be a whole"),
    (put("images", 0, "width", 0), "images[0] (id 10): width is 0; it must be a whole number of"),
    (put("images", 0, "height", -5), "images[0] (id 10): height is -5; it must be a whole number"),
    (put("images", 0, "width", "40"), 'images[0] (id 10): width is "40"; it must be a whole'),
    (drop("annotations", 1, "image_id"), "annotations[1] (id 2): image_id is missing; it must be"),
    (
        put("annotations", 1, "image_id", 99),
        'annotations[1] (id 2): image_id 99 is the id of no picture in "images"; add the picture',
    ),
    (put("annotations", 1, "image_id", "10"), 'annotations[1] (id 2): image_id is "10"; it must'),
    (drop("annotations", 1, "category_id"), "annotations[1] (id 2): category_id is missing; it"),
    (
        put("annotations", 1, "category_id", 9),
        'annotations[1] (id 2): category_id 9 is not declared in "categories" (known: 2, 7); '
        "declare it or remove the annotation",
    ),
    (put("annotations", 1, "category_id", 2.0), "annotations[1] (id 2): category_id is 2.0; it"),
    (
        each_annotation("category_id", 9),
        "declare it or remove the annotation (3 more like it)",
    ),
    (drop("annotations", 2, "bbox"), "annotations[2] (id 3): bbox is missing" + BOX),
    (put("annotations", 2, "bbox", []), "annotations[2] (id 3): bbox is []" + BOX),
    (put("annotations", 2, "bbox", [1, 2, 3]), "bbox is [1, 2, 3]" + BOX),
    (put("annotations", 2, "bbox", "1,2,3,4"), 'bbox is "1,2,3,4"' + BOX),
    (put("annotations", 2, "bbox", [1, 2, 3, "4"]), 'bbox is [1, 2, 3, "4"]' + BOX),
    (put("annotations", 2, "bbox", [1, 2, 3, True]), "bbox is [1, 2, 3, true]" + BOX),
    (put("annotations", 2, "bbox", [1, 2, 3, None]), "bbox is [1, 2, 3, null]" + BOX),
    (put("annotations", 2, "bbox", [1, float("nan"), 3, 4]), "bbox is [1, NaN, 3, 4]" + BOX),
    (put("annotations", 2, "bbox", [1, 2, float("inf"), 4]), "bbox is [1, 2, Infinity, 4]" + BOX),
    (put("annotations", 2, "bbox", [1, 2, 3, 1e308]), "bbox is [1, 2, 3, 1e+308]" + BOX),
    (put("annotations", 2, "bbox", [10**400, 2, 3, 4]), "; it must be four finite numbers"),
    (
        put("annotations", 2, "bbox", [1, 2, 0, 4]),
        "annotations[2] (id 3): bbox [1, 2, 0, 4] has no width or no height above 0; mend it, "
        'remove the annotation, or set DATASETS.OWN.BAD_BOXES to "fix"',
    ),
    (put("annotations", 2, "bbox", [1, 2, 3, -4]), "has no width or no height above 0; mend it"),
    (put("annotations", 2, "bbox", [1, 2, 1e-20, 4]), "has no width or no height above 0; mend"),
    (
        put("annotations", 2, "bbox", [1, 2, 30.5, 4]),
        'annotations[2] (id 3): bbox [1, 2, 30.5, 4] reaches outside its picture "b.png", which '
        'the JSON says is 30 x 40; mend it, or set DATASETS.OWN.BAD_BOXES to "fix"',
    ),
    (put("annotations", 2, "bbox", [1, -1.5, 3, 4]), "bbox [1, -1.5, 3, 4] reaches outside its"),
    (put("annotations", 2, "bbox", [30, 2, 1, 4]), "bbox [30, 2, 1, 4] reaches outside its"),
    (put("annotations", 2, "area", "9"), 'annotations[2] (id 3): area is "9"; it must be a number'),
    (put("annotations", 2, "area", float("nan")), "area is NaN; it must be a number of square"),
    (put("annotations", 2, "iscrowd", 2), "annotations[2] (id 3): iscrowd is 2; it must be 0 or 1"),
    (put("annotations", 2, "iscrowd", [0]), "iscrowd is [0]; it must be 0 or 1, or left out"),
    (put("annotations", 2, "ignore", 1), "annotations[2] (id 3): ignore is 1, which detectron2"),
]


@pytest.mark.parametrize(("plant", "words"), FAULTS, ids=[words[:45] for _, words in FAULTS])
def test_one_fault(tmp_path: Path, plant: Callable[[Content], None], words: str) -> None:
    content = valid_content()
    plant(content)
    assert words in sentence(write_json(tmp_path, content))


def test_valid_file_needs_nothing(tmp_path: Path) -> None:
    coco = read_coco(write_json(tmp_path, valid_content()))
    assert coco.mended == ()
    assert coco.content == valid_content()
    assert list(coco.classes.items()) == [(2, "cat"), (7, "dög")]
    assert coco.num_boxes == 4


def test_strange_text_stays_on_one_printable_line(tmp_path: Path) -> None:
    content = valid_content()
    content["images"][0]["file_name"] = "../two\nlines \ud800" + "x" * 300
    text = sentence(write_json(tmp_path, content))
    assert r'"../two\nlines \ud800xxx' in text
    assert len(text.encode()) < 300 + len(str(tmp_path))


def test_a_set_only_for_testing_may_have_no_boxes(tmp_path: Path) -> None:
    path = write_json(tmp_path, valid_content() | {"annotations": []})
    assert read_coco(path, for_training=False).num_boxes == 0


def test_up_to_one_pixel_outside_is_let_be(tmp_path: Path) -> None:
    content = valid_content()
    content["annotations"][2]["bbox"] = [-1, 39, 32, 2]
    for bad_boxes in coco_json.BAD_BOXES:
        coco = read_coco(write_json(tmp_path, content), bad_boxes=bad_boxes)
        assert coco.mended == ()
        assert coco.content == content


def test_boxes_fixed(tmp_path: Path) -> None:
    content = valid_content()
    content["annotations"] = [
        box(1, 10, 2, [-5, -6.5, 10, 20]),
        box(2, 10, 2, [35, 25, 1e6, 1e6]),
        box(3, 10, 2, [5, 5, 0, 4]),
        box(4, 10, 2, [5, 5, 4, -1]),
        box(5, 10, 2, [40, 5, 4, 4]),  # wholly outside
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
    assert coco.mended[:2] == ("boxes clipped: 2", "boxes dropped: 3")
    assert path.read_bytes() == before
    content["annotations"][0]["bbox"] = [float("nan"), 0, 5, 5]
    assert "bbox is [NaN, 0, 5, 5]; it must" in sentence(
        write_json(tmp_path, content), bad_boxes="fix"
    )


def test_what_was_left_out_is_filled_in(tmp_path: Path) -> None:
    content = valid_content()
    content["annotations"][3]["iscrowd"] = True
    for row in content["annotations"]:
        del row["area"], row["id"]
    del content["annotations"][0]["iscrowd"]
    content["annotations"][1]["iscrowd"] = None
    content["annotations"][1]["area"] = -1
    coco = read_coco(write_json(tmp_path, content))
    assert coco.content == valid_content()
    assert coco.mended == (
        "areas filled in: 4",
        "iscrowd flags filled in: 3",
        "annotation ids numbered anew: 4",
    )


@pytest.mark.parametrize("number", [2, 0, -1, "2", None, [2], 10**30])
def test_annotation_ids_that_do_not_serve(tmp_path: Path, number: object) -> None:
    content = valid_content()
    content["annotations"][2]["id"] = number
    coco = read_coco(write_json(tmp_path, content))
    assert coco.content == valid_content()
    assert coco.mended == ("annotation ids numbered anew: 4",)


def average_precision_of_truth(path: Path) -> float:
    """AP of the boxes themselves as detections, by pycocotools."""
    truth = COCO(str(path))
    found = [row | {"score": 0.9} for row in copy.deepcopy(truth.dataset["annotations"])]
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def test_ids_from_zero_would_cost_precision(tmp_path: Path) -> None:
    content = valid_content()
    content["annotations"].pop()  # the crowd
    for i, row in enumerate(content["annotations"]):
        row["id"] = i
    path, mended = write_json(tmp_path, content), tmp_path / "out" / "mended.json"
    read_coco(path).write(mended)
    assert average_precision_of_truth(path) < 0.9
    assert average_precision_of_truth(mended) == pytest.approx(1)


@pytest.mark.parametrize(
    "extra",
    [
        {"segmentation": [[]]},
        {"segmentation": [[10, 10, 20, 30]]},
        {"segmentation": [[10, 10, 20, 30, 5, None]]},
        {"segmentation": "10,10"},
        {"segmentation": {"size": [40, 30]}},
        {"segmentation": {"size": [40, 30], "counts": [600, -1]}},
        {"segmentation": {"size": "big", "counts": [1200]}},
        {"keypoints": ["a", "b", 2]},
        {"keypoints": 5},
        {"keypoints": [10**400, 1, 2]},
    ],
)
def test_boxes_are_kept_where_detectron2_would_lose_them(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    content = valid_content()
    content["annotations"][1].update(extra)
    coco = read_coco(write_json(tmp_path, content))
    assert coco.mended == (f"unusable {next(iter(extra)).rstrip('s')}s left out: 1",)
    coco.write(tmp_path / "out.json")
    records = load_coco_json(str(tmp_path / "out.json"), "", "kept")
    assert sum(len(record["annotations"]) for record in records) == 4


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(valid_content()).encode())
    coco = read_coco(path)
    assert coco.mended == ("the byte order mark removed",)  # pycocotools would stumble over it
    assert coco.content == valid_content()


def test_a_copy_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    coco = read_coco(write_json(tmp_path, valid_content()))
    target = tmp_path / "out" / "copy.json"
    coco.write(target)
    coco.write(target)
    assert json.loads(target.read_text()) == valid_content()
    assert list(target.parent.iterdir()) == [target]
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: the mended copy of .* cannot be written"):
        coco.write(tmp_path / "folder")
    assert {file.name for file in tmp_path.iterdir()} == {"train.json", "out", "folder"}
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"cannot be written .*; free the place or set OUTPUT_DIR"):
        coco.write(tmp_path / "file" / "copy.json")
    assert (tmp_path / "file").read_text() == "kept"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([0, 1, 2, 7, 10, 12, "a.png", 10**400, 1e308]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
PLACES = [
    (name, i, key)
    for name, rows in valid_content().items()
    if isinstance(rows, list)
    for i, row in enumerate(rows)
    for key in (*row, "ignore", "segmentation", "keypoints")
]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    faults=st.lists(st.tuples(st.sampled_from(PLACES), JSON_VALUES), min_size=1, max_size=3),
    bad_boxes=st.sampled_from(coco_json.BAD_BOXES),
)
def test_whatever_is_let_through_loads(
    tmp_path_factory: pytest.TempPathFactory, faults: list[Any], bad_boxes: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = valid_content()
    for (name, i, key), value in faults:
        content[name][i][key] = value
    path = write_json(folder, content, "fuzzed.json")
    try:
        coco = read_coco(path, bad_boxes=bad_boxes)
    except UserError as error:
        assert str(path) in str(error)
        return
    if coco.mended:
        coco.write(path)
    records = load_coco_json(str(path), "")
    assert sum(len(record["annotations"]) for record in records) == coco.num_boxes
    COCO(str(path))
