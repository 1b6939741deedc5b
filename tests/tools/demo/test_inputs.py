"""What --input finds, and the frames of videos."""

from pathlib import Path
from unittest.mock import Mock

import cv2
import pytest

from retinanet_plugin import UserError
from retinanet_plugin.tools.demo.inputs import Frames, find_sources, is_video


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("a.jpg", "shots/a.jpg", "shots/b.PNG", "shots/deep/er/a.jpg", "shots/c.mp4"),
        *("shots/notes.txt", "shots/.hidden.jpg", "shots/.git/d.jpg", "x[1].jpg", "out/a.jpg"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    Path("link.jpg").symlink_to("a.jpg")


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("a.jpg x[1].jpg", "a.jpg x[1].jpg"),
        ("shots/", "a.jpg b.PNG c.mp4 deep/er/a.jpg"),
        ("shots/*", "a.jpg b.PNG c.mp4"),
        ("shots/**/a.jpg", "a.jpg a.jpg"),
        ("a.jpg ./a.jpg *.jpg", "a.jpg x[1].jpg"),
        ("shots/notes.txt", "notes.txt"),
        ("**/a.jpg", "a.jpg a.jpg a.jpg"),
    ],
)
def test_names(inputs: str, expected: str) -> None:
    sources, unmatched = find_sources(inputs.split(), Path("out"))
    assert [x.as_posix() for x in sources.values()] == expected.split() and unmatched == []
    assert [is_video(x) for x in sources] == [x.endswith("mp4") for x in expected.split()]


def test_unmatched_inputs_and_those_in_the_output_folder() -> None:
    sources, unmatched = find_sources(["no.jpg", "a.jpg", "*.webp"], Path("out"))
    assert list(sources) == [Path("a.jpg")] and unmatched == ["no.jpg", "*.webp"]
    for path in ("out", "out/a.jpg", "shots/../out/a.jpg"):
        with pytest.raises(UserError, match="--output: out"):
            find_sources([path], Path("out"))


@pytest.mark.parametrize("stated", [0.0, float("nan"), 90000.0])
def test_videos_that_state_no_frame_rate(monkeypatch: pytest.MonkeyPatch, stated: float) -> None:
    capture = Mock(get=lambda key: stated if key == cv2.CAP_PROP_FPS else -9.2e18)
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: capture)
    frames = Frames(Path("v.mp4"))
    assert (frames.fps, frames.count) == (25.0, None)
