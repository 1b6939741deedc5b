"""The losses that we train with as curves: figure 1 of the paper and those of its appendix."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from retinanet_plugin.losses import BinaryLoss, CrossEntropyLoss, FocalLoss, FocalStarLoss

PAPER_GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)  # figure 1
PAPER_APPENDIX_GAMMAS = (2.0,)
PAPER_STAR_SETTINGS = ((2.0, 1.0), (4.0, 0.0))  # gamma, beta
_WELL_CLASSIFIED = 0.6  # figure 1's
_HIGHEST_LOSS = 5.0

Columns = dict[str, Tensor]


def over_probability(gammas: Sequence[float]) -> Columns:
    """FL, without alpha, over the probability of the true class.

    Returns:
        ``p_t`` from 0.001 to 1 and the loss of each gamma there, float64, (1000,) each.
    """
    p_t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    x_t = p_t.logit()
    return {
        "p_t": p_t,
        **{f"FL gamma={g:g}": FocalLoss(None, g).value(x_t, True) for g in gammas},
    }


def appendix_losses(
    gammas: Sequence[float], star_settings: Sequence[tuple[float, float]]
) -> dict[str, BinaryLoss]:
    """CE, FL of each gamma and FL* of each (gamma, beta), without alpha, by what they are called.

    Raises:
        ValueError: for a number that is out of a loss's range.
    """
    return {
        "CE": CrossEntropyLoss(),
        **{f"FL gamma={g:g}": FocalLoss(None, g) for g in gammas},
        **{f"FL* gamma={g:g} beta={b:g}": FocalStarLoss(None, g, b) for g, b in star_settings},
    }


def over_logit(losses: Mapping[str, BinaryLoss]) -> tuple[Columns, Columns]:
    """Losses and their derivatives over ``x_t``, the logit signed so that more is better.

    Returns:
        ``x_t`` from -5 to 5 and the value of each loss there; and the same with its derivative;
        float64, (1001,) each.
    """
    x_t = torch.arange(-500, 501, dtype=torch.float64) / 100
    both = {name: loss.value_and_grad(x_t, True) for name, loss in losses.items()}
    return (
        {"x_t": x_t, **{name: value for name, (value, _) in both.items()}},
        {"x_t": x_t, **{name: grad for name, (_, grad) in both.items()}},
    )


def draw_over_probability(columns: Columns) -> Figure:
    """Figure 1 of the paper."""
    figure = Figure(figsize=(7.5, 5.4), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(_WELL_CLASSIFIED, 1, color="#eef1f4", zorder=0)
    axes.text(0.8, 2.0, "well-classified\nexamples", ha="center", color="#5b6670")
    _lines(axes, columns)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, _HIGHEST_LOSS)
    axes.set_xlabel("probability of the true class, $p_t$")
    axes.set_ylabel("loss")
    axes.set_title("The higher gamma, the less easy examples cost: $-(1 - p_t)^\\gamma \\log p_t$")
    axes.legend(frameon=False, loc="upper right")
    return figure


def draw_over_logit(values: Columns, derivatives: Columns) -> Figure:
    """The figures of the appendix: losses on the left, their derivatives on the right."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, values)
    left.set_ylim(0, _HIGHEST_LOSS)
    left.set_title("Both forms of focal loss spare well-classified examples ($x_t > 0$)")
    left.set_ylabel("loss")
    left.legend(frameon=False, loc="upper right")
    _lines(right, derivatives)
    right.set_title("Their derivatives vanish there sooner than cross entropy's")
    right.set_ylabel("derivative by $x_t$")
    for axes in (left, right):
        axes.axvline(0, color="#c8ced3", linewidth=1, zorder=0)
        axes.set_xlim(-5, 5)
        axes.set_xlabel("$x_t = y\\,x$, logit of the true class")
    return figure


def _lines(axes: Axes, columns: Columns) -> None:
    """All over the first column; dashes tell FL* apart without colour."""
    (_, x), *others = columns.items()
    colours = colormaps["viridis"](torch.linspace(0, 0.84, len(others)).tolist())
    for (name, y), colour in zip(others, colours, strict=True):
        style = "--" if name.startswith("FL*") else "-"
        axes.plot(x, y, style, color=colour, linewidth=2, label=_for_people(name))
    axes.spines[["top", "right"]].set_visible(False)


def _for_people(name: str) -> str:
    text = name.replace("gamma=", "$\\gamma$ = ").replace(" beta=", ", $\\beta$ = ")
    return f"{text}, cross entropy" if name == "FL gamma=0" else text
