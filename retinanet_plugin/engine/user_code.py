"""``--import``: the user's own code, which registers a loss, a head or a dataset.

Code is named on the command line only, never in YAML: reading a config must not run code.
"""

import argparse
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from ..errors import UserError, did_you_mean


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--import`` to a parser, as ``imports``."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="Python code to import first, such as my_loss.py; may be repeated",
    )


def import_code(names: Iterable[str]) -> list[ModuleType]:
    """Imports files (``folder/my_loss.py``) and modules (``my_package.losses``), each once.

    The folder of a file, and the working directory, are added to the end of ``sys.path``.

    Raises:
        UserError: if there is no such code, or it fails; then with the line that failed.
    """
    return [_import(name) for name in names]


def _import(name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.py")])
        raise UserError(f"--import: no file {path}{near}.")
    folder, module_name = (path.parent, path.stem) if is_file else (Path.cwd(), name)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # at the end, so that it hides no other module
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"--import {name}: {_location(error)}{type(error).__name__}: {error}"
        ) from None
    if is_file and Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise UserError(f"--import: {path} has the name of another module; rename the file.")
    return module


def _location(error: BaseException) -> str:
    """The innermost line outside of libraries that raised the error, if any."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    folders = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    libraries = ("<frozen ", str(Path(__file__).resolve().parents[1]), *folders)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
