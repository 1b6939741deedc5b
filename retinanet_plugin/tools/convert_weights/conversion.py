"""Converts a file of weights into a folder: weights, what builds the model, and a record."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ...errors import UserError
from ...utils import atomic_writer, output_files, sha256, write_json, write_text
from . import detectron2_model, to_torchvision, torchvision_model
from .model import BOTTOM_UP, Keys, Model, NoRandomValues, Options, check_fit
from .reading import read_model

RECORD = "conversion.json"


def convert(
    file: Path,
    output: Path,
    *,
    to: str = "plugin",
    config: str | None = None,
    options: Options | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> str:
    """Converts weights, after checking that all of the model's weights are there.

    Args:
        file: the weights.
        output: the folder to write into.
        to: "plugin", "detectron2" or "torchvision".
        config: of weights with detectron2's names.
        overrides: of the model's config, key and value in turn; only keys in
            ``detectron2_model.GROUPS`` if ``to`` is another framework.

    Returns:
        a summary of several lines.

    Raises:
        UserError: if the weights cannot be read, or not be converted completely.
    """
    for key in overrides[::2]:
        if to != "plugin" and not key.startswith(detectron2_model.GROUPS):
            raise UserError(
                f"{key}: not used by --to {to}; give keys of MODEL, INPUT and TEST only."
            )
    model, cfg = read_model(file, config, options or Options(), overrides)
    if not model.is_detector and to != "plugin":
        raise UserError(f"--to: {file} is only a backbone, which can be converted to plugin.")
    try:
        _check_complete(model, cfg)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    weights = output / ("model.pth" if to == "torchvision" else "model_final.pth")
    result, others, usage = _translate(model, cfg, to, weights)
    keys = model.keys if result is model else model.keys.then(result.keys)
    paths = output_files(output, [weights.name, *others, RECORD], overwrite=overwrite)
    if any(path.exists() and path.samefile(file) for path in paths):
        raise UserError(f"--output: {output} holds {file.name} itself; name another folder.")
    record = {
        "file": file.name,
        "sha256": sha256(file),
        "source": model.source,
        "to": to,
        **_rows(keys, result.weights),
        "classes": model.classes,
        "settings": result.settings,
        "notes": result.notes,
    }
    checkpoint: dict[str, Any] = {"model": result.weights}
    if model.classes:
        checkpoint["classes"] = model.classes
    with atomic_writer(weights) as opened:
        torch.save(result.weights if to == "torchvision" else checkpoint, opened)
    for name, content in {**others, RECORD: record}.items():
        write = write_text if isinstance(content, str) else write_json
        write(output / name, content)
    notes = [f"- {note}" for note in result.notes]
    header = f"{file}: {model.source}"
    return "\n".join([header, *_summary(keys), *notes, *map(str, paths), usage])


def _check_complete(model: Model, cfg: CfgNode) -> None:
    """Raises a UserError unless the weights are exactly those of the config's model."""
    with NoRandomValues():
        built = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    expected: dict[str, Tensor] = built.state_dict()
    if not model.is_detector:
        parameters = [name for name, _ in built.named_parameters()]
        model.keys.missing = [name for name in parameters if not name.startswith(BOTTOM_UP)]
        expected = {name: x for name, x in expected.items() if name.startswith(BOTTOM_UP)}
    check_fit(model.weights, expected, "the RetinaNet" if model.is_detector else "the backbone")


def _translate(
    model: Model, cfg: CfgNode, to: str, weights: Path
) -> tuple[Model, dict[str, Any], str]:
    """Returns the model in the target's format, texts or JSON by file name, and the next step."""
    if to == "torchvision":
        result = to_torchvision.convert(model, cfg)
        script = Path(torchvision_model.__file__).read_text(encoding="utf-8")
        usage = f"python {weights.with_name('model.py')} IMAGE, or from model import build"
        others = {"model.json": result.settings, "model.py": script}
        return result, others, f"in torchvision: {usage}"
    config, location = weights.with_name("config.yaml"), {"MODEL.WEIGHTS": str(weights.resolve())}
    if to == "detectron2":
        result = detectron2_model.convert(model, cfg)
        text = _yaml({**result.settings, **location})
        usage = f"in detectron2: cfg = get_cfg(); cfg.merge_from_file('{config}')"
        return result, {config.name: text}, usage
    usage = f"detect objects: retinanet demo --weights {weights} --input IMAGES --output FOLDER"
    if not model.is_detector:
        usage = f"train from it: retinanet train --config-file {config}"
    if model.settings:
        text = _yaml({**model.settings, **location})
        text = f'# {model.source}.\n_BASE_: "Base-RetinaNet.yaml"\n{text}'
    else:
        cfg = cfg.clone()
        cfg.MODEL.WEIGHTS = location["MODEL.WEIGHTS"]
        text = cfg.dump()
    return model, {config.name: text}, usage


class _Dumper(yaml.SafeDumper):
    """Writes each list on one line."""


for _type in (list, tuple):
    _Dumper.add_representer(
        _type, lambda dumper, x: dumper.represent_sequence("tag:yaml.org,2002:seq", x, True)
    )


def _yaml(settings: Mapping[str, Any]) -> str:
    """Returns ``A: {B: 1}``, in YAML's block style, for ``{"A.B": 1}``."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False)


def _summary(keys: Keys) -> list[str]:
    """Counts the weights that were used, made, left to training or left out, with the reasons."""
    lines = [f"used: {len(keys.used)}"]
    for what, reasons in (("made", keys.made), ("unused", keys.unused)):
        lines += [f"{what}: {n} ({reason})" for reason, n in Counter(reasons.values()).items()]
    if keys.missing:
        lines.append(f"missing: {len(keys.missing)} (left to training)")
    return lines


def _rows(keys: Keys, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    return {
        "used": [{"from": old, "to": x, "shape": shapes[x]} for x, old in keys.used.items()],
        "made": [{"to": x, "value": value, "shape": shapes[x]} for x, value in keys.made.items()],
        "missing": keys.missing,
        "unused": [{"from": key, "reason": reason} for key, reason in keys.unused.items()],
    }
