"""A person's own code, named on the command line: it registers a loss, a head, a data set.

Never by a key of YAML: reading a configuration from elsewhere must not run code.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from ..errors import UserError, did_you_mean

OPTION = "--import"
_LIBRARIES = (
    "<frozen ",
    str(Path(__file__).resolve().parents[1]),  # this package
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
)

# By the name of each module that was imported, as only the first time tells.
_came_with: dict[str, dict[str, ModuleType]] = {}


def add_option(words: argparse.ArgumentParser) -> None:
    """Adds ``--import`` to a command line, whose value :func:`import_code` takes: ``imports``."""
    words.add_argument(
        OPTION,
        dest="imports",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="Python code of your own to import first, such as my_loss.py, which registers a loss, "
        "a head or a data set; may be given several times",
    )


def import_code(names: Iterable[str]) -> list[ModuleType]:
    """Imports files and modules, each once a process.

    A file can be imported under its own name from then on, and so can what lies beside it; modules
    are looked for where Python looks, and in the working directory.

    Args:
        names: ``folder/my_loss.py``, or a module's name such as ``my_package.losses``.

    Returns:
        The modules, and those that came with them, but for libraries.

    Raises:
        UserError: for what is not there, bears the name of another module, or fails when imported;
            then with the line of the person's code that failed.
    """
    found: dict[str, ModuleType] = {}
    for name in names:
        before = set(sys.modules)
        module = _import(name)
        came = {key: sys.modules[key] for key in set(sys.modules) - before}
        with_it = _came_with.setdefault(module.__name__, {})
        with_it |= {key: other for key, other in came.items() if not _is_library(other)}
        found |= {module.__name__: module, **with_it}
    return list(found.values())


def _is_library(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is None or any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)


def _import(name: str) -> ModuleType:
    if name.endswith(".py") or os.sep in name:
        return _import_file(name)
    _search_also(Path.cwd())
    return _import_module(name, name)


def _import_file(name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")]
        raise UserError(
            f"{OPTION}: no file {path}{did_you_mean(path.name, beside)}; give a Python file or "
            "the name of a module."
        )
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(
            f"{OPTION}: {path} cannot be imported under the name {path.stem}; give the file a "
            "name of letters, digits and underscores that ends in .py."
        )
    _search_also(path.parent)
    found = importlib.util.find_spec(path.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != path:
        other = found.origin if found and found.origin else "part of Python"
        raise UserError(
            f"{OPTION}: {path} has the name of another module, {path.stem} ({other}); rename the "
            "file."
        )
    return _import_module(path.stem, name)


def _search_also(folder: Path) -> None:
    """Behind all else, so that no file there replaces a module that others need."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _import_module(module: str, given: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed(given, error) from None
        raise UserError(
            f"{OPTION}: no module {error.name} (working directory {Path.cwd()}); give a Python "
            "file, such as my_loss.py, or the name of a module that Python finds."
        ) from None
    except (Exception, SystemExit) as error:
        raise _failed(given, error) from None


def _failed(given: str, error: BaseException) -> UserError:
    """The mistake at the innermost line that is neither a library's nor ours."""
    said = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename:
        where, said = f"{error.filename}, line {error.lineno}", error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [f for f in frames if not f.filename.startswith(_LIBRARIES)]
        where = f"{theirs[-1].filename}, line {theirs[-1].lineno}" if theirs else "in a library"
    return UserError(
        f"{OPTION} {given}: {where}: {type(error).__name__}{': ' if said else ''}{said}; mend it "
        "there."
    )
