"""The config that mmdetection writes into its files: Python, of which only the values are read."""

import ast
from typing import Any


def read_config(text: str) -> dict[str, Any]:
    """``{"model.backbone.depth": 50}`` of ``model = dict(backbone=dict(depth=50))``.

    Tuples become lists. Nothing is run: what is no number, text or list of these is left out, as is
    all of a text that is not Python.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values |= _values(statement.targets[0].id, statement.value)
    return values


def _values(name: str, node: ast.expr) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(node, ast.Call):  # of dict
        for keyword in node.keywords:
            found |= _values(f"{name}.{keyword.arg}", keyword.value) if keyword.arg else {}
    elif isinstance(node, ast.List | ast.Tuple) and any(isinstance(x, ast.Call) for x in node.elts):
        for i, inner in enumerate(node.elts):
            found |= _values(f"{name}.{i}", inner)
    else:
        try:
            value = ast.literal_eval(node)
            found[name] = list(value) if isinstance(value, tuple) else value
        except (ValueError, TypeError, RecursionError):
            return {}
    return found
