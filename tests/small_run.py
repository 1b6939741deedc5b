"""What training leaves behind, of a small network with random weights, for tests that use it."""

from pathlib import Path

import torch
from coco_sets import write_set
from conftest import small_config, spread_logits
from detectron2.config import CfgNode

from retinanet_plugin.engine import SafeCheckpointer, Trainer

CLASSES = ["cat", "dög"]  # of ids 2 and 7


def write_run(folder: Path) -> CfgNode:
    """A small set, and ``folder/out`` with a config.yaml and a model_final.pth; its configuration.

    Scores go up to about 0.5, no two alike.
    """
    write_set(folder)
    out = folder / "out"
    out.mkdir()
    torch.manual_seed(0)
    cfg = small_config(
        *("DATASETS.OWN.ROOT", folder, "DATASETS.OWN.TEST_JSON", "train.json"),
        *("DATASETS.OWN.TEST_IMAGES", "images", "OUTPUT_DIR", out),
        *("INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0, "TEST.DRAW_PICTURES", 0),
        *("MODEL.RETINANET.NUM_CLASSES", 2),
    )
    model = Trainer.build_model(cfg)
    spread_logits(model)
    with torch.no_grad():
        model.head.cls_score.weight *= 0.1
    SafeCheckpointer(model, str(out), classes=CLASSES).save("model_final")
    (out / "config.yaml").write_text(cfg.dump())
    cfg.MODEL.WEIGHTS = str(out / "model_final.pth")
    return cfg
