"""Everything that the result of a run depends on, and its digest."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY

from retinanet_plugin.modeling import CLS_LOSS_REGISTRY, DENSE_HEAD_REGISTRY

# What a result does not depend on.
_IRRELEVANT = (
    *("OUTPUT_DIR", "VERSION", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "TEST.DRAW_PICTURES"),
    *("SOLVER.CHECKPOINT_PERIOD", "VIS_PERIOD", "MODEL.ACCELERATION.KEEP_FREED_MEMORY"),
    *("MODEL.RETINANET.LOG_LOSS_SHARES", "TEST.LOSS", "TEST.REPORT"),
)


def settings_of(cfg: CfgNode, code: Sequence[ModuleType]) -> dict[str, Any]:
    """The configuration, and the person's own code where it is used."""
    irrelevant = list(_IRRELEVANT)
    if not (cfg.SOLVER.EARLY_STOPPING.PATIENCE or cfg.TEST.PRECISE_BN.ENABLED):
        irrelevant += ["TEST.EVAL_PERIOD", "TEST.BEST_METRIC"]  # training goes on as without
    settings = {k: v for k, v in leaves(cfg) if k not in irrelevant}
    for module in code:
        file = Path(module.__file__ or "")
        if file.is_file():
            packages = module.__name__.split(".")[: None if hasattr(module, "__path__") else -1]
            name = "/".join([*packages, file.name])
            settings[f"--import {name}"] = digest_of(file.read_bytes())
    return dict(json.loads(json.dumps(settings)))


def digest_of(content: bytes) -> str:
    """Sixteen digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def uses(cfg: CfgNode, code: Sequence[ModuleType]) -> bool:
    """Whether anything that the configuration names is registered by ``code``."""
    named = (
        (META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE),
        (BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME),
        (ANCHOR_GENERATOR_REGISTRY, cfg.MODEL.ANCHOR_GENERATOR.NAME),
        (DENSE_HEAD_REGISTRY, cfg.MODEL.RETINANET.HEAD_NAME),
        (CLS_LOSS_REGISTRY, cfg.MODEL.RETINANET.CLS_LOSS),
    )
    packages = tuple(f"{module.__name__}." for module in code)
    return any(
        name in registry and f"{registry.get(name).__module__}.".startswith(packages)
        for registry, name in named
    )


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The full name and value of each key of nested mappings."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
