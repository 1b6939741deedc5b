"""What the words of a command line name, and the frames of a video."""

from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
import pytest
from retinanet_plugin.tools.demo.command.inputs import Frames, camera, find

from retinanet_plugin import UserError


@pytest.fixture
def shots(tmp_path: Path, monkeypatch) -> Path:
    for name in (
        *("a.jpg", "shots/a.jpg", "shots/b.PNG", "shots/deep/er/a.jpg", "shots/c.mp4"),
        *("shots/notes.txt", "shots/.hidden.jpg", "shots/.git/d.jpg", "x[1].jpg", "out/a.jpg"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*words: str) -> list[tuple[str, str]]:
    found, absent = find(words, Path("out"))
    assert absent == []
    return [(x.path.as_posix(), x.name.as_posix()) for x in found]


def test_files_folders_and_patterns(shots: Path) -> None:
    assert names("a.jpg", "x[1].jpg") == [("a.jpg", "a.jpg"), ("x[1].jpg", "x[1].jpg")]
    folder = [
        ("shots/a.jpg", "a.jpg"),
        ("shots/b.PNG", "b.PNG"),
        ("shots/c.mp4", "c.mp4"),
        ("shots/deep/er/a.jpg", "deep/er/a.jpg"),
    ]
    assert names("shots") == names(str(Path("shots"))) == folder
    assert names("shots/*") == [*folder[:3], ("shots/deep/er/a.jpg", "er/a.jpg")]
    assert names("shots/**/a.jpg") == [folder[0], ("shots/deep/er/a.jpg", "a.jpg")]
    assert [x.is_video for x in find(["shots"], Path("out"))[0]] == [False, False, True, False]


def test_each_file_once(shots: Path) -> None:
    Path("link.jpg").symlink_to("a.jpg")
    assert names("a.jpg", "./a.jpg", "*.jpg") == [("a.jpg", "a.jpg"), ("x[1].jpg", "x[1].jpg")]


def test_a_named_file_of_unknown_ending_counts_as_a_picture(shots: Path) -> None:
    (source,) = find(["shots/notes.txt"], Path("out"))[0]
    assert source.name == PurePath("notes.txt") and not source.is_video


def test_what_is_written_is_no_input(shots: Path) -> None:
    assert ("out/a.jpg", "out/a.jpg") not in names(".")
    assert names("**/a.jpg") == names("a.jpg", "shots/a.jpg", "shots/deep/er/a.jpg")
    for word in ("out", "out/a.jpg", "shots/../out/a.jpg"):
        with pytest.raises(UserError, match="--output: out holds the input"):
            find([word], Path("out"))


def test_words_that_name_nothing(shots: Path) -> None:
    found, absent = find(["no.jpg", "a.jpg", "*.webp", "shots/.git"], Path("out"))
    assert [x.path for x in found[:1]] == [Path("a.jpg")]
    assert absent == ["no.jpg", "*.webp"]


def write_video(path: Path, count: int = 5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (64, 48))
    for i in range(count):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def test_frames_of_a_video(tmp_path: Path) -> None:
    frames = Frames(write_video(tmp_path / "v.mp4"))
    assert (frames.rate, frames.count) == (12.5, 5)
    assert [round(frame.mean(), -1) for frame in frames] == [0, 40, 80, 120, 160]
    frames.close()


@pytest.mark.parametrize("told", [0.0, -1.0, float("nan"), float("inf"), 90000.0])
def test_a_container_that_does_not_tell(tmp_path: Path, monkeypatch, told: float) -> None:
    path = write_video(tmp_path / "v.mp4")

    class Capture:
        def __init__(self, name: str) -> None:
            self._whole = real(name)

        def get(self, key: int) -> float:
            return told if key == cv2.CAP_PROP_FPS else -9.2e18

        def __getattr__(self, name: str) -> Any:
            return getattr(self._whole, name)

    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    frames = Frames(path)
    assert (frames.rate, frames.count) == (25.0, None)
    assert len(list(frames)) == 5


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_text("no video")
    with pytest.raises(UserError, match="cannot be opened as a video"):
        Frames(tmp_path / "v.mp4")
    with pytest.raises(UserError, match="--webcam: 97: no such camera"):
        camera(97)
