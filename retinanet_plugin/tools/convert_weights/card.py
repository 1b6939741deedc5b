"""The model card of converted weights: what is known of them, and what measures the rest."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ...engine.atomic_io import sha256
from ...model_card import about, accuracy_table, metrics_of, origin, plain, table
from ..export.exporting import versions
from .model import Keys, Model

_FOR = {
    "plugin": "retinanet_plugin",
    "detectron2": "detectron2 alone",
    "torchvision": "torch and torchvision alone",
}


def model_card(
    paths: Sequence[Path], file: Path, digest: str, to: str, model: Model, cfg: CfgNode, keys: Keys
) -> str:
    """The card of the weights at ``paths[0]``.

    Args:
        paths: weights, and the config or what stands for one, as they were written.
        file: that they were made of.
        digest: its SHA-256, before anything was written.
        to: whom they are for: "plugin", "detectron2" or "torchvision".
        model: as it was read, with all that is to be said about it.
        cfg: its config.
        keys: where each weight comes from.
    """
    weights, config = paths[:2]
    own = not model.settings  # its config is that of its training, and not one made from the file
    parts = [
        f"# {plain(weights.name)}",
        table(("", ""), _rows(file, config, to, model, cfg)),
    ]
    if model.is_detector:
        measures = f"Not measured; `{_command(weights, file, to)}` measures it."
        metrics = metrics_of(file, cfg) if own else None
        columns = {f"{plain(file.name)}, when it was trained": metrics} if metrics else {}
        parts += ["## Accuracy", accuracy_table(columns, cfg) or measures, "## Speed", measures]
    parts += ["## Checked", _checked(keys)]
    if model.notes:
        parts.append("\n".join(f"- {plain(note)}" for note in model.notes))
    hashes = {
        "this file": sha256(weights),
        plain(config.name): sha256(config),
        f"made of {plain(file.name)}": digest,
    }
    return "\n\n".join([*parts, *origin(hashes, versions())]) + "\n"


def _rows(file: Path, config: Path, to: str, model: Model, cfg: CfgNode) -> dict[str, str]:
    names = model.classes or [f"class {i}" for i in range(cfg.MODEL.RETINANET.NUM_CLASSES)]
    rows = about(cfg, names)
    if model.settings:
        rows |= dict.fromkeys(("trained on", "evaluated on"), "not told by the file")
    if not model.is_detector:
        rows = {
            "architecture": f"the backbone alone of {rows['architecture']}, which training begins "
            "from",
            "trained on": rows["trained on"],
        }
    made_of = {"made of": f"{file.name}, {model.kind}", "for": _FOR[to], "config": config.name}
    return {**made_of, **rows}


def _command(weights: Path, file: Path, to: str) -> str:
    """What measures AP and speed: by the same model here, if the weights are not for it."""
    evaluate = "python -m retinanet_plugin.tools.evaluate.command --model"
    if to == "plugin":
        return f"{evaluate} {plain(weights.name)}"
    convert = f"python -m retinanet_plugin.tools.convert_weights.command {plain(file.name)} here"
    return f"{convert} && {evaluate} here/model_final.pth"


def _checked(keys: Keys) -> str:
    taken, made, left_out = len(keys.used), len(keys.made), len(keys.unused)
    text = f"Each of the {taken + made} weights has its value and shape, and all are finite numbers"
    text += f": {taken} were taken from the file" + (f", {made} made" if made else "")
    if keys.initialised:
        text += f"; {len(keys.initialised)} more are left to training"
    return (
        f"{text}. {left_out} keys of the file were left out. `conversion.json` names each. That "
        "such conversions detect the same is tested with random weights; with these it was not "
        "measured."
    )
