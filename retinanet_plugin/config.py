"""How a configuration is made: detectron2's defaults, the plugin's keys, a YAML file, overrides."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .config_file import load_yaml, shipped_configs, shipped_names
from .config_keys import KEYS
from .errors import UserError, did_you_mean, printable
from .utils import flatten


def add_retinanet_config(cfg: CfgNode) -> None:
    """Adds the plugin's keys (``config_keys.KEYS``) to a detectron2 config; existing keys stay.

    detectron2's ``MODEL.RETINANET.*`` and ``MODEL.ANCHOR_GENERATOR.*`` keys keep their meaning,
    except ``MODEL.ANCHOR_GENERATOR.SIZES``, which ``RetinaNetAnchorGenerator`` does not use.
    """
    for key in KEYS:
        *groups, name = key.name.split(".")
        node = cfg
        for group in groups:
            node = node.setdefault(group, CfgNode())
        node.setdefault(name, key.default)


def get_config(name: str | Path = "Base-RetinaNet.yaml", overrides: Sequence[str] = ()) -> CfgNode:
    """Returns a complete configuration from a YAML file and overrides.

    Only plain YAML is read: a file that asks for Python objects is refused.

    Args:
        name: a file, or the name of a shipped one such as "retinanet_R50_FPN_1x.yaml"; a file of
            that name takes precedence.
        overrides: key, value, key, value, ..., as at the end of a command line.

    Raises:
        UserError: for a file, key or value that cannot be used.
    """
    path = find_config(name)
    cfg = get_cfg()
    add_retinanet_config(cfg)
    from_file = list(_leaves(load_yaml(path), cfg))
    _merge(cfg, from_file, str(path))
    if len(overrides) % 2:
        raise UserError(
            f"overrides: {len(overrides)} arguments, the last is {overrides[-1]!r}; give pairs of "
            "a key and a value, such as SOLVER.MAX_ITER 100."
        )
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    _merge(cfg, pairs, "command line")
    own = cfg.DATASETS.OWN
    is_set = any(key == "MODEL.RETINANET.NUM_CLASSES" for key, _ in [*from_file, *pairs])
    if (own.TRAIN_JSON or own.TEST_JSON) and not is_set:
        cfg.MODEL.RETINANET.NUM_CLASSES = -1  # as many as the JSON declares
    return cfg


def find_config(name: str | Path) -> Path:
    """Returns the path of a config file, or of the shipped one of that name.

    Raises:
        UserError: if there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folder = shipped_configs()
    shipped = folder / name
    if shipped.is_file() and shipped.resolve().is_relative_to(folder.resolve()):
        return shipped
    known = shipped_names()
    raise UserError(
        f"config file: no file {name}{did_you_mean(str(name), known)}; shipped with the plugin: "
        f"{', '.join(known)}."
    )


def _leaves(
    content: Mapping[str, Any], cfg: CfgNode, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yields dotted keys and values; a mapping that is not a group of ``cfg`` is a value."""
    for key, value in content.items():
        group = cfg.get(key)
        if isinstance(value, Mapping) and isinstance(group, CfgNode):
            yield from _leaves(value, group, f"{prefix}{key}.")
        elif isinstance(value, Mapping) and group is None:
            yield from flatten(value, f"{prefix}{key}.")  # unknown: named down to the leaf
        else:
            yield f"{prefix}{key}", value


def _merge(cfg: CfgNode, pairs: Sequence[tuple[str, Any]], source: str) -> None:
    """Sets keys one by one, so that an error names its key and where it came from."""
    known = dict(flatten(cfg))
    for key, value in pairs:
        if key not in known:
            below = [name for name in known if name.startswith(f"{key}.")]
            problem = f"is a group of keys, such as {below[0]}" if below else "is not a key"
            raise UserError(
                f"{source}: {key} {problem}{did_you_mean(key, known)}; docs/config.md lists the "
                "plugin's keys, detectron2's documentation the others."
            )
        try:
            cfg.merge_from_list([key, value])
        except Exception as error:  # Python's parser raises nearly anything on odd values
            given, problem = printable(repr(value), 80), printable(str(error), 300)
            types = re.search(r"\(<class '(.*?)'> vs. <class '(.*?)'>\)", problem)
            if types:
                problem = (
                    f"must be of type {types[1]}, like the default {known[key]!r}, not {types[2]}"
                )
            raise UserError(f"{source}: {key} is {given}: {problem or 'not a value'}.") from None
