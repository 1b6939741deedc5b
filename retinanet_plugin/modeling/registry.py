"""Registration that a reload may repeat, and look-ups whose errors name the config key."""

from typing import Any

from detectron2.utils.registry import Registry

from ..errors import one_of


def register_once(registry: Registry, item: Any) -> None:
    """Registers ``item``; if its module is imported again, the new item replaces the old one."""
    old = registry._obj_map.get(item.__name__)
    if old is not None and old.__module__ == item.__module__:
        del registry._obj_map[item.__name__]
    registry.register(item)


def find(registry: Registry, name: str, key: str) -> Any:
    """Returns the item registered as ``name``, the value of the config key ``key``.

    Raises:
        UserError: naming the key and the known names.
    """
    return registry.get(one_of(name, [k for k, _ in registry], key))
