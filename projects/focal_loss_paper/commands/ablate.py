r"""Repeats the paper's tables: runs their rows, and shows the results beside the paper's.

    python -m projects.focal_loss_paper.commands.ablate --list
    python -m projects.focal_loss_paper.commands.ablate b_gamma --data quickstart --jobs 2
    python -m projects.focal_loss_paper.commands.ablate b_gamma --num-gpus 8            # on COCO, as the paper
    python -m projects.focal_loss_paper.commands.ablate a_alpha b_gamma --data bccd_R18_FPN.yaml \
        --seeds 1 2 3 -- DATASETS.OWN.ROOT /data/bccd
    python -m projects.focal_loss_paper.commands.ablate b_gamma --data quickstart \
        --row my_row.yaml --import my_loss.py

Given again, a command goes on where it was stopped. Results of a table, also while it runs, are
in OUTPUT/TABLE/results.md, .csv and .png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from retinanet_plugin.command_line import whole
from retinanet_plugin.engine.user_code import add_option
from retinanet_plugin.errors import one_sentence

from ..ablation import Options, ablate, default_output, list_tables


def parser() -> argparse.ArgumentParser:
    """The command line, but for what follows ``--``."""
    words = argparse.ArgumentParser(
        prog="python -m projects.focal_loss_paper.commands.ablate",
        usage="%(prog)s TABLE [TABLE ...] [options] [-- KEY VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("tables", nargs="*", metavar="TABLE", help="names, as --list shows them")
    words.add_argument("--list", action="store_true", help="show all tables and rows")
    words.add_argument(
        "--data",
        default="coco",
        help="config whose data, network and schedule the rows are run on: a file or a shipped "
        "one, such as quickstart; default: coco, the paper's own",
    )
    words.add_argument("--output", type=Path, help="default: output/ablations/DATA")
    words.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these")
    words.add_argument(
        "--row",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.yaml",
        help="a row of your own, named as its file; may be given several times",
    )
    add_option(words)
    words.add_argument("--seeds", nargs="+", type=whole(0), default=[], metavar="N")
    words.add_argument(
        "--steps", type=whole(1), help="of training; what else counts steps follows in proportion"
    )
    words.add_argument(
        "--scale",
        type=float,
        help="of the picture sizes; default: in table e_speed 800 becomes the data's size, else 1",
    )
    words.add_argument(
        "--depth",
        nargs="+",
        type=_depth,
        default=[],
        metavar="OF_ROW=USED",
        help="of ResNets, such as 50=18 101=34; default: where rows differ in it, the least "
        "becomes the data's, unless it starts from trained weights",
    )
    words.add_argument("--jobs", type=whole(1), default=1, help="rows at once; default: 1")
    words.add_argument("--num-gpus", type=whole(1), default=1, help="of each row; default: 1")
    words.add_argument(
        "--again", action="store_true", help="run anew what was run with other settings"
    )
    return words


def _depth(word: str) -> tuple[int, int]:
    row, _, used = word.partition("=")
    if not (row.isdecimal() and used.isdecimal()):
        raise argparse.ArgumentTypeError(f"{word!r} given; give two depths such as 50=18")
    return int(row), int(used)


def main(words: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; returns the exit status."""
    given = list(sys.argv[1:] if words is None else words)
    split = given.index("--") if "--" in given else len(given)
    args, others = parser().parse_known_args(given[:split])
    if others:
        parser().error(f"{' '.join(others)}: not known; keys of the config come last, after --.")
    if args.list:
        print(list_tables())
        return 0
    options = Options(
        data=args.data,
        output=args.output or default_output(args.data),
        steps=args.steps,
        scale=args.scale,
        depths=dict(args.depth),
        seeds=args.seeds,
        rows=args.rows,
        own_rows=args.row,
        imports=args.imports,
        overrides=given[split + 1 :],
    )
    return ablate(args.tables, options, jobs=args.jobs, num_gpus=args.num_gpus, again=args.again)


if __name__ == "__main__":
    with one_sentence("before any row was run; run it again"):
        sys.exit(main())
