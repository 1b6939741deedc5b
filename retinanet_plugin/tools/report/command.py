"""Writes a page about a finished run: curves, precision and recall, errors, images with boxes.

    retinanet report output/quickstart
    retinanet report output/mine --output mine.html --import my_data.py
    retinanet report output/mine DATASETS.OWN.ROOT /new/folder

KEY VALUE pairs override the config of the run, for example if its data was moved. The page is one
file that works offline and on a phone. By default it is report.html in the folder of the run.
docs/understand-a-result.md explains its parts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...command_line import add_output, add_overrides, command_parser, parse
from ...errors import UserError
from . import write_report


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet report``."""
    result = command_parser("report", __doc__)
    result.add_argument("folder", type=Path, metavar="FOLDER", help="OUTPUT_DIR of the run")
    add_output(result, "file to write; default: report.html in FOLDER")
    add_overrides(result)
    return result


def main(args: Sequence[str] | None = None) -> None:
    """Writes the page and prints its path."""
    parsed = parse(parser(), args)
    if parsed.output and parsed.output.exists() and not parsed.overwrite:
        raise UserError(f"--output: {parsed.output} exists; add --overwrite to replace it.")
    print(write_report(parsed.folder, parsed.output, parsed.opts))
