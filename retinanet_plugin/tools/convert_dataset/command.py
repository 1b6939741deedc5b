"""Converts COCO JSON, Pascal VOC, YOLO or CSV to COCO JSON and a config that trains on it.

    retinanet convert-dataset /data/cars --output cars
    retinanet convert-dataset boxes.csv --output cars --classes classes.csv --val 0.1
    retinanet convert-dataset VOC2007 --output voc --format voc --fix SOLVER.MAX_ITER 5000

INPUT is a folder, a COCO JSON, a data.yaml, a CSV or an XML; docs/data-formats.md shows the
layouts. The output folder gets train.json, val.json (test.json if the dataset has one) and
config.yaml. An existing split is kept; otherwise images are split so that classes keep their
shares. Images stay where they are. Overrides at the end are added to config.yaml.
"""

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...command_line import add_output, add_overrides, at_least, command_parser, parse
from ...config import find_config, get_config
from ...config_file import shipped_configs
from ...errors import UserError, printable
from ...utils import markdown_table, output_files, write_text
from .files import SPLITS, absolute
from .formats import FORMATS, format_of, read_dataset
from .labeled import LabeledDataset
from .split import new_split
from .training_config import overridden, training_config


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet convert-dataset``."""
    parser = command_parser("convert-dataset", __doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="the dataset")
    add_output(parser, "folder to write to", required=True)
    parser.add_argument("--format", choices=FORMATS, help="dataset format; default: detected")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder that the dataset's image paths are relative to; default: detected",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="classes in order: one name per line, a .csv of name,index, or a .yaml with names",
    )
    parser.add_argument(
        "--val",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of images to validate on; default: 0.2",
    )
    parser.add_argument("--seed", type=at_least(0), default=1, help="seed of the split; default: 1")
    parser.add_argument("--resplit", action="store_true", help="replace an existing split")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="takes no value: clip boxes to their image, remove empty boxes, leave out missing or "
        "unreadable images, and count them",
    )
    parser.add_argument(
        "--zero-based", action="store_true", help="pixels in the VOC files count from 0, not 1"
    )
    parser.add_argument(
        "--base",
        default="Base-Scratch-R18.yaml",
        metavar="CONFIG",
        help="config to build on; default: Base-Scratch-R18.yaml, random weights",
    )
    add_overrides(parser)
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Converts the dataset that the command line names."""
    parsed = parse(parser(), args)
    if not 0 <= parsed.val < 1:
        raise UserError(f"--val {parsed.val}: give a share of the images from 0 to below 1.")
    source, folder = absolute(parsed.input), absolute(parsed.output)
    base = get_config(parsed.base)
    overrides = overridden(get_config(parsed.base, parsed.opts), parsed.opts)
    format = parsed.format or format_of(source)
    names = ["config.yaml", *(f"{split}.json" for split in SPLITS)]
    config, *jsons = output_files(folder, names, overwrite=parsed.overwrite)
    print(f"format: {format}")
    dataset = read_dataset(
        source,
        format,
        images=parsed.images,
        classes=parsed.classes,
        fix=parsed.fix,
        zero_based=parsed.zero_based,
    )
    for note in dataset.notes:
        _print_note(note)
    splits = choose_splits(dataset, parsed.val, parsed.seed, resplit=parsed.resplit)
    parts = {split: dataset.subset(ids, split) for split, ids in splits.items()}
    for split, content in parts.items():
        if not content["images"] or (split == "train" and not content["annotations"]):
            missing = "boxes" if content["images"] else "images"
            raise UserError(f"{split}: no {missing}; give --resplit, or another --val.")
    written = [file for file in jsons if file.stem in parts]
    for file in written:
        write_text(file, json.dumps(parts[file.stem]))
    name = _base_name(parsed.base, folder)
    write_text(config, training_config(parts, folder, dataset.images, name, base, overrides))
    print(split_table(parts))
    print(*written, config, f"images: {dataset.images}", "next:", sep="\n")
    for command in ("check-dataset", "anchors", "train"):
        print(f"  retinanet {command} --config-file {shlex.quote(str(config))}")


def _print_note(note: str) -> None:
    print(f"note: {printable(note)}", file=sys.stderr)


def choose_splits(
    dataset: LabeledDataset, share: float, seed: int, *, resplit: bool
) -> dict[str, list[int]]:
    """Returns the image ids of the dataset's own splits, or else of a new split."""
    splits = dataset.splits
    if resplit or "train" not in splits or len(splits) < 2:
        print(f"split: new, seed {seed}, {share:.0%} of the images to validate on")
        return new_split(dataset.content, share, seed)
    print(f"split: the dataset's own ({', '.join(splits)}); --resplit makes a new one")
    distinct = len(set().union(*splits.values()))
    unused = len(dataset.content["images"]) - distinct
    repeated = sum(map(len, splits.values())) - distinct
    if unused:
        _print_note(f"{unused} images are in no split and left out")
    if repeated:
        _print_note(f"{repeated} images are in several splits, so AP will be too high")
    return splits


def _base_name(base: str, folder: Path) -> str:
    """Returns how a config in ``folder`` names its base: a shipped one, or a relative path."""
    path, shipped = find_config(base).resolve(), shipped_configs().resolve()
    if path.is_relative_to(shipped):
        return path.relative_to(shipped).as_posix()
    return Path(os.path.relpath(path, folder.resolve())).as_posix()


def split_table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the boxes of each class in each split as a Markdown table."""
    counts = [Counter(x["category_id"] for x in part["annotations"]) for part in parts.values()]
    images = [len(part["images"]) for part in parts.values()]
    used = [len({x["image_id"] for x in part["annotations"]}) for part in parts.values()]
    categories = sorted(next(iter(parts.values()))["categories"], key=lambda row: row["id"])
    rows = [[printable(c["name"], 60), *(n[c["id"]] for n in counts)] for c in categories]
    rows += [
        ["all boxes", *(n.total() for n in counts)],
        ["images", *images],
        ["images without boxes", *(n - m for n, m in zip(images, used, strict=True))],
    ]
    return markdown_table(["class", *parts], rows)
