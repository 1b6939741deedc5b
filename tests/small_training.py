"""``retinanet train`` on a handful of images, run in the process of the test."""

import json
import logging
from pathlib import Path

from coco_sets import forget_new_sets
from detectron2.utils.logger import setup_logger

from retinanet_plugin.cli import main

OWN = [
    *("DATASETS.OWN.ROOT", "data", "DATASETS.OWN.TRAIN_JSON", "annotations/train.json"),
    *("DATASETS.OWN.TRAIN_IMAGES", "train", "DATASETS.OWN.TEST_JSON", "annotations/test.json"),
    *("DATASETS.OWN.TEST_IMAGES", "test"),
]
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.DEVICE", "cpu"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_BATCH_SIZE", "0", "SOLVER.MAX_ITER", "3"),
    *("SOLVER.STEPS", "()", "TEST.REPORT", "False", "TEST.DRAW_IMAGES", "0"),
    *OWN,
]


def train(*args: object, config: str = "Base-Scratch-R18.yaml") -> int:
    """Returns the exit status."""
    try:
        with forget_new_sets():
            main(["train", "--config-file", config, *map(str, args)])
    except SystemExit as end:
        return int(end.code or 0)
    finally:  # the handlers hold this test's stdout and files
        for name in ("detectron2", "fvcore", "retinanet_plugin"):
            logging.getLogger(name).handlers.clear()
        setup_logger.cache_clear()
    raise AssertionError("main() exits")


def metrics(folder: str | Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(folder, "metrics.json").read_text().splitlines()]


def detections(folder: str | Path) -> list[dict[str, object]]:
    return json.loads(Path(folder, "inference/coco_instances_results.json").read_text())
