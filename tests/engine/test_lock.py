"""One training at a time into a folder."""

import os
import signal
from pathlib import Path

import pytest

from retinanet_plugin import UserError
from retinanet_plugin.engine import lock
from retinanet_plugin.engine.lock import lock_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.2)


def start_holder(folder: Path) -> int:
    """Returns the id of a process that holds the lock until it is killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lock_folder(str(folder))
        os.write(writer, b"y")
        signal.pause()
    assert os.read(reader, 1) == b"y"
    return child


def test_one_process_at_a_time(tmp_path: Path) -> None:
    child = start_holder(tmp_path)
    try:
        with pytest.raises(UserError, match=f"OUTPUT_DIR.*{tmp_path}"):
            lock_folder(str(tmp_path))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    lock_folder(str(tmp_path))  # a killed process holds nothing
    lock_folder(str(tmp_path))  # and this one may continue its own run


def test_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("unchanged")
    (tmp_path / ".lock").symlink_to(target)
    with pytest.raises((OSError, UserError)):
        lock_folder(str(tmp_path))
    assert target.read_text() == "unchanged"
