"""Reads the config that mmdetection writes into its files: Python source, which is never run."""

import ast
from typing import Any


def read_config(text: str) -> dict[str, Any]:
    """Returns ``{"model.backbone.depth": 50}`` for ``model = dict(backbone=dict(depth=50))``.

    Tuples become lists. Anything but literals, lists and calls of dict is left out; text that is
    not Python gives an empty config.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values |= _flatten(statement.targets[0].id, statement.value)
    return values


def _flatten(name: str, node: ast.expr) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if isinstance(node, ast.Call):  # of dict
        for keyword in node.keywords:
            values |= _flatten(f"{name}.{keyword.arg}", keyword.value) if keyword.arg else {}
    elif isinstance(node, ast.List | ast.Tuple) and any(isinstance(x, ast.Call) for x in node.elts):
        for i, element in enumerate(node.elts):
            values |= _flatten(f"{name}.{i}", element)
    else:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, RecursionError):
            return {}
        values[name] = list(value) if isinstance(value, tuple) else value
    return values
