"""Small things that many files need: whole files or none, tables, lists of names."""

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file that appears under ``path``, replacing what was there, once it is complete.

    The data is on disk before the file gets its name, so neither a killed process nor a power
    loss leaves half a file. A link at ``path`` is replaced, not followed.

    Raises:
        OSError: if writing fails; ``path`` is unchanged then.
    """
    path = Path(path)
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())  # mkstemp's files are for their owner only
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text, all of it or nothing."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, content: Any) -> None:
    """Writes indented JSON. NaN and infinity, which JSON lacks, are a ValueError."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_csv(path: str | Path, columns: Mapping[str, Sequence[float | str]]) -> None:
    """Writes columns of equal length under their names; numbers have 9 digits, NaN is empty."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(x) for x in row] for row in zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if value != value else f"{value:.9g}"


def write_figure(path: str | Path, figure: "Figure") -> None:
    """Writes a matplotlib figure as a PNG of 120 dots per inch."""
    with atomic_writer(path) as file:
        figure.savefig(file, dpi=120, format="png")


def output_files(
    folder: Path, names: Iterable[str], *, overwrite: bool, option: str = "--output"
) -> list[Path]:
    """Creates ``folder`` and returns the paths of ``names`` in it.

    Args:
        option: the command-line option that named the folder, for errors.

    Raises:
        UserError: if a file exists and ``overwrite`` is False, or the folder is not writable.
    """
    paths = [folder / name for name in names]
    existing = [path.name for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{option}: {folder} already holds {', '.join(existing)}; name another folder, or add "
            "--overwrite to replace them."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: cannot create {folder} ({error.strerror}).") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: {folder} is not writable; name another folder.")
    return paths


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shorten(names: Iterable[Any], most: int = 3) -> str:
    """Joins the first names of a list: ``"a, b, c, ..."``."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def spread(entries: Sequence[T], count: int) -> list[T]:
    """Returns ``count`` entries, evenly spaced; all of them if there are fewer."""
    count = min(count, len(entries))
    return [entries[i * len(entries) // count] for i in range(count)]


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table; ``|`` within cells is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of each leaf of nested mappings, such as a config."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def cpu_count() -> int:
    """Returns how many CPU cores this process may use; a container may have fewer than its host."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
