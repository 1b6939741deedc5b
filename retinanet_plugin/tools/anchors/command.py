r"""Measures how well anchors cover the boxes of a dataset, and searches for better ones.

    retinanet anchors --config-file configs/quickstart.yaml
    retinanet anchors --config-file configs/bccd_R18_FPN.yaml \
        DATASETS.OWN.ROOT /data/bccd MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE 4.0

Only annotations are read. Boxes are resized as training resizes images: to each size of
INPUT.MIN_SIZE_TRAIN, or to five sizes of a range; flips and crops are ignored. Tables are printed
and written to anchors.md, next to the figure anchors.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from ...command_line import (
    add_config_file,
    add_output,
    add_overrides,
    command_parser,
    dataset_names,
    parse,
)
from ...config import get_config
from ...data import check_registered_datasets, register_own_datasets
from ...engine.setup import check_names
from ...utils import output_files, write_figure, write_text
from .coverage import Anchors, measure, positive_threshold
from .dataset_boxes import read_boxes, training_scales
from .figure import draw
from .search import AnchorKeys, suggest
from .tables import CoverageReport


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet anchors``."""
    parser = command_parser("anchors", __doc__)
    add_config_file(parser)
    parser.add_argument(
        "--dataset",
        default="train",
        metavar="NAME",
        help="train or test, those of the config, or a registered dataset; default: train",
    )
    add_output(parser, "folder; default: OUTPUT_DIR/anchors")
    add_overrides(parser)
    return parser


def load_config(args: argparse.Namespace) -> CfgNode:
    """Returns the config, with the dataset to measure as DATASETS.TRAIN.

    Raises:
        UserError: for a mistake in the config or the dataset.
    """
    cfg = get_config(args.config_file, args.opts)
    check_names(cfg)
    cfg.MODEL.DEVICE = "cpu"
    register_own_datasets(cfg, training=args.dataset != "test")
    cfg.DATASETS.TRAIN = dataset_names(cfg, args.dataset)
    cfg.DATASETS.TEST = ()
    check_registered_datasets(cfg, num_classes=False)  # anchors do not depend on classes
    cfg.freeze()
    return cfg


def main(args: Sequence[str] | None = None) -> None:
    """Measures the coverage and writes the report."""
    parsed = parse(parser(), args)
    cfg = load_config(parsed)
    folder = parsed.output or Path(cfg.OUTPUT_DIR) / "anchors"
    names = ["anchors.md", "anchors.png"]
    table_file, figure_file = output_files(folder, names, overwrite=parsed.overwrite)
    positive = positive_threshold(cfg)
    data = read_boxes(cfg.DATASETS.TRAIN)
    scales, anchors, keys = training_scales(cfg), Anchors.of(cfg), AnchorKeys.of(cfg)
    thresholds = [float(t) for t in cfg.MODEL.RETINANET.IOU_THRESHOLDS]
    with tqdm(total=len(data) * len(scales), desc="measuring", unit="box") as bar:
        coverage = measure(data, anchors, scales, thresholds, positive, bar.update)
    suggestion = None if keys is None else suggest(coverage, keys)
    report = CoverageReport(coverage, keys, suggestion)
    write_figure(figure_file, draw(report))
    write_text(table_file, report.to_markdown())
    print(report.to_markdown())
    print(f"{figure_file}\n{table_file}")
