"""Charts of AP over milliseconds a picture: what they share, and the paper's own, its figure 2."""

from collections.abc import Iterable

from matplotlib.axes import Axes

from .tables import TABLES

# By backbone, the same in all charts; others follow in order.
_COLOURS = {"ResNet-50": "#2a6f97", "ResNet-101": "#b0413e"}
_MORE_COLOURS = ("#e0a030", "#6a3d8f", "#4d8b6a", "#1b1b1b", "#8c6d46")


def colours_of(backbones: Iterable[str]) -> dict[str, str]:
    """A colour for each backbone, and for those of the paper."""
    others = [name for name in dict.fromkeys(backbones) if name not in _COLOURS]
    more = {name: _MORE_COLOURS[i % len(_MORE_COLOURS)] for i, name in enumerate(others)}
    return {**_COLOURS, **more}


def draw_paper(axes: Axes) -> None:
    """Figure 2 of the paper, from table 1e; the numbers are the short sides of the pictures."""
    table = TABLES["e_speed"]
    for backbone, colour in _COLOURS.items():
        known = [
            (row.milliseconds, row.ap, row.name.rpartition("_")[2])
            for row in table.rows
            if row.label.startswith(f"{backbone},") and row.milliseconds and row.ap
        ]
        axes.plot(
            [x for x, _, _ in known], [y for _, y, _ in known], "o-", color=colour, label=backbone
        )
        for x, y, side in known:
            above = backbone == "ResNet-101" and side != "400"  # where there is room
            name_point(axes, side, (x, y), colour, above=above, aside=5)
    axes.set_title(f"The paper (table 1e): {table.data}, Nvidia M40")
    axes.set_xlabel("milliseconds a picture")
    axes.margins(x=0.08, y=0.12)
    finish(axes)


def name_point(
    axes: Axes, name: str, point: tuple[float, float], colour: str, *, above: bool, aside: int
) -> None:
    """``aside`` so many points, to the left where above and to the right where below."""
    axes.annotate(
        name,
        point,
        xytext=(-aside, 7 - aside / 2) if above else (aside, -7 + aside / 2),
        textcoords="offset points",
        ha=("right" if above else "left") if aside else "center",
        va="bottom" if above else "top",
        size=8,
        color=colour,
    )


def finish(axes: Axes) -> None:
    """The AP axis, a grid, and a legend where it covers least."""
    axes.set_ylabel("AP")
    axes.set_xlim(left=max(axes.get_xlim()[0], 0))
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")
