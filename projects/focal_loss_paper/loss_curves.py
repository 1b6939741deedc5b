"""Draws focal loss as curves: figure 1 of the paper and those of its appendix.

    python -m projects.focal_loss_paper loss-curves --output figures
    python -m projects.focal_loss_paper loss-curves --gammas 0,2,5 --star 2 1 --star 3 0.5

Writes focal_loss.png and .csv (over the probability of the true class), focal_loss_star.png and
.csv (FL and FL* over the logit), and focal_loss_star_derivatives.csv. Alpha is left out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from retinanet_plugin.command_line import add_output
from retinanet_plugin.errors import UserError
from retinanet_plugin.losses import BinaryLoss, CrossEntropyLoss, FocalLoss, FocalStarLoss
from retinanet_plugin.utils import output_files, write_csv, write_figure

from .common import hide_frame, numbers, paper_parser

PAPER_GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]  # figure 1
PAPER_STAR = [[2.0, 1.0], [4.0, 0.0]]  # gamma, beta
_WELL_CLASSIFIED = 0.6  # p_t, figure 1
_HIGHEST_LOSS = 5.0

Columns = dict[str, Tensor]


def _parser() -> argparse.ArgumentParser:
    parser = paper_parser("loss-curves", __doc__, "[options]")
    parser.add_argument(
        "--gammas", type=numbers, default=PAPER_GAMMAS, help="gammas to plot FL(p_t) for"
    )
    parser.add_argument(
        "--star",
        type=float,
        nargs=2,
        action="append",
        metavar=("GAMMA", "BETA"),
        help="an FL* to plot; may be repeated; default: the paper's 2 1 and 4 0",
    )
    add_output(parser, "default: output/loss_curves")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Writes figures and their numbers."""
    parsed = _parser().parse_args(args)
    try:
        probability = over_probability(parsed.gammas)
        values, derivatives = over_logit(parsed.star or PAPER_STAR)
    except ValueError as error:
        raise UserError(f"--gammas, --star: {error}.") from None
    folder = parsed.output or Path("output/loss_curves")
    names = ("focal_loss", "focal_loss_star")
    files = [f"{name}.{suffix}" for name in names for suffix in ("png", "csv")]
    files.append("focal_loss_star_derivatives.csv")
    paths = output_files(folder, files, overwrite=parsed.overwrite)
    write_figure(paths[0], draw_over_probability(probability))
    write_figure(paths[2], draw_over_logit(values, derivatives))
    for i, columns in ((1, probability), (3, values), (4, derivatives)):
        write_csv(paths[i], {name: column.tolist() for name, column in columns.items()})
    print(*paths, sep="\n")


def over_probability(gammas: Sequence[float]) -> Columns:
    """Computes FL, without alpha, over the probability of the true class.

    Returns:
        ``p_t`` from 0.001 to 1 and the loss of each gamma there, float64, (1000,) each.
    """
    p_t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    losses = {f"FL gamma={g:g}": FocalLoss(None, g).value(p_t.logit(), True) for g in gammas}
    return {"p_t": p_t, **losses}


def over_logit(star: Sequence[Sequence[float]]) -> tuple[Columns, Columns]:
    """Computes CE, FL with gamma 2 and FL* over ``x_t = y x``, the logit of the true class.

    Args:
        star: gamma and beta of each FL*.

    Returns:
        ``x_t`` from -5 to 5 and the value of each loss there; and the same with its derivative;
        float64, (1001,) each.

    Raises:
        ValueError: for a number out of FL*'s range.
    """
    losses: dict[str, BinaryLoss] = {"CE": CrossEntropyLoss(), "FL gamma=2": FocalLoss(None, 2.0)}
    losses |= {f"FL* gamma={g:g} beta={b:g}": FocalStarLoss(None, g, b) for g, b in star}
    x_t = torch.arange(-500, 501, dtype=torch.float64) / 100
    both = {name: loss.value_and_grad(x_t, True) for name, loss in losses.items()}
    return (
        {"x_t": x_t, **{name: value for name, (value, _) in both.items()}},
        {"x_t": x_t, **{name: grad for name, (_, grad) in both.items()}},
    )


def draw_over_probability(columns: Columns) -> Figure:
    """Draws figure 1 of the paper."""
    figure = Figure(figsize=(7.5, 5.4), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(_WELL_CLASSIFIED, 1, color="#eef1f4", zorder=0)
    axes.text(0.8, 2.0, "well-classified\nexamples", ha="center", color="#5b6670")
    _draw_columns(axes, columns)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, _HIGHEST_LOSS)
    axes.set_xlabel("probability of the true class, $p_t$")
    axes.set_ylabel("loss")
    axes.set_title("The higher gamma, the less easy examples cost: $-(1 - p_t)^\\gamma \\log p_t$")
    axes.legend(frameon=False, loc="upper right")
    return figure


def draw_over_logit(values: Columns, derivatives: Columns) -> Figure:
    """Draws the figures of the appendix: losses left, their derivatives right."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_columns(left, values)
    left.set_ylim(0, _HIGHEST_LOSS)
    left.set_title("Both forms of focal loss spare well-classified examples ($x_t > 0$)")
    left.set_ylabel("loss")
    left.legend(frameon=False, loc="upper right")
    _draw_columns(right, derivatives)
    right.set_title("Their derivatives vanish there sooner than cross entropy's")
    right.set_ylabel("derivative by $x_t$")
    for axes in (left, right):
        axes.axvline(0, color="#c8ced3", linewidth=1, zorder=0)
        axes.set_xlim(-5, 5)
        axes.set_xlabel("$x_t = y\\,x$, logit of the true class")
    return figure


def _draw_columns(axes: Axes, columns: Columns) -> None:
    """Draws all columns over the first; FL* is dashed."""
    (_, x), *others = columns.items()
    colors = colormaps["viridis"](torch.linspace(0, 0.84, len(others)).tolist())
    for (name, y), color in zip(others, colors, strict=True):
        style = "--" if name.startswith("FL*") else "-"
        label = name.replace("gamma=", "$\\gamma$ = ").replace(" beta=", ", $\\beta$ = ")
        label += ", cross entropy" if name == "FL gamma=0" else ""
        axes.plot(x, y, style, color=color, linewidth=2, label=label)
    hide_frame(axes)
