"""From a file to a folder: weights, a config or what stands for one, and the report of each key."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ...engine.atomic_io import sha256, written_whole
from ...errors import UserError
from ...model_card import card_path
from ...utils import output_files, write_json, write_text
from . import rows, to_detectron2, to_torchvision, torchvision_model
from .card import model_card
from .model import BOTTOM_UP, Keys, Model, NoRandomValues, Options, check_fit, settings_yaml
from .reading import read_model

REPORT = "conversion.json"
_FILES = {
    "plugin": ("model_final.pth", "config.yaml"),
    "detectron2": ("model_final.pth", "config.yaml"),
    "torchvision": ("model.pth", "model.json", "model.py"),
}


def convert(
    file: Path,
    out: Path,
    *,
    to: str = "plugin",
    config: str | None = None,
    options: Options | None = None,
    overwrite: bool = False,
) -> str:
    """Converts, checks that every weight has found its place, and writes.

    Args:
        file: weights.
        out: folder; it gets weights, what builds the model, ``conversion.json``, and a model card.
        to: "plugin", "detectron2" or "torchvision".
        config: of weights with this plugin's names.

    Returns:
        what was done, in lines.

    Raises:
        UserError: for what cannot be read, is not wholly known or cannot be expressed there.
    """
    model, cfg = read_model(file, config, options or Options())
    if model.classes is None and _is_coco(cfg):
        model.classes = list(rows.COCO_CLASSES)
    if not model.is_detector and to != "plugin":
        raise UserError(f"--to {to}: {file} is a backbone alone, which is for training here.")
    try:
        _check(model, cfg)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    result, described = model, dict[str, Any]()
    if to == "detectron2":
        result, described = to_detectron2.convert(model, cfg)
    elif to == "torchvision":
        result, described = to_torchvision.convert(model, cfg)
    names = [*_FILES[to], REPORT]
    paths = output_files(
        out, [*names, card_path(Path(names[0])).name], overwrite=overwrite, option="OUT"
    )
    if any(path.exists() and path.samefile(file) for path in paths):
        raise UserError(f"OUT: {out} holds FILE, which would be replaced; give another folder.")
    keys = model.keys if to == "plugin" else model.keys.then(result.keys)
    digest = sha256(file)
    if to == "plugin":
        said = _write_ours(model, cfg, paths)
    elif to == "detectron2":
        said = _write_detectron2(result, described, paths)
    else:
        said = _write_torchvision(result, described, paths)
    write_json(paths[-2], _report(file, digest, to, model, result, keys))
    model.notes = result.notes
    write_text(paths[-1], model_card(paths, file, digest, to, model, cfg, keys))
    lines = [f"{file}: {model.kind}", table(keys), *(f"- {note}" for note in result.notes)]
    return "\n".join([*lines, *map(str, paths), said])


def table(keys: Keys) -> str:
    """How many weights of each part were used, made or left to training, and what was left out."""
    kinds = {"used": keys.used, "made": keys.made, "missing": keys.initialised}
    lines = [f"{'part':10}" + "".join(f"{kind:>9}" for kind in kinds)]
    for part in ("backbone", "pyramid", "head", "other"):
        counts = [sum(_part(name) == part for name in names) for names in kinds.values()]
        lines += [f"{part:10}" + "".join(f"{x:9}" for x in counts)] if any(counts) else []
    lines.append(f"{'all':10}" + "".join(f"{len(names):9}" for names in kinds.values()))
    made, unused = Counter(keys.made.values()), Counter(keys.unused.values())
    lines += [f"made: {number} ({what})" for what, number in made.items()]
    lines += [f"unused: {number} ({why})" for why, number in unused.items()] or ["unused: 0"]
    return "\n".join(lines)


def _part(name: str) -> str:
    if name.startswith((BOTTOM_UP, "backbone.body.")):
        return "backbone"
    return {"backbone": "pyramid", "head": "head"}.get(name.split(".")[0], "other")


def _is_coco(cfg: CfgNode) -> bool:
    sets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    is_coco = bool(sets) and all(name.startswith("coco_") for name in sets)
    return is_coco and cfg.MODEL.RETINANET.NUM_CLASSES == len(rows.COCO_CLASSES)


def _check(model: Model, cfg: CfgNode) -> None:
    """Every weight of the model has a value of its shape, and no value is left over."""
    with NoRandomValues():
        built: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    shapes: Mapping[str, Tensor] = built.state_dict()
    if not model.is_detector:
        parameters = [name for name, _ in built.named_parameters()]
        model.keys.initialised = [x for x in parameters if not x.startswith(BOTTOM_UP)]
        shapes = {name: x for name, x in shapes.items() if name.startswith(BOTTOM_UP)}
    check_fit(model.weights, shapes, "the RetinaNet" if model.is_detector else "its backbone")


def _write_ours(model: Model, cfg: CfgNode, paths: list[Path]) -> str:
    weights, config = paths[:2]
    _save(weights, {"model": model.weights, **_classes(model)})
    if model.settings:
        settings = {**model.settings, "MODEL.WEIGHTS": str(weights.resolve())}
        text = _yaml(settings_yaml(settings))
        write_text(config, f'# {model.kind}.\n_BASE_: "Base-RetinaNet.yaml"\n{text}')
    else:
        whole = cfg.clone()
        whole.MODEL.WEIGHTS = str(weights.resolve())
        write_text(config, whole.dump())
    if not model.is_detector:
        return f"train on it: python train_net.py --config-file {config}"
    return (
        f"detect: python -m retinanet_plugin.tools.demo.command --weights {weights} --input PICTURES "
        "--output FOLDER"
    )


def _write_detectron2(model: Model, values: dict[str, Any], paths: list[Path]) -> str:
    weights, config = paths[:2]
    values["MODEL"]["WEIGHTS"] = str(weights.resolve())
    _save(weights, {"model": model.weights, **_classes(model)})
    write_text(config, f"# {model.kind}, for detectron2 alone.\n{_yaml(values)}")
    return f"detectron2: cfg = get_cfg(); cfg.merge_from_file('{config}')"


def _write_torchvision(model: Model, settings: dict[str, Any], paths: list[Path]) -> str:
    weights, described, script = paths[:3]
    _save(weights, model.weights)
    write_json(described, settings)
    write_text(script, Path(torchvision_model.__file__).read_text(encoding="utf-8"))
    said = f"torchvision: python {script} PICTURE, or from model import build"
    if name := to_torchvision.factory(settings):
        said += (
            f"; the weights fit torchvision.models.detection.{name}(weights=None, "
            f"weights_backbone=None, num_classes={settings['num_classes']}) too"
        )
    return said


def _save(path: Path, content: Mapping[str, Any]) -> None:
    with written_whole(path) as file:
        torch.save(dict(content), file)


def _classes(model: Model) -> dict[str, list[str]]:
    return {"classes": model.classes} if model.classes else {}


def _yaml(content: Mapping[str, Any], indent: str = "") -> str:
    """Groups in blocks, and each value in a line, as JSON, which YAML contains."""
    lines = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}:\n{_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {json.dumps(value)}\n")
    return "".join(lines)


def _report(
    file: Path, digest: str, to: str, model: Model, result: Model, keys: Keys
) -> dict[str, Any]:
    def shape(name: str) -> list[int]:
        return list(result.weights[name].shape)

    return {
        "file": file.name,
        "sha256": digest,
        "kind": model.kind,
        "to": to,
        "counts": {
            "used": len(keys.used),
            "made": len(keys.made),
            "missing": len(keys.initialised),
            "unused": len(keys.unused),
        },
        "used": [{"from": old, "to": new, "shape": shape(new)} for new, old in keys.used.items()],
        "made": [{"to": x, "is": what, "shape": shape(x)} for x, what in keys.made.items()],
        "missing": keys.initialised,
        "unused": [{"from": key, "because": why} for key, why in keys.unused.items()],
        "classes": model.classes,
        "settings": result.settings,
        "notes": result.notes,
    }
