"""What the demo writes: unique names, JSON that pycocotools reads, images and videos."""

import contextlib
import io
import json
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from retinanet_plugin import UserError
from retinanet_plugin.tools.demo.outputs import Video, open_outputs, write_image


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
        ("a.jpg a.webp A.JPG a_2.jpg", "a.jpg a_2.jpg A_3.jpg a_2_2.jpg"),
        ("x/a.png x/a.tif y/a.png", "x/a.png x/a_2.png y/a.png"),
        ("a.mov a.mp4", "a.mp4 a_2.mp4"),
    ],
)
def test_names_are_unique(tmp_path: Path, given: str, expected: str) -> None:
    is_video = "mov" in given
    with open_outputs(tmp_path, [], []) as outputs:
        paths = [outputs.path_for(PurePath(x), is_video=is_video) for x in given.split()]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == expected.split()
    assert all(path.parent.is_dir() for path in paths)


def test_json_that_pycocotools_reads(tmp_path: Path) -> None:
    with open_outputs(tmp_path, ["cat", "dög"], [2, 7]) as outputs:
        outputs.add(detections(0.9, 0.5), file_name="a.jpg", drawn="a.jpg")
        outputs.add(detections(), file_name="b.jpg", drawn="b.jpg")
        outputs.add(detections(0.7), file_name="v.mp4", frame=3, drawn="v.mp4")
    assert (outputs.num_images, outputs.num_detections) == (3, 3)
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


def test_json_is_valid_after_ctrl_c(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_outputs(tmp_path, ["cat"], [1]) as outputs:
        outputs.add(detections(0.9), file_name="a.jpg", drawn="a.jpg")
        raise KeyboardInterrupt
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 1


def test_other_content_of_the_folder_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holidays.jpg").touch()
    for overwrite in (False, True):
        for path in (mine, mine / "holidays.jpg"):
            with pytest.raises(UserError, match="--output: "):
                open_outputs(path, [], [], overwrite=overwrite).__enter__()
    earlier = tmp_path / "earlier"
    with open_outputs(earlier, [], []):
        pass
    with pytest.raises(UserError, match="--overwrite"):
        open_outputs(earlier, [], []).__enter__()
    with open_outputs(earlier, [], [], overwrite=True):
        pass


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images(tmp_path: Path, suffix: str) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 15:] = (0, 0, 255)
    write_image(tmp_path / f"a{suffix}", image)
    read = cv2.imread(str(tmp_path / f"a{suffix}")).astype(int)
    assert abs(read - image)[:, [5, 25]].max() <= (0 if suffix == ".png" else 4)


def test_a_video(tmp_path: Path) -> None:
    video = Video(tmp_path / "v.mp4", 12.5, (64, 48))
    for i in range(3):
        video.write(np.full((48, 64, 3), 80 * i, np.uint8), repeat=1 + i)
    video.write(np.zeros((24, 32, 3), np.uint8))  # of another size
    video.close()
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (12.5, 7)
    means = [capture.read()[1].mean() for _ in range(7)]
    assert means == pytest.approx([0, 80, 80, 160, 160, 160, 0], abs=5)


def test_a_video_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"v\.mp4"):
        Video(tmp_path / "nowhere" / "v.mp4", 25, (64, 48))
