"""Registration that may be repeated, and look-ups whose errors name the config key."""

from collections.abc import Iterable
from typing import Any

from detectron2.utils.registry import Registry

from ..errors import UserError, did_you_mean


def register_once(registry: Registry, item: Any) -> Any:
    """Registers ``item`` under its name; the same item, perhaps reloaded, replaces itself.

    Raises:
        KeyError: from the registry, if the name belongs to something else.
    """
    name = item.__name__
    if name in registry and _origin(registry.get(name)) == _origin(item):
        registry._obj_map.pop(name)
    registry.register(item)
    return item


def _origin(item: Any) -> tuple[str, str]:
    return item.__module__, item.__qualname__


def find(registry: Registry, name: str, key: str) -> Any:
    """Returns the item registered as ``name``, the value of the config key ``key``.

    Raises:
        UserError: naming the key and the known names.
    """
    return registry.get(one_of(name, [k for k, _ in registry], key))


def one_of(value: str, known: Iterable[str], key: str) -> str:
    """Returns ``value``, the value of the config key ``key``, if it is one of ``known``.

    Raises:
        UserError: naming the key and the known values.
    """
    known = list(known)
    if value not in known:
        raise UserError(
            f'{key}: unknown value "{value}"{did_you_mean(value, known)}; '
            f"known: {', '.join(known)}."
        )
    return value


def check(valid: bool, key: str, value: object, allowed: str) -> None:
    """Raises UserError, naming the config key, its value and what is allowed, unless ``valid``."""
    if not valid:
        raise UserError(f"{key}: {value} given; give {allowed}.")
