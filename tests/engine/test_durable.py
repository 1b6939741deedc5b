"""Files that are whole or absent: writers that fail or are killed, and files with a wrong byte."""

import os
import signal
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from retinanet_plugin.engine.atomic_io import fault_of, remove_old, resumable, written_whole


def save(path, step):
    with written_whole(path) as file:
        torch.save({"model": {"w": torch.arange(5000.0) + step}, "iteration": step}, file)


def test_what_is_written_can_be_read(tmp_path):
    save(tmp_path / "model_final.pth", 7)
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 7
    assert os.listdir(tmp_path) == ["model_final.pth"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "model_final.pth"
    save(path, 1)
    with pytest.raises(OSError, match="full"), written_whole(path) as file:
        file.write(b"half of it")
        raise OSError("disk full")
    assert torch.load(path, weights_only=True)["iteration"] == 1
    assert os.listdir(tmp_path) == ["model_final.pth"]


SLOW_WRITER = """
import sys
from pathlib import Path
from contextlib import contextmanager
{source}
with written_whole(Path(sys.argv[1])) as file:
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    import time
    time.sleep(60)
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    import retinanet_plugin.engine.atomic_io as durable

    path = tmp_path / "model_final.pth"
    save(path, 1)
    # The module alone: importing the package takes seconds.
    with open(durable.__file__, encoding="utf-8") as file:
        code = SLOW_WRITER.format(source=file.read())
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert torch.load(path, weights_only=True)["iteration"] == 1
    assert resumable(tmp_path) == [path]
    remove_old(tmp_path, 5)
    assert os.listdir(tmp_path) == ["model_final.pth"]


def test_a_wrong_byte_in_any_tensor_is_found(tmp_path):
    path = tmp_path / "model_0000001.pth"
    save(path, 1)
    assert fault_of(path) is None
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = [x for x in archive.infolist() if x.file_size > 100]
    assert len(entries) >= 2  # the structure and the tensor
    for entry in entries:
        changed = bytearray(whole)
        header = whole[entry.header_offset : entry.header_offset + 30]
        lengths = struct.unpack("<HH", header[26:])  # of the name and of what follows it
        changed[entry.header_offset + 30 + sum(lengths) + entry.file_size // 2] ^= 1
        path.write_bytes(changed)
        assert "checksum" in str(fault_of(path)), entry.filename


@pytest.mark.parametrize("length", [0, 10, 5000, -1])
def test_a_file_cut_short_is_found(tmp_path, length):
    path = tmp_path / "model_0000001.pth"
    save(path, 1)
    path.write_bytes(path.read_bytes()[:length])
    assert fault_of(path) is not None
    assert fault_of(tmp_path / "absent.pth") is not None


@pytest.mark.parametrize(
    ("named", "newest"),
    [
        ("model_final.pth", ["final", "0000019", "0000009", "0000004"]),
        ("model_0000019.pth", ["0000019", "0000009", "0000004", "final"]),  # a longer MAX_ITER
        ("model_0000009.pth", ["0000009", "0000019", "0000004", "final"]),
        ("model_best.pth", ["final", "0000019", "0000009", "0000004"]),
        ("model_0000099.pth", ["final", "0000019", "0000009", "0000004"]),
        ("../model_0000009.pth", ["final", "0000019", "0000009", "0000004"]),
        ("\0" * 5000, ["final", "0000019", "0000009", "0000004"]),
        (None, ["final", "0000019", "0000009", "0000004"]),
    ],
)
def test_the_newest_comes_first_whatever_the_times_of_the_files(tmp_path, named, newest):
    for time, name in enumerate(("0000019", "final", "0000009", "best", "0000004")):
        (tmp_path / f"model_{name}.pth").touch()
        os.utime(tmp_path / f"model_{name}.pth", (1000 + time, 1000 + time))
    if named is not None:
        (tmp_path / "last_checkpoint").write_text(named)
    assert [p.name for p in resumable(tmp_path)] == [f"model_{name}.pth" for name in newest]


def test_the_latest_steps_are_kept(tmp_path):
    for step in (1, 2, 30, 4, 12345678):
        save(tmp_path / f"model_{step:07d}.pth", step)
    for name in ("final", "best"):
        save(tmp_path / f"model_{name}.pth", 0)
    remove_old(tmp_path, 0)
    assert len(os.listdir(tmp_path)) == 7
    remove_old(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == [
        *("model_0000030.pth", "model_12345678.pth", "model_best.pth", "model_final.pth")
    ]


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path) -> None:
    (tmp_path / "precious").write_text("all")
    (tmp_path / ".a.pth.partial").symlink_to(tmp_path / "precious")
    with written_whole(tmp_path / "a.pth") as file:
        file.write(b"new")
    assert (tmp_path / "a.pth").read_bytes() == b"new"
    assert (tmp_path / "precious").read_text() == "all"
