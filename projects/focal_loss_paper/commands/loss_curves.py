"""Focal loss as curves: figure 1 of the paper and those of its appendix, with their numbers.

    python -m projects.focal_loss_paper.commands.loss_curves --out figures
    python -m projects.focal_loss_paper.commands.loss_curves --gammas 0 2 5 --star 2 1 --star 3 0.5

Writes into the folder focal_loss.png and .csv (over the probability of the true class), and
focal_loss_star.png, .csv and _derivatives.csv (FL and FL* over the logit). Alpha is left out.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from retinanet_plugin.errors import UserError, one_sentence
from retinanet_plugin.utils import output_files, write_csv, write_figure

from ..loss_curves import (
    PAPER_APPENDIX_GAMMAS,
    PAPER_GAMMAS,
    PAPER_STAR_SETTINGS,
    appendix_losses,
    draw_over_logit,
    draw_over_probability,
    over_logit,
    over_probability,
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m projects.focal_loss_paper.commands.loss_curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("--out", type=Path, default=Path("output/loss_curves"), metavar="FOLDER")
    words.add_argument("--overwrite", action="store_true", help="replace what is there")
    words.add_argument(
        "--gammas", type=_number, nargs="+", default=PAPER_GAMMAS, help="of FL over p_t"
    )
    words.add_argument(
        "--appendix-gammas",
        type=_number,
        nargs="+",
        default=PAPER_APPENDIX_GAMMAS,
        help="of FL over the logit",
    )
    words.add_argument(
        "--star",
        type=_number,
        nargs=2,
        action="append",
        metavar=("GAMMA", "BETA"),
        help="of FL*; may be given several times; default: the paper's 2 1 and 4 0",
    )
    return words


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{word!r} given; give a number")
    return number


def main(words: Sequence[str] | None = None) -> None:
    """Draws what the command line asks for."""
    args = parser().parse_args(words)
    star = [(gamma, beta) for gamma, beta in args.star or PAPER_STAR_SETTINGS]
    try:
        probability = over_probability(args.gammas)
        values, derivatives = over_logit(appendix_losses(args.appendix_gammas, star))
    except ValueError as error:
        raise UserError(f"--gammas, --appendix-gammas, --star: {error}.") from None
    names = ("focal_loss", "focal_loss_star")
    files = [f"{name}.{kind}" for name in names for kind in ("png", "csv")]
    paths = output_files(
        args.out, [*files, "focal_loss_star_derivatives.csv"], overwrite=args.overwrite
    )
    write_figure(paths[0], draw_over_probability(probability))
    write_csv(paths[1], {k: v.tolist() for k, v in probability.items()})
    write_figure(paths[2], draw_over_logit(values, derivatives))
    write_csv(paths[3], {k: v.tolist() for k, v in values.items()})
    write_csv(paths[4], {k: v.tolist() for k, v in derivatives.items()})
    for path in paths:
        print(path)


if __name__ == "__main__":
    with one_sentence("what was written so far is whole; run it again with --overwrite"):
        main()
