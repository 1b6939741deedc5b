"""Where an analysis leaves its figures and numbers: whole files, and none replaced unasked."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .errors import UserError


def output_files(
    folder: Path, names: Iterable[str], *, overwrite: bool, option: str = "--out"
) -> list[Path]:
    """The paths of ``names`` in ``folder``, which is made.

    Args:
        option: of the command line, which named the folder.

    Raises:
        UserError: where one is there already and is not to be replaced, or the folder cannot be
            written.
    """
    paths = [folder / name for name in names]
    there = [path.name for path in paths if path.exists()]
    if there and not overwrite:
        raise UserError(
            f"{option}: {folder} already holds {', '.join(there)}; give another folder, or "
            "--overwrite to replace them."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be made ({error.strerror}).") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: {folder} cannot be written; give another folder.")
    return paths


def write_figure(path: Path, figure: Figure) -> None:
    """As a PNG."""
    _write(path, lambda part: figure.savefig(part, dpi=120, format="png"))


def write_csv(path: Path, columns: Mapping[str, Sequence[float | str]]) -> None:
    """Columns of equal length under their names, numbers with 9 digits, NaN as an empty cell."""
    rows = zip(*columns.values(), strict=True)

    def write(part: Path) -> None:
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([_cell(value) for value in row] for row in rows)

    _write(path, write)


def write_text(path: Path, text: str) -> None:
    """As it is."""
    _write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Indented, for people too."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_text(path, f"{text}\n")


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if value != value else f"{value:.9g}"


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Through a file beside it, so that ``path`` is always whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
