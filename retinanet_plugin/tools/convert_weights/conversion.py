"""Converts a file of weights into a folder: weights, what builds the model, and a record."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ...errors import UserError
from ...model_card import card_path
from ...utils import atomic_writer, output_files, sha256, write_json, write_text
from . import to_detectron2, to_torchvision, torchvision_model
from .card import model_card
from .model import BOTTOM_UP, Keys, Model, NoRandomValues, Options, check_fit, nested
from .reading import read_model

RECORD = "conversion.json"


@dataclass
class Converted:
    """What is written besides the record and the model card.

    Args:
        model: with the record of the second conversion, if there was one.
        checkpoint: the content of the file of weights.
        others: file name -> text, or what becomes JSON.
        usage: a command or code for the next step.
    """

    model: Model
    checkpoint: Mapping[str, Any]
    others: dict[str, Any]
    usage: str


def convert(
    file: Path,
    output: Path,
    *,
    to: str = "plugin",
    config: str | None = None,
    options: Options | None = None,
    overwrite: bool = False,
) -> str:
    """Converts weights, after checking that all of the model's weights are there.

    Args:
        file: the weights.
        output: the folder to write into.
        to: "plugin", "detectron2" or "torchvision".
        config: of weights with detectron2's names.

    Returns:
        a summary of several lines.

    Raises:
        UserError: if the weights cannot be read, or not be converted completely.
    """
    model, cfg = read_model(file, config, options or Options())
    if not model.is_detector and to != "plugin":
        raise UserError(f"--to: {file} is only a backbone, which can be converted to plugin.")
    try:
        _check_complete(model, cfg)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    weights = output / ("model.pth" if to == "torchvision" else "model_final.pth")
    result = _TARGETS[to](model, cfg, weights)
    names = [weights.name, *result.others, RECORD, card_path(weights).name]
    paths = output_files(output, names, overwrite=overwrite)
    if any(path.exists() and path.samefile(file) for path in paths):
        raise UserError(f"--output: {output} holds {file.name} itself; name another folder.")
    keys = model.keys if to == "plugin" else model.keys.then(result.model.keys)
    digest = sha256(file)
    with atomic_writer(weights) as opened:
        torch.save(dict(result.checkpoint), opened)
    for name, content in result.others.items():
        write = write_text if isinstance(content, str) else write_json
        write(output / name, content)
    write_json(output / RECORD, _record(file, digest, to, model, result.model, keys))
    model.notes = result.model.notes
    write_text(paths[-1], model_card(paths, file, digest, to, model, cfg, keys))
    notes = [f"- {note}" for note in model.notes]
    return "\n".join(
        [f"{file}: {model.source}", summary(keys), *notes, *map(str, paths), result.usage]
    )


def summary(keys: Keys) -> str:
    """Counts the weights that were used, made, left to training or left out, with the reasons."""
    lines = [f"used: {len(keys.used)}"]
    for what, reasons in (("made", keys.made), ("unused", keys.unused)):
        lines += [f"{what}: {n} ({reason})" for reason, n in Counter(reasons.values()).items()]
    if keys.missing:
        lines.append(f"missing: {len(keys.missing)} (left to training)")
    return "\n".join(lines)


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


def _to_plugin(model: Model, cfg: CfgNode, path: Path) -> Converted:
    whole = cfg.clone()
    whole.MODEL.WEIGHTS = str(path.resolve())
    text = whole.dump()
    if model.settings:
        settings = {**model.settings, "MODEL.WEIGHTS": whole.MODEL.WEIGHTS}
        text = f'# {model.source}.\n_BASE_: "Base-RetinaNet.yaml"\n{_yaml(nested(settings))}'
    config = path.with_name("config.yaml")
    usage = f"detect objects: retinanet demo --weights {path} --input IMAGES --output FOLDER"
    if not model.is_detector:
        usage = f"train from it: retinanet train --config-file {config}"
    return Converted(model, _checkpoint(model), {config.name: text}, usage)


def _to_detectron2(model: Model, cfg: CfgNode, path: Path) -> Converted:
    converted, values = to_detectron2.convert(model, cfg)
    text = _yaml(nested({**values, "MODEL.WEIGHTS": str(path.resolve())}))
    config = path.with_name("config.yaml")
    usage = f"in detectron2: cfg = get_cfg(); cfg.merge_from_file('{config}')"
    return Converted(converted, _checkpoint(converted), {config.name: text}, usage)


def _to_torchvision(model: Model, cfg: CfgNode, path: Path) -> Converted:
    converted, settings = to_torchvision.convert(model, cfg)
    script = Path(torchvision_model.__file__).read_text(encoding="utf-8")
    usage = f"in torchvision: python {path.with_name('model.py')} IMAGE, or from model import build"
    if name := to_torchvision.factory(settings):
        usage += (
            f"; torchvision.models.detection.{name}(weights=None, weights_backbone=None, "
            f"num_classes={settings['num_classes']}) can load the weights too"
        )
    others = {"model.json": settings, "model.py": script}
    return Converted(converted, converted.weights, others, usage)


_TARGETS = {
    "plugin": _to_plugin,
    "detectron2": _to_detectron2,
    "torchvision": _to_torchvision,
}


def _checkpoint(model: Model) -> dict[str, Any]:
    return {"model": model.weights, **({"classes": model.classes} if model.classes else {})}


class _Dumper(yaml.SafeDumper):
    """Writes each list on one line."""


for _type in (list, tuple):
    _Dumper.add_representer(
        _type, lambda dumper, x: dumper.represent_sequence("tag:yaml.org,2002:seq", x, True)
    )


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, default_flow_style=False)


def _record(
    file: Path, digest: str, to: str, model: Model, result: Model, keys: Keys
) -> dict[str, Any]:
    def shape(name: str) -> list[int]:
        return list(result.weights[name].shape)

    return {
        "file": file.name,
        "sha256": digest,
        "source": model.source,
        "to": to,
        "used": [{"from": old, "to": new, "shape": shape(new)} for new, old in keys.used.items()],
        "made": [{"to": x, "value": what, "shape": shape(x)} for x, what in keys.made.items()],
        "missing": keys.missing,
        "unused": [{"from": key, "reason": why} for key, why in keys.unused.items()],
        "classes": model.classes,
        "settings": result.settings,
        "notes": result.notes,
    }
