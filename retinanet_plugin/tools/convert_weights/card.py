"""The model card of converted weights."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ...model_card import about, accuracy_table, metrics_of, origin, plain, table, versions
from ...utils import sha256
from .model import Keys, Model


def model_card(
    paths: Sequence[Path], file: Path, digest: str, to: str, model: Model, cfg: CfgNode, keys: Keys
) -> str:
    """Returns the card of the weights at ``paths[0]``.

    Args:
        paths: the files written; the second is the config, or what stands for one.
        file: the original weights.
        digest: the SHA-256 of ``file``, taken before anything was written.
        to: "plugin", "detectron2" or "torchvision".
        cfg: the model's config.
        keys: the record of the conversion.
    """
    weights, config = paths[:2]
    parts = [f"# {plain(weights.name)}", table(("", ""), _rows(file, config, to, model, cfg))]
    if model.is_detector:
        command = f"retinanet evaluate --weights {plain(weights.name)}"
        if to != "plugin":
            convert = f"retinanet convert-weights --weights {plain(file.name)} --output here"
            command = f"{convert} && retinanet evaluate --weights here/model_final.pth"
        has_own_config = not model.settings
        metrics = metrics_of(file, cfg) if has_own_config else None
        columns = {f"{plain(file.name)}, when it was trained": metrics} if metrics else {}
        parts += ["## Accuracy and speed", accuracy_table(columns, cfg)]
        parts.append(f"`{command}` measures AP and milliseconds per image.")
    missing = f"; {len(keys.missing)} more are left to training" if keys.missing else ""
    checked = (
        f"All {len(keys.used) + len(keys.made)} weights have the right shape and finite values: "
        f"{len(keys.used)} are from the original, {len(keys.made)} were made{missing}. "
        f"{len(keys.unused)} keys of the original are not used. `conversion.json` lists them all. "
        "Detections were not compared for this file; tests compare them for random weights."
    )
    parts += ["## Checked", checked, "\n".join(f"- {plain(note)}" for note in model.notes)]
    hashes = {
        "this file": sha256(weights),
        plain(config.name): sha256(config),
        f"the original, {plain(file.name)}": digest,
    }
    return "\n\n".join(filter(None, [*parts, *origin(hashes, versions())])) + "\n"


def _rows(file: Path, config: Path, to: str, model: Model, cfg: CfgNode) -> dict[str, str]:
    names = model.classes or [f"class {i}" for i in range(cfg.MODEL.RETINANET.NUM_CLASSES)]
    rows = about(cfg, names)
    if model.settings:
        rows |= dict.fromkeys(("trained on", "evaluated on"), "unknown")
    if not model.is_detector:
        architecture = f"only the backbone of {rows['architecture']}, to train from"
        rows = {"architecture": architecture, "trained on": rows["trained on"]}
    source = {"converted from": f"{file.name}, {model.source}", "for": to, "config": config.name}
    return {**source, **rows}
