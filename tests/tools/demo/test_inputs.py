"""What --input finds, and the frames of videos."""

from pathlib import Path, PurePath
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from retinanet_plugin import UserError
from retinanet_plugin.tools.demo.inputs import Frames, find_sources


@pytest.fixture
def shots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        *("a.jpg", "shots/a.jpg", "shots/b.PNG", "shots/deep/er/a.jpg", "shots/c.mp4"),
        *("shots/notes.txt", "shots/.hidden.jpg", "shots/.git/d.jpg", "x[1].jpg", "out/a.jpg"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str) -> list[tuple[str, str]]:
    sources, unmatched = find_sources(inputs, Path("out"))
    assert unmatched == []
    return [(x.path.as_posix(), x.name.as_posix()) for x in sources]


def test_files_folders_and_patterns(shots: Path) -> None:
    assert names("a.jpg", "x[1].jpg") == [("a.jpg", "a.jpg"), ("x[1].jpg", "x[1].jpg")]
    folder = [
        ("shots/a.jpg", "a.jpg"),
        ("shots/b.PNG", "b.PNG"),
        ("shots/c.mp4", "c.mp4"),
        ("shots/deep/er/a.jpg", "deep/er/a.jpg"),
    ]
    assert names("shots") == names("shots/") == folder
    assert names("shots/*") == [*folder[:3], ("shots/deep/er/a.jpg", "er/a.jpg")]
    assert names("shots/**/a.jpg") == [folder[0], ("shots/deep/er/a.jpg", "a.jpg")]
    assert [x.is_video for x in find_sources(["shots"], Path("out"))[0]] == [0, 0, 1, 0]


def test_each_file_once(shots: Path) -> None:
    Path("link.jpg").symlink_to("a.jpg")
    assert names("a.jpg", "./a.jpg", "*.jpg") == [("a.jpg", "a.jpg"), ("x[1].jpg", "x[1].jpg")]


def test_a_file_with_an_unknown_suffix_counts_as_an_image(shots: Path) -> None:
    (source,) = find_sources(["shots/notes.txt"], Path("out"))[0]
    assert source.name == PurePath("notes.txt") and not source.is_video


def test_the_output_folder_is_no_input(shots: Path) -> None:
    assert ("out/a.jpg", "out/a.jpg") not in names(".")
    assert names("**/a.jpg") == names("a.jpg", "shots/a.jpg", "shots/deep/er/a.jpg")
    for path in ("out", "out/a.jpg", "shots/../out/a.jpg"):
        with pytest.raises(UserError, match="--output: out"):
            find_sources([path], Path("out"))


def test_unmatched_inputs(shots: Path) -> None:
    sources, unmatched = find_sources(["no.jpg", "a.jpg", "*.webp", "shots/.git"], Path("out"))
    assert sources[0].path == Path("a.jpg") and unmatched == ["no.jpg", "*.webp"]


def test_frames_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (64, 48))
    for i in range(5):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    frames = Frames(path)
    assert (frames.fps, frames.count) == (12.5, 5)
    assert [round(frame.mean(), -1) for frame in frames] == [0, 40, 80, 120, 160]


@pytest.mark.parametrize("stated", [0.0, float("nan"), 90000.0])
def test_videos_that_state_no_frame_rate(monkeypatch: pytest.MonkeyPatch, stated: float) -> None:
    capture = Mock(get=lambda key: stated if key == cv2.CAP_PROP_FPS else -9.2e18)
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: capture)
    frames = Frames(Path("v.mp4"))
    assert (frames.fps, frames.count) == (25.0, None)


def test_unreadable_videos_and_cameras(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_text("no video")
    with pytest.raises(UserError, match="video"):
        Frames(tmp_path / "v.mp4")
    with pytest.raises(UserError, match=r"--webcam: .*97"):
        Frames(97)
