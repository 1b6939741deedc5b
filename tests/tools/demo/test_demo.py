"""The demo as a user runs it: images, a video and a camera in, drawings and detections out."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_run import CLASSES, write_run

from retinanet_plugin import Predictor, UserError
from retinanet_plugin.tools.demo import command, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    writer = cv2.VideoWriter(str(folder / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (64, 48))
    for _ in range(6):
        writer.write(cv2.resize(cv2.imread(str(folder / "images/a.png")), (64, 48)))
    writer.release()
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "v.mp4", "out"):
        Path(name).symlink_to(folder / name)
    monkeypatch.setattr(command, "keep_freed_memory", lambda cfg: None)  # is for good


def demo(*args: str) -> int:
    common = ("--weights", "out/model_final.pth", "--output", "drawn", "--score-threshold", "0.2")
    return command.main([*common, *args])


def read(name: str) -> Any:
    return json.loads(Path("drawn", name).read_text())


def length_of(path: str) -> tuple[float, float]:
    """Returns the number of frames of a video, and how many there are per second."""
    capture = cv2.VideoCapture(path)
    return capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)


def test_images_and_a_video(capsys: pytest.CaptureFixture[str]) -> None:
    """Sources that cannot be read are reported, and the rest is done."""
    Path("bad.jpg").write_text("no image")
    Path("bad.mp4").write_text("no video")
    shutil.copy("images/a.png", "a.png")
    inputs = ["bad.jpg", "images/", "a.png", "no*.jpg", "v.mp4", "bad.mp4"]
    assert demo("--input", *inputs, "--batch-size", "3") == 1
    out, err = capsys.readouterr()
    skipped = [line.split(":")[1].strip() for line in err.splitlines() if "skipped:" in line]
    assert sorted(skipped) == ["bad.jpg", "bad.mp4", "no*.jpg"]
    images = read("images.json")["images"]
    drawn = ["a.png", "b.png", "sub/c.png", "a_2.png", *["v.mp4"] * 6]
    assert [x["drawn"] for x in images] == drawn
    assert [x.get("frame") for x in images[4:]] == list(range(6))
    assert all(Path("drawn", name).is_file() for name in drawn)
    assert length_of("drawn/v.mp4") == (6, 12.5)
    original, enlarged = cv2.imread("images/a.png"), cv2.imread("drawn/a.png")
    assert enlarged.shape[0] % original.shape[0] == 0 and enlarged.shape[0] >= 320
    results = read("detections.json")
    assert out.startswith(f"{len(results)} detections above 0.2 in 10 ")
    expected = Predictor(weights="out/model_final.pth", score_threshold=0.2)("images/a.png")
    first = [x for x in results if x["image_id"] == 1]
    assert [x["score"] for x in first] == pytest.approx(expected.scores.tolist(), abs=1e-5)
    assert {x["category_id"] for x in results} <= {1, 2}


def test_class_filter_and_no_detection() -> None:
    assert demo("--input", "images", "--classes", "cat") == 0
    assert {x["category_id"] for x in read("detections.json")} == {CLASSES.index("cat") + 1}
    assert demo("--input", "images", "--overwrite", "--score-threshold", "0.99") == 0
    assert read("detections.json") == []


class _Camera:
    """Yields three frames, then Ctrl-C ends it."""

    def __init__(self, number: int) -> None:
        self.fps, self.count = 10.0, None

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from [np.zeros((48, 64, 3), np.uint8)] * 3
        raise KeyboardInterrupt

    def close(self) -> None: ...


def test_a_camera_is_recorded_at_its_pace_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.0, 100.2, 100.4])
    monkeypatch.setattr(command, "Frames", _Camera)
    monkeypatch.setattr(run.time, "monotonic", lambda: next(times))
    with pytest.raises(KeyboardInterrupt, match="drawn"):
        demo("--webcam", "0")
    assert [x["frame"] for x in read("images.json")["images"]] == [0, 1, 2]
    assert length_of("drawn/webcam_0.mp4") == (5, 10)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), "--input: "),
        (("--input", "no.jpg", "*.webp"), r"--input: .*no\.jpg, \*\.webp"),
        (("--input", "images", "--classes", "cat,dog"), '"dog"'),
        (("--input", "images", "--webcam", "97"), "--webcam: "),
    ],
)
def test_mistakes(args: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError, match=named):
        demo(*args)
    assert not Path("drawn").exists()
