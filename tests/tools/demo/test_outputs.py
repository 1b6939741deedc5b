"""What is written: names that never meet, JSON that pycocotools reads, videos that are whole."""

import contextlib
import io
import json
import os
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from retinanet_plugin.tools.demo.command.outputs import Outputs, Video, write_picture

from retinanet_plugin import UserError


def found(*scores: float) -> Instances:
    count = len(scores)
    return Instances(
        (30, 40),
        pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 11.0, 22.0]]).repeat(count, 1)),
        scores=torch.tensor(scores),
        pred_classes=torch.arange(count) % 2,
    )


def names(folder: Path, *wanted: str, is_video: bool = False) -> list[str]:
    with Outputs(folder, [], []) as outputs:
        paths = [outputs.path_for(PurePath(name), is_video=is_video) for name in wanted]
        for path in paths:
            path.touch(exist_ok=False)  # there is room for all of them
    return [path.relative_to(folder).as_posix() for path in paths]


def test_names_never_meet(tmp_path: Path) -> None:
    assert names(tmp_path / "1", "a.jpg", "a.webp", "A.JPG", "a_2.jpg") == [
        *("a.jpg", "a_2.jpg", "A_3.jpg"),
        "a_2_2.jpg",
    ]
    assert names(tmp_path / "2", "x/a.png", "x/a.tif", "y/a.png") == [
        "x/a.png",
        "x/a_2.png",
        "y/a.png",
    ]
    assert names(tmp_path / "3", "a.mov", "a.mp4", is_video=True) == ["a.mp4", "a_2.mp4"]


def test_a_name_that_is_a_folder_too(tmp_path: Path) -> None:
    assert names(tmp_path / "1", "x.jpg/a.jpg", "x.jpg") == ["x.jpg/a.jpg", "x_2.jpg"]
    assert names(tmp_path / "2", "x.jpg", "x.jpg/a.jpg") == ["x.jpg", "a.jpg"]


def test_json_that_pycocotools_reads(tmp_path: Path) -> None:
    with Outputs(tmp_path, ["cat", "dög"], [2, 7]) as outputs:
        outputs.add(found(0.9, 0.5), file_name="a.jpg", drawn="a.jpg")
        outputs.add(found(), file_name="b.jpg", drawn="b.jpg")
        outputs.add(found(0.7), file_name="v.mp4", frame=3, drawn="v.mp4")
    assert (outputs.num_images, outputs.num_detections) == (3, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detections.json", "pictures.json"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "pictures.json")
        results = coco.loadRes(str(tmp_path / "detections.json"))
    assert coco.loadCats([7])[0]["name"] == "dög"
    assert coco.loadImgs([3])[0] == {
        "id": 3,
        "file_name": "v.mp4",
        "frame": 3,
        "drawn": "v.mp4",
        "height": 30,
        "width": 40,
    }
    first, second = results.loadAnns(results.getAnnIds(imgIds=[1]))
    assert first["bbox"] == [1, 2, 10, 20] and first["score"] == pytest.approx(0.9)
    assert (first["category_id"], second["category_id"]) == (2, 7)


def test_json_is_whole_when_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Outputs(tmp_path, ["cat", "dog"], [1, 2]) as outputs:
        outputs.add(found(0.9), file_name="a.jpg", drawn="a.jpg")
        raise KeyboardInterrupt
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_sentence_and_can_be_begun_anew(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"detections\.json: .*\(No space left.*make room"),
        Outputs(tmp_path, ["cat", "dog"], [1, 2]) as outputs,
    ):
        outputs.add(found(0.9), file_name="a.jpg", drawn="a.jpg")
        with open("/dev/full", "w") as full:
            os.dup2(full.fileno(), outputs._detections._file.fileno())
    assert len(COCO(tmp_path / "pictures.json").imgs) == 1  # whole nevertheless
    assert not (tmp_path / "detections.json").exists()
    with Outputs(tmp_path, [], [], overwrite=True):
        pass
    assert json.loads((tmp_path / "detections.json").read_text()) == []


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png: cannot be written \(No such file .*--output"):
        write_picture(tmp_path / "gone" / "a.png", np.zeros((4, 4, 3), np.uint8))


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holidays.jpg").touch()
    for overwrite in (False, True):  # no folder of ours
        with pytest.raises(UserError, match="mine is not empty"):
            Outputs(mine, [], [], overwrite=overwrite)
    with Outputs(tmp_path / "ours", [], []):
        pass
    with pytest.raises(UserError, match="another folder, or --overwrite"):
        Outputs(tmp_path / "ours", [], [])
    with Outputs(tmp_path / "ours", [], [], overwrite=True):
        pass
    with pytest.raises(UserError, match="cannot be written"):
        Outputs(mine / "holidays.jpg", [], [])


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, 15:] = (0, 0, 255)
    write_picture(tmp_path / f"a{suffix}", picture)
    read = cv2.imread(str(tmp_path / f"a{suffix}")).astype(int)
    assert abs(read - picture)[:, [5, 25]].max() <= (0 if suffix == ".png" else 4)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_video(tmp_path: Path) -> None:
    video = Video(tmp_path / "v.mp4", 12.5)
    for i in range(3):
        video.write(np.full((48, 64, 3), 80 * i, np.uint8), times=1 + i)
    video.write(np.zeros((24, 32, 3), np.uint8))  # another size: made the first's
    assert not (tmp_path / "v.mp4").exists()
    video.close()
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (12.5, 7)
    means = [capture.read()[1].mean() for _ in range(7)]
    assert means == pytest.approx([0, 80, 80, 160, 160, 160, 0], abs=5)
    Video(tmp_path / "none.mp4", 25).close()
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_a_video_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match="OpenCV cannot write an MP4 of 64 x 48"):
        Video(tmp_path / "nowhere" / "v.mp4", 25).write(np.zeros((48, 64, 3), np.uint8))

    class FullDisk:
        """Loses frames in silence, as OpenCV does."""

        fourcc = cv2.VideoWriter.fourcc

        def __init__(self, *arguments: object) -> None: ...

        def isOpened(self) -> bool:
            return True

        def write(self, frame: np.ndarray) -> None: ...

        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoWriter", FullDisk)
    video = Video(tmp_path / "v.mp4", 25)
    video.write(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(UserError, match="only 0 of 1 frames could be written; make room"):
        video.close()
