"""Checkpoint files that are whole or absent, whenever the process or the machine dies."""

import hashlib
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NUMBERED = re.compile(r"model_\d{7,}\.pth")
_RESUMED_FROM = re.compile(r"model_(\d{7,}|final)\.pth")  # not the best one, which may be old
_PARTIAL = ".partial"


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name, and the place of what bore it, once on the disk.

    Raises:
        OSError: of writing; what was there before is left as it was.
    """
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed, or a link to elsewhere
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _flush(folder: Path) -> None:
    """Makes a new name in a folder outlast a loss of power; some file systems need no such call."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    except OSError:
        pass
    finally:
        os.close(number)


def fault_of(path: Path) -> str | None:
    """What is wrong with a file of ``torch.save``, by its checksums; None if nothing is.

    PyTorch's format is a zip archive that holds a CRC-32 of each tensor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # one bit more or less can say that it is encrypted or compressed
        return str(error) or type(error).__name__
    return f"the checksum of {damaged} is wrong" if damaged else None


def sha256(file: Path) -> str:
    """Of a file, in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def has_run(folder: str | Path) -> bool:
    """Whether a folder holds a run's checkpoint, whole or not."""
    return bool(resumable(Path(folder)))


def resumable(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first: what ``last_checkpoint`` names, then by step.

    ``model_final.pth`` has no step in its name. It comes last where a numbered one is named, as in
    a run whose end was put off, else first. Times of files do not count: copies have their own.
    """
    found = [p for p in folder.glob("model_*.pth") if _RESUMED_FROM.fullmatch(p.name)]
    try:
        with (folder / "last_checkpoint").open(errors="replace") as file:
            named = file.read(100)
    except OSError:
        named = ""
    is_numbered = folder / named in found and _NUMBERED.fullmatch(named) is not None

    def newness(path: Path) -> tuple[bool, int]:
        is_final = path.stem == "model_final"
        step = (-1 if is_numbered else sys.maxsize) if is_final else int(path.stem[len("model_") :])
        return path.name == named, step

    return sorted(found, key=newness, reverse=True)


def remove_old(folder: Path, keep: int) -> None:
    """Removes torn leftovers, and numbered checkpoints but for the ``keep`` last steps; 0: none."""
    numbered = [p for p in folder.glob("model_*.pth") if _NUMBERED.fullmatch(p.name)]
    numbered.sort(key=lambda p: int(p.stem.removeprefix("model_")))
    for path in [*numbered[:-keep], *folder.glob(f".model_*{_PARTIAL}")]:
        path.unlink(missing_ok=True)
