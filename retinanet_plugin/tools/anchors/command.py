r"""Which boxes of a data set have no anchor near them, and which anchors would fit better.

    python -m retinanet_plugin.tools.anchors.command --config-file configs/quickstart.yaml
    python -m retinanet_plugin.tools.anchors.command --config-file configs/bccd_R18_FPN.yaml \
        DATASETS.OWN.ROOT /data/bccd MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE 4.0

Reads annotations alone, and resizes boxes as training resizes pictures: to each size of
INPUT.MIN_SIZE_TRAIN, or to five along a range. Flips and crops are left out. Tables in Markdown
go to the standard output, anchor_coverage.png and .json (all numbers) into the folder. Words at
the end override keys of the config.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from ...command_line import chosen_datasets, looking_at_data
from ...config import get_config
from ...data import check_datasets, register_own_datasets
from ...data.dataset_boxes import read_boxes, training_scales
from ...data.own import FROM_DATA
from ...engine import import_code
from ...engine.setup import check_names
from ...errors import one_sentence
from ...evaluation.anchor_coverage import AnchorKeys, Anchors, measure, positive_threshold
from ...utils import output_files, write_figure, write_json
from .report import Findings, draw, markdown, report
from .search import describe_clusters, suggest


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return looking_at_data("anchor_coverage", __doc__, split="train")


def prepare(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """The configuration and the names of the data sets.

    Raises:
        UserError: for a mistake in either.
    """
    import_code(args.imports)
    cfg = get_config(args.config_file, args.opts)
    check_names(cfg)
    cfg.MODEL.DEVICE = "cpu"
    register_own_datasets(cfg, training=args.dataset != "test")
    cfg.DATASETS.TRAIN = chosen_datasets(cfg, args.dataset)
    cfg.DATASETS.TEST = ()
    cfg.MODEL.RETINANET.NUM_CLASSES = FROM_DATA  # whatever the config says: anchors have no class
    check_datasets(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    cfg.freeze()
    return cfg, list(cfg.DATASETS.TRAIN)


def main(words: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for."""
    args = parser().parse_intermixed_args(words)
    cfg, names = prepare(args)
    out = args.out or Path(cfg.OUTPUT_DIR) / "anchor_coverage"
    files = ["anchor_coverage.png", "anchor_coverage.json"]
    picture, numbers = output_files(out, files, overwrite=args.overwrite)
    positive = positive_threshold(cfg)
    data = read_boxes(names, lambda entries: tqdm(entries, desc="reading", unit="picture"))
    scales = training_scales(cfg)
    anchors, keys = Anchors.of(cfg), AnchorKeys.of(cfg)
    with tqdm(total=len(data) * len(scales), desc="measuring", unit="box") as bar:
        thresholds = [float(t) for t in cfg.MODEL.RETINANET.IOU_THRESHOLDS]
        found = measure(data, anchors, scales, thresholds, positive, bar.update)
    suggestion = None
    if keys is not None:
        bar_format = "{l_bar}{bar}| {elapsed}<{remaining}"
        with tqdm(total=1.0, desc="searching", bar_format=bar_format) as bar:
            suggestion = suggest(found, anchors, keys, bar.update)
            bar.update(bar.total - bar.n)
    findings = Findings(found, anchors, keys, describe_clusters(found), suggestion)
    write_figure(picture, draw(findings))
    write_json(numbers, {"config": args.config_file, "data_sets": names, **report(findings)})
    print(markdown(findings))
    print(f"{picture}\n{numbers}")


if __name__ == "__main__":
    with one_sentence():
        main()
