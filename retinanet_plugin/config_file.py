"""A YAML file and the ``_BASE_`` files below it as plain values, whoever wrote them.

Reading one runs no code, never waits, and takes no more time and memory than the limits here allow.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, did_you_mean, printable

# detectron2's whole configuration has 20 kB and 700 values, six levels deep.
MAX_BYTES = 1024**2
MAX_VALUES = 20_000  # with all that aliases repeat
MAX_DEPTH = 50
MAX_FILES = 100  # read for one configuration
BASE = "_BASE_"


def load_yaml(path: Path, *, leave_out: Callable[[Path], bool] | None = None) -> dict[str, Any]:
    """The content of a file over that of its ``_BASE_`` files, merged as detectron2 does it.

    A ``_BASE_`` (or each of a list of them) is looked for beside the file that names it, then among
    the shipped ones. It must lie within the folder of that file, the working directory, a folder
    called ``configs`` that encloses the file, or be a shipped one.

    Args:
        path: the file.
        leave_out: whether a file, and what is below it, counts as empty.

    Raises:
        UserError: for a file that cannot be read, is not plain YAML, exceeds the limits above, or
            has a ``_BASE_`` that is elsewhere or leads back to it.
    """
    return _load(path, str(path), (), [], leave_out or (lambda _: False))


def shipped_configs() -> Path:
    """The folder of the shipped configurations: within the installed package, or beside it."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_names() -> list[str]:
    """The shipped files, as a person names them."""
    folder = shipped_configs()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def _load(
    path: Path,
    title: str,
    above: tuple[Path, ...],
    read: list[Path],
    leave_out: Callable[[Path], bool],
) -> dict[str, Any]:
    """``read`` counts the files, each as often as it was read; ``above`` are those led here."""
    if leave_out(path):
        return {}
    place = path.resolve()
    if place in above:
        way = " -> ".join(p.name for p in (*above[above.index(place) :], place))
        raise UserError(f"{title}: its {BASE} leads back to itself ({way}); take one of them out.")
    read.append(place)
    if len(read) > MAX_FILES:
        raise UserError(f"{title}: more than {MAX_FILES} {BASE} files are below it; merge some.")
    content = _read(path, title)
    bases = content.pop(BASE, [])
    merged: dict[str, Any] = {}
    for name in bases if isinstance(bases, list) else [bases]:
        base = _find_base(name, path, title)
        below = _load(base, f"{base} ({BASE} of {title})", (*above, place), read, leave_out)
        lay_over(below, merged, title)
    lay_over(content, merged, title)
    return merged


def lay_over(content: dict[str, Any], below: dict[str, Any], title: str) -> None:
    """Sets the values of ``content`` in ``below``, in place.

    Raises:
        UserError: where a group of keys meets a value; ``title`` names the content.
    """
    for key, value in content.items():
        if isinstance(value, dict):
            under = below.setdefault(key, {})
            if not isinstance(under, dict):
                raise UserError(
                    f"{title}: {key} is a group of keys, but a single value in its {BASE}."
                )
            lay_over(value, under, title)
        else:
            below[key] = value


def _find_base(name: object, path: Path, title: str) -> Path:
    if not isinstance(name, str) or not name:
        raise UserError(f"{title}: its {BASE} is {printable(repr(name), 80)}, not a file's name.")
    said = printable(name, 200)
    if "://" in name:
        raise UserError(f"{title}: its {BASE} {said} is remote; save it here and name the copy.")
    shipped = shipped_configs()
    base = os.path.join(path.parent, os.path.expanduser(name))
    if os.path.exists(base):
        place = Path(base).resolve()
        if not any(place.is_relative_to(root) for root in _roots(path)):
            raise UserError(
                f"{title}: its {BASE} {said} lies outside: it must be in the folder of its config, "
                "the working directory, a folder called configs that encloses the config, or "
                "shipped with the plugin; copy it there, or run the command further up."
            )
        return Path(base)
    parts = Path(name).parts
    for end in (parts[i:] for i in range(len(parts))):  # "configs/..." of any checkout is ours too
        if os.path.isfile(shipped.joinpath(*end)) and ".." not in end:
            return shipped.joinpath(*end)
    raise UserError(
        f"{title}: no file {said}, its {BASE}, beside it or among those shipped with the plugin"
        f"{did_you_mean(name, shipped_names())}."
    )


def _roots(path: Path) -> Iterator[Path]:
    yield shipped_configs().resolve()
    working = Path.cwd()
    if working != Path(working.anchor):
        yield working
    for folder in (path.parent.resolve(), path.resolve().parent):  # of a link and its target
        yield folder
        yield from (up for up in folder.parents if up.name == "configs")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which gives up once there is too much, before it makes any of it."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self._depth = self._count = 0
        self._sizes: dict[yaml.Node, int] = {}  # in values, of each whole node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._count
        self._depth += 1
        self._add(1, event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[node] = self._count - before
        elif node in self._sizes:
            self._add(self._sizes[node], event.start_mark)
        else:
            raise _refusal("an alias stands within what it repeats", event.start_mark)
        return node

    def _add(self, count: int, mark: yaml.Mark) -> None:
        self._count += count
        if self._count > MAX_VALUES:
            raise _refusal(f"more than {MAX_VALUES} values, with all that aliases repeat", mark)
        if self._depth > MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep", mark)


def _refusal(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, mark)


def _read(path: Path, title: str) -> dict[str, Any]:
    if not os.path.isfile(path):  # a pipe or device could be read for ever
        raise UserError(f"{title}: no file, or not an ordinary one.")
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{title}: cannot be read ({error.strerror}).") from None
    if len(text) > MAX_BYTES:
        raise UserError(
            f"{title}: more than the {MAX_BYTES // 1024**2} MiB that a configuration may have; "
            "give a YAML of keys and values."
        )
    try:
        content = yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{title}: {_problem(error)}; only plain YAML is read, as a config that makes Python "
            "objects could run any code: write the value itself."
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{title}: not valid YAML: {_problem(error)}.") from None
    except Exception as error:  # PyYAML's of dates, numbers and tags that are none
        raise UserError(
            f"{title}: holds what looks like a date or number and is none "
            f"({printable(str(error), 200)}); put it in quotes."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{title}: not a mapping of keys to values.")
    return content


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return f"{printable(str(said), 200)}{where}"
