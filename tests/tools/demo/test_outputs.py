"""What the demo writes: unique names, and JSON that pycocotools reads."""

import contextlib
import io
from pathlib import Path, PurePath

import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from retinanet_plugin import UserError
from retinanet_plugin.tools.demo.outputs import Outputs


def detections(*scores: float) -> Instances:
    count = len(scores)
    return Instances(
        (30, 40),
        pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 11.0, 22.0]]).repeat(count, 1)),
        scores=torch.tensor(scores),
        pred_classes=torch.arange(count) % 2,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.jpg a.webp A.JPG a_2.jpg", "a.jpg a.png A_2.jpg a_2_2.jpg"),
        ("x/a.png x/a.tif y/a.png", "x/a.png x/a_2.png y/a.png"),
        ("a.mov a.mp4", "a.mp4 a_2.mp4"),
    ],
)
def test_names_are_unique(tmp_path: Path, given: str, expected: str) -> None:
    is_video = "mov" in given
    outputs = Outputs(tmp_path, [], [])
    paths = [outputs.path_for(PurePath(x), is_video=is_video) for x in given.split()]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == expected.split()
    assert all(path.parent.is_dir() for path in paths)


def test_json_that_pycocotools_reads(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, ["cat", "dög"], [2, 7])
    outputs.add(detections(0.9, 0.5), "a.jpg", tmp_path / "a.jpg")
    outputs.add(detections(), "b.jpg", tmp_path / "b.jpg")
    outputs.add(detections(0.7), "v.mp4", tmp_path / "v.mp4", frame=3)
    outputs.write()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detections.json", "images.json"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "images.json")
        results = coco.loadRes(str(tmp_path / "detections.json"))
    assert coco.loadCats([7])[0]["name"] == "dög"
    expected = {"id": 3, "file_name": "v.mp4", "frame": 3, "drawn": "v.mp4"}
    assert coco.loadImgs([3])[0] == {**expected, "height": 30, "width": 40}
    first, second = results.loadAnns(results.getAnnIds(imgIds=[1]))
    assert first["bbox"] == [1, 2, 10, 20] and first["score"] == pytest.approx(0.9)
    assert (first["category_id"], second["category_id"]) == (2, 7)


def test_other_content_of_the_folder_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holidays.jpg").touch()
    for path in (mine, mine / "holidays.jpg"):
        with pytest.raises(UserError, match="--output: "):
            Outputs(path, [], [], overwrite=True)
    earlier = tmp_path / "earlier"
    Outputs(earlier, [], []).write()
    with pytest.raises(UserError, match="--overwrite"):
        Outputs(earlier, [], [])
    Outputs(earlier, [], [], overwrite=True)
