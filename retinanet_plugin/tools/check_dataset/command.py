"""Finds what is wrong with a dataset, and fixes copies of it.

    retinanet check-dataset --config-file my.yaml
    retinanet check-dataset --json train.json --images images --json val.json --images images \\
        --fix fixed

Checks the datasets of a config, or COCO JSONs of which the first is the training set: every image
is decoded, every box is looked at. Prints a table, and writes check_dataset.html, with the worst
cases drawn, and check_dataset.json, with all findings. Exits with 1 if there are errors, else with
0; --fix does not change that.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...command_line import (
    add_config_file,
    add_output,
    add_overrides,
    command_parser,
    parse,
)
from ...config import get_config
from ...errors import UserError
from ...utils import output_files, write_json, write_text
from .check import check
from .fix import fix, paths_of_copies, write_copies
from .page import html
from .report import as_json, table
from .sources import sources_of_config, sources_of_files


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet check-dataset``."""
    parser = command_parser("check-dataset", __doc__)
    add_config_file(parser, required=False)
    path: dict[str, Any] = {"action": "append", "default": [], "type": Path}
    parser.add_argument("--json", metavar="FILE", help="COCO JSON; may be repeated", **path)
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="image folder of a --json, or of all of them; may be repeated",
        **path,
    )
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="FOLDER",
        help="folder to write fixed copies of the JSONs to",
    )
    add_output(parser, "folder for page and JSON; default: OUTPUT_DIR/check_dataset")
    add_overrides(parser)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parse(parser(), args)
    if bool(options.json) != bool(options.images):
        raise UserError(
            "--json and --images: one is missing; give a COCO JSON and its image folder."
        )
    if not options.json and not options.config_file:
        raise UserError("--config-file: not given; give it, or --json and --images.")
    cfg = get_config(options.config_file or "Base-RetinaNet.yaml", options.opts)
    if options.json:
        sources = sources_of_files(options.json, options.images)
    else:
        sources = sources_of_config(cfg)
    page, listing = output_files(
        options.output or Path(cfg.OUTPUT_DIR) / "check_dataset",
        ["check_dataset.html", "check_dataset.json"],
        overwrite=options.overwrite,
    )
    copies: list[Path] = []
    if options.fix:
        copies = paths_of_copies(sources, options.fix, overwrite=options.overwrite)
    checked = check(sources)
    write_text(page, html(checked))
    write_json(listing, as_json(checked))
    print(table(checked))
    print(f"{page}\n{listing}")
    if options.fix:
        print(write_copies(fix(checked), copies))
    return int(checked.count("error") > 0)
