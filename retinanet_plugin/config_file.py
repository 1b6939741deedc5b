"""Reading YAML: plain values only, with ``_BASE_`` files merged as detectron2 merges them.

A file may come from anywhere, so reading one runs no code and is bounded in size.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, did_you_mean, printable

MAX_BYTES = 1024**2  # detectron2's whole configuration has 20 kB
MAX_FILES = 100  # per configuration
MAX_ALIASED = 100  # values that an alias may repeat
BASE = "_BASE_"


def load_yaml(path: Path) -> dict[str, Any]:
    """Returns the content of a file on top of its ``_BASE_`` files.

    A ``_BASE_`` (or each in a list of them) is looked up relative to the file that names it, then
    among the shipped configs. It must lie in the folder of that file, in the working directory, in
    a folder named ``configs`` that encloses the file, or be a shipped one.

    Raises:
        UserError: for a file that cannot be read, is not plain YAML, is too large, or whose
            ``_BASE_`` is missing, elsewhere, or leads back to it.
    """
    merged: dict[str, Any] = {}
    for file, content in yaml_layers(path):
        _merge(content, merged, str(file))
    return merged


def yaml_layers(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Returns the ``_BASE_`` files of a file and the file itself, each with its own content only.

    Later ones override earlier ones. Raises as :func:`load_yaml`.
    """
    layers: list[tuple[Path, dict[str, Any]]] = []
    _add_layers(path, str(path), (), layers)
    return layers


def shipped_configs() -> Path:
    """Returns the folder of the shipped configs: in the installed package, or beside it."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_names() -> list[str]:
    """Returns the names of the shipped configs, as ``--config-file`` takes them."""
    folder = shipped_configs()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def _add_layers(
    path: Path, title: str, above: tuple[Path, ...], layers: list[tuple[Path, dict[str, Any]]]
) -> None:
    """Appends the layers of a file; ``above`` are the files that led to it."""
    resolved = path.resolve()
    if resolved in above:
        chain = " -> ".join(p.name for p in (*above[above.index(resolved) :], resolved))
        raise UserError(f"{title}: {BASE} leads back to itself ({chain}); remove one of them.")
    if len(layers) + len(above) >= MAX_FILES:
        raise UserError(f"{title}: more than {MAX_FILES} {BASE} files; merge some.")
    content = _read(path, title)
    bases = content.pop(BASE, [])
    for name in bases if isinstance(bases, list) else [bases]:
        base = _find_base(name, path, title)
        _add_layers(base, f"{base} ({BASE} of {title})", (*above, resolved), layers)
    layers.append((path, content))


def _merge(content: dict[str, Any], below: dict[str, Any], title: str) -> None:
    """Sets the values of ``content`` in ``below``, in place."""
    for key, value in content.items():
        if not isinstance(value, dict):
            below[key] = value
            continue
        group = below.setdefault(key, {})
        if not isinstance(group, dict):
            raise UserError(f"{title}: {key} is a group of keys, but a value in its {BASE}.")
        _merge(value, group, title)


def _find_base(name: object, path: Path, title: str) -> Path:
    if not isinstance(name, str) or not name:
        raise UserError(f"{title}: {BASE} is {printable(repr(name), 80)}; give a file name.")
    shown = printable(name, 200)
    if "://" in name:
        raise UserError(f"{title}: {BASE} {shown} is remote; download it and name the copy.")
    base = Path(os.path.join(path.parent, os.path.expanduser(name)))
    if base.exists():
        if not any(base.resolve().is_relative_to(root) for root in _roots(path)):
            raise UserError(
                f"{title}: {BASE} {shown} is outside the folder of its config, the working "
                "directory and any folder named configs around the config; copy it there."
            )
        return base
    parts, shipped = Path(name).parts, shipped_configs()
    for i in range(len(parts)):  # "../configs/X.yaml" of a checkout is the shipped X.yaml
        candidate = shipped.joinpath(*parts[i:])
        if ".." not in parts[i:] and candidate.is_file():
            return candidate
    raise UserError(
        f"{title}: {BASE} {shown} is neither beside it nor shipped with the plugin"
        f"{did_you_mean(name, shipped_names())}."
    )


def _roots(path: Path) -> Iterator[Path]:
    yield shipped_configs().resolve()
    yield Path.cwd()
    for folder in (path.parent.resolve(), path.resolve().parent):  # of a link and its target
        yield folder
        yield from (parent for parent in folder.parents if parent.name == "configs")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with aliases of small values only, as in configs that detectron2 saves.

    Aliases of aliases could otherwise repeat values exponentially often.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and (node := self.anchors.get(event.anchor)):
            is_complete = node.end_mark is not None  # otherwise it contains itself
            if not is_complete or _size(node) > MAX_ALIASED:
                problem = f"alias *{event.anchor} repeats too much; write the value itself"
                raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


def _size(node: yaml.Node) -> int:
    """Returns how many values a node has, aliases resolved."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    pairs = isinstance(node, yaml.MappingNode)
    return 1 + sum(_size(x) for item in node.value for x in (item if pairs else [item]))


def _read(path: Path, title: str) -> dict[str, Any]:
    if not path.is_file():  # a pipe or device could be read forever
        raise UserError(f"{title}: not a file.")
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{title}: cannot be read ({error.strerror}).") from None
    if len(text) > MAX_BYTES:
        raise UserError(f"{title}: larger than {MAX_BYTES // 1024**2} MiB; give a YAML config.")
    try:
        content = yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{title}: {_problem(error)}; only plain YAML is read, because Python objects could "
            "run code: write the value itself."
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{title}: not valid YAML: {_problem(error)}.") from None
    except Exception as error:  # PyYAML's own, for impossible dates and numbers or deep nesting
        problem = printable(str(error), 200) or type(error).__name__
        raise UserError(f"{title}: not valid YAML: {problem}; quote text values.") from None
    if not isinstance(content, dict):
        raise UserError(f"{title}: not a mapping of keys to values.")
    return content


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    location = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return f"{printable(str(problem), 200)}{location}"
