"""A finished run as one page: curves, precision and recall, errors, test pictures with boxes.

    python -m retinanet_plugin.tools.report.command output/quickstart
    python -m retinanet_plugin.tools.report.command output/mine --out mine.html --import my_data.py

Writes report.html into the folder, in place of the one there: one file that any browser shows, on a
phone too, and that fetches nothing. docs/understand-a-result.md tells what its parts mean.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...engine.user_code import add_option, import_code
from ...errors import UserError, one_sentence
from . import write_report


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m retinanet_plugin.tools.report.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("folder", type=Path, metavar="FOLDER", help="OUTPUT_DIR of the run")
    words.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the folder"
    )
    words.add_argument("--overwrite", action="store_true", help="replace the FILE of --out")
    add_option(words)
    return words


def main(words: Sequence[str] | None = None) -> None:
    """Writes what the command line asks for."""
    args = parser().parse_args(words)
    if args.out and args.out.exists() and not args.overwrite:
        raise UserError(
            f"--out: {args.out} is there already; give another file, or --overwrite to replace it."
        )
    import_code(args.imports)
    print(write_report(args.folder, args.out))


if __name__ == "__main__":
    with one_sentence("no page was written; the run is as it was"):
        main()
