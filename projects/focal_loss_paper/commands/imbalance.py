"""The imbalance of positives and negatives in training runs, and who holds the class loss.

    python -m projects.focal_loss_paper.commands.imbalance output/quickstart
    python -m projects.focal_loss_paper.commands.imbalance output/ce output/ce_prior output/focal --out figures

Reads the metrics.json of runs trained with MODEL.RETINANET.LOG_LOSS_SHARES True; writes
imbalance.png and imbalance.csv into the folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from retinanet_plugin.errors import one_sentence
from retinanet_plugin.utils import output_files, write_csv, write_figure

from ..imbalance import draw, read_runs, rows, table


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m projects.focal_loss_paper.commands.imbalance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="OUTPUT_FOLDER",
        help="OUTPUT_DIR of a run; several are compared",
    )
    words.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: imbalance, in the first folder"
    )
    words.add_argument("--overwrite", action="store_true", help="replace what is there")
    return words


def main(words: Sequence[str] | None = None) -> None:
    """Draws what the command line asks for."""
    args = parser().parse_args(words)
    runs = read_runs(args.folders)
    picture, numbers = output_files(
        args.out or args.folders[0] / "imbalance",
        ["imbalance.png", "imbalance.csv"],
        overwrite=args.overwrite,
    )
    write_figure(picture, draw(runs))
    write_csv(numbers, rows(runs))
    print(table(runs))
    print(f"\n{picture}\n{numbers}")


if __name__ == "__main__":
    with one_sentence("what was written so far is whole; run it again with --overwrite"):
        main()
