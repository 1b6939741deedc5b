"""Registration that survives being done twice, and look-ups that explain themselves."""

from collections.abc import Iterable
from typing import Any

from detectron2.utils.registry import Registry

from ..errors import UserError, did_you_mean


def register_once(registry: Registry, item: Any) -> Any:
    """Registers under the item's name, unless this very item (reloaded, perhaps) is there already.

    Raises:
        KeyError: from the registry, if something else bears the name.
    """
    name = item.__name__
    if name in registry and _origin(registry.get(name)) == _origin(item):
        registry._obj_map.pop(name)
    registry.register(item)
    return item


def _origin(item: Any) -> tuple[str, str]:
    return item.__module__, item.__qualname__


def find(registry: Registry, name: str, key: str) -> Any:
    """The item registered as ``name``, which a person gave under the config key ``key``.

    Raises:
        UserError: naming the key and the names that are known.
    """
    known = sorted(k for k, _ in registry)
    if name not in known:
        raise UserError(
            f'{key}: unknown name "{name}"{did_you_mean(name, known)}; known: {", ".join(known)}.'
        )
    return registry.get(name)


def one_of(value: str, known: Iterable[str], key: str) -> str:
    """``value``, if it is among ``known``.

    Raises:
        UserError: naming the config key and what it may be.
    """
    known = list(known)
    if value not in known:
        raise UserError(
            f'{key}: unknown value "{value}"{did_you_mean(value, known)}; '
            f"known: {', '.join(known)}."
        )
    return value
