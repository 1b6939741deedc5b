"""A finished run of a small network with random weights, for tests of what uses one."""

from pathlib import Path

import torch
from coco_sets import write_set
from conftest import small_config, spread_logits
from detectron2.config import CfgNode

from retinanet_plugin.engine import SafeCheckpointer, Trainer

CLASSES = ["cat", "dög"]  # of ids 2 and 7


def write_run(folder: Path) -> CfgNode:
    """Writes a small dataset, and config.yaml and model_final.pth in ``folder/out``.

    Scores go up to about 0.5, no two alike.
    """
    write_set(folder)
    cfg, model = network_on(folder, "MODEL.RETINANET.NUM_CLASSES", len(CLASSES))
    with torch.no_grad():
        model.head.cls_score.weight *= 0.1
    save(cfg, model, CLASSES)
    cfg.MODEL.WEIGHTS = str(folder / "out" / "model_final.pth")
    return cfg


def network_on(folder: Path, *overrides: object) -> tuple[CfgNode, torch.nn.Module]:
    """Returns a config for the dataset in ``folder``, and the same random network each time.

    Its logits are spread out like a trained one's.
    """
    torch.manual_seed(0)
    cfg = small_config(
        *("DATASETS.OWN.ROOT", folder, "DATASETS.OWN.TEST_JSON", "train.json"),
        *("DATASETS.OWN.TEST_IMAGES", "images", "OUTPUT_DIR", folder / "out"),
        *("INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0, "TEST.DRAW_IMAGES", 0),
        *overrides,
    )
    model = Trainer.build_model(cfg)
    spread_logits(model)
    return cfg, model


def save(cfg: CfgNode, model: torch.nn.Module, classes: list[str]) -> None:
    """Creates ``OUTPUT_DIR`` with what training leaves there."""
    out = Path(cfg.OUTPUT_DIR)
    out.mkdir()
    SafeCheckpointer(model, str(out), classes=classes).save("model_final")
    (out / "config.yaml").write_text(cfg.dump())
