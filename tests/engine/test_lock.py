"""A folder that is trained into, seen from other processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinanet_plugin import UserError
from retinanet_plugin.engine import lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no such locks")


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    if lock._held is not None:
        os.close(lock._held)
        lock._held = None


def other(folder: Path, *, then_sleep: bool = False) -> int:
    """A process that asks for the folder and, if it got it, perhaps sleeps; its id."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lock._held = None  # its parent's, which it has no part in
        try:
            lock.hold(str(folder))
            os.write(writer, b"y")
            if then_sleep:
                signal.pause()
        finally:
            os._exit(0)
    os.close(writer)
    answer = os.read(reader, 1)
    os.close(reader)
    if not then_sleep:
        os.waitpid(child, 0)
        return int(answer == b"y")
    assert answer == b"y"
    return child


def test_one_process_at_a_time(tmp_path) -> None:
    lock.hold(str(tmp_path))
    lock.hold(str(tmp_path))  # itself it may go on
    assert not other(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lock.hold(str(elsewhere))
    assert other(tmp_path)


def test_who_holds_it_is_named_and_being_killed_lets_go(tmp_path) -> None:
    child = other(tmp_path, then_sleep=True)
    try:
        with pytest.raises(UserError, match=f"is being trained into by process {child} of "):
            lock.hold(str(tmp_path))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    lock.hold(str(tmp_path))


def test_a_forked_process_that_outlives_its_parent_holds_nothing(tmp_path) -> None:
    """As loader workers do for some seconds when training is killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lock.hold(str(tmp_path))
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(writer, str(worker).encode())
        os._exit(0)
    os.waitpid(child, 0)
    worker = int(os.read(reader, 20))
    try:
        lock.hold(str(tmp_path))
    finally:
        os.kill(worker, signal.SIGKILL)


def test_without_locks_training_goes_on(tmp_path, monkeypatch) -> None:
    def unsupported(*words: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    lock.hold(str(tmp_path))
    lock.hold(str(tmp_path / "absent"))


def test_a_link_is_not_followed(tmp_path) -> None:
    target = tmp_path / "precious"
    target.write_text("as it was")
    (tmp_path / ".lock").symlink_to(target)
    lock.hold(str(tmp_path))
    assert target.read_text() == "as it was"
