"""tools.demo as a person runs it: pictures, video and camera in; drawings and detections out."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from small_run import CLASSES, write_run

from retinanet_plugin import Predictor
from retinanet_plugin.errors import one_sentence
from retinanet_plugin.tools.demo.command import command as demo
from retinanet_plugin.tools.demo.command import run as module


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    writer = cv2.VideoWriter(str(folder / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (64, 48))
    for _ in range(6):
        writer.write(cv2.resize(cv2.imread(str(folder / "images/a.png")), (64, 48)))
    writer.release()
    return folder


@pytest.fixture(autouse=True)
def here(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "v.mp4", "out"):
        Path(name).symlink_to(run / name)
    monkeypatch.setattr(demo, "keep_freed_memory", lambda cfg: None)  # for the whole process


def call(*words: str) -> int:
    common = ("--weights", "out/model_final.pth", "--output", "found", "--score-threshold", "0.2")
    with one_sentence():
        return demo.main([*common, *words])


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        call(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def read(name: str) -> Any:
    return json.loads(Path("found", name).read_text())


def length(path: str) -> int:
    return int(cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT))


def test_pictures_and_a_video(capsys) -> None:
    """Also what cannot be read, which is named while the rest is done."""
    Path("bad.jpg").write_text("no picture")
    Path("bad.mp4").write_text("no video")
    shutil.copy("images/a.png", "a.png")
    inputs = ["bad.jpg", "images/", "a.png", "no*.jpg", "v.mp4", "bad.mp4"]
    assert call("--input", *inputs, "--batch-size", "3") == 1
    out, err = capsys.readouterr()
    skipped = [line.split(":")[1].strip() for line in err.splitlines() if "skipped:" in line]
    assert sorted(skipped) == ["bad.jpg", "bad.mp4", "no*.jpg"]
    assert "3 inputs could not be read" in err
    images = read("pictures.json")["images"]
    drawn = ["a.png", "b.png", "sub/c.png", "a_2.png", *["v.mp4"] * 6]
    assert [x["drawn"] for x in images] == drawn
    assert [x.get("frame") for x in images[4:]] == list(range(6))
    assert all(Path("found", name).is_file() for name in drawn)
    assert length("found/v.mp4") == 6
    picture, there = cv2.imread("images/a.png"), cv2.imread("found/a.png")
    assert there.shape[0] % picture.shape[0] == 0 and there.shape[0] >= 320
    results = read("detections.json")
    assert f"{len(results)} detections above 0.2 in 10 pictures and frames." in out
    found = Predictor(weights="out/model_final.pth", score_threshold=0.2)("images/a.png")
    first = [x for x in results if x["image_id"] == 1]
    assert [x["score"] for x in first] == pytest.approx(found.scores.tolist(), abs=1e-5)
    assert {x["category_id"] for x in results} <= {1, 2}


def test_class_filter_and_nothing_found(capsys) -> None:
    assert call("--input", "images", "--classes", "cat") == 0
    every = read("detections.json")
    assert {x["category_id"] for x in every} == {CLASSES.index("cat") + 1}
    highest = max(x["score"] for x in every)
    capsys.readouterr()
    again = ("--classes", "cat", "--overwrite", "--score-threshold", "0.9")
    assert call("--input", "images", *again) == 0
    assert read("detections.json") == []
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("No detection scores above 0.9; the highest score seen is 0.")
    assert float(said.split()[-1][:-1]) >= float(f"{highest:.2g}") - 0.01


def test_ctrl_c_in_a_video_keeps_what_is_drawn(capsys, monkeypatch) -> None:
    count = 0
    draw = module.draw

    def stop_at_fifth(*arguments: Any) -> np.ndarray:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(module, "draw", stop_at_fifth)
    with pytest.raises(SystemExit) as stop:
        call("--input", "v.mp4")
    assert stop.value.code == 130
    err = capsys.readouterr().err
    assert "stopped: found keeps what was drawn of 1 inputs" in err and "Traceback" not in err
    assert length("found/v.mp4") == 4 == len(read("pictures.json")["images"])
    assert sorted(x.name for x in Path("found").iterdir()) == [
        *("detections.json", "pictures.json"),
        "v.mp4",
    ]


class _Camera:
    """Sees a picture three times, 0.2 s from one to the next, and then Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.rate, self.count = 10.0, None

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from [np.zeros((48, 64, 3), np.uint8)] * 3
        raise KeyboardInterrupt

    def close(self) -> None: ...


def test_a_camera_is_shown_at_its_pace(capsys, monkeypatch) -> None:
    times = iter([100.0, 100.0, 100.2, 100.4])
    monkeypatch.setattr(demo, "camera", _Camera)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    with pytest.raises(SystemExit) as stop:
        call("--webcam", "0")
    assert stop.value.code == 130
    assert [x["frame"] for x in read("pictures.json")["images"]] == [0, 1, 2]
    assert length("found/webcam_0.mp4") == 5  # at 10 frames a second


@pytest.mark.parametrize(
    "words, sentence",
    [
        ((), "--input: none given"),
        (("--input", "no.jpg", "*.webp"), "no picture or video under no.jpg, [*].webp"),
        (("--input", "images", "--classes", "cat,dog"), 'no class "dog"'),
        (("--input", "images", "--webcam", "97"), "--webcam: 97: no such camera"),
    ],
)
def test_mistakes(capsys, words: tuple[str, ...], sentence: str) -> None:
    assert re.search(sentence, refused(capsys, *words))
    assert not Path("found").exists()


def test_an_input_is_never_replaced(capsys) -> None:
    Path("mine").mkdir()
    Image.new("RGB", (40, 30)).save("mine/a.jpg")
    before = Path("mine/a.jpg").read_bytes()
    assert "holds the input" in refused(capsys, "--input", "mine/a.jpg", "--output", "mine")
    assert "not empty" in refused(capsys, "--input", "images", "--output", "mine")
    assert Path("mine/a.jpg").read_bytes() == before
