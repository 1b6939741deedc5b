"""How well anchors fit a data set, as numbers, as tables and as a figure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...evaluation.anchor_coverage import Anchors, Coverage
from .search import AnchorKeys, Suggestion, covers_enough

_MOST_WORST, _MOST_WORST_SHOWN, _MOST_LOSSES = 100, 10, 5
_MOST_CLASSES = 20  # in a table or a chart
_MOST_DOTS = 4000
_COVERED, _BETWEEN, _LOST, _OTHERS = "#2a6f97", "#e0a030", "#b0413e", "#6a3d8f"


@dataclass(frozen=True)
class Findings:
    """What was measured, and what came of the search.

    Args:
        keys: None where no others could be searched for.
        clusters: the shapes that boxes have most, see ``describe_clusters``.
    """

    found: Coverage
    anchors: Anchors
    keys: AnchorKeys | None
    clusters: list[dict[str, float]]
    suggestion: Suggestion | None

    @property
    def others(self) -> Coverage | None:
        """What the suggested anchors cover."""
        return self.suggestion.coverage if self.suggestion else None

    @property
    def verdict(self) -> str:
        """What to do, in a sentence."""
        present = _covered(self.found)
        if self.suggestion:
            return (
                f"The present anchors cover {present}, {self.anchors.a_place} at each place; "
                f"{self.suggestion.keys.a_place} others would cover "
                f"{_covered(self.suggestion.coverage)}."
            )
        if self.keys is None:
            return (
                f"The present anchors cover {present}. Others are suggested only for "
                "RetinaNetAnchorGenerator with one list of ASPECT_RATIOS."
            )
        words = "nothing to change" if covers_enough(self.found) else "no better ones were found"
        return f"The present anchors cover {present}: {words}."


def _covered(found: Coverage) -> str:
    share, mean = found.share(found.positive), found.class_mean(found.positive)
    classes = f" ({_percent(mean)} in the mean over classes)" if found.num_classes > 1 else ""
    return f"{_percent(share)} of the boxes at IoU {found.positive:g}{classes}"


def _percent(share: float) -> str:
    """Never 100% where one is missing."""
    return f"{np.floor(share * 1000) / 10:.1f}%" if share < 1 else "100%"


# ---------------------------------------------------------------- numbers


def report(findings: Findings) -> dict[str, Any]:
    """All numbers, as JSON."""
    found, suggestion = findings.found, findings.suggestion
    return {
        "picture_scales": [asdict(scale) for scale in found.scales],
        "thresholds": list(found.thresholds),
        "positive_threshold": found.positive,
        "anchors_a_place": findings.anchors.a_place,
        "anchor_shapes": {
            str(stride): shapes.tolist()
            for stride, shapes in zip(
                findings.anchors.strides, findings.anchors.shapes, strict=True
            )
        },
        "coverage": _groups(found),
        "worst_boxes": found.worst(_MOST_WORST),
        "clusters": findings.clusters,
        "verdict": findings.verdict,
        "suggestion": suggestion
        and {
            "keys": suggestion.keys.items(),
            "anchors_a_place": suggestion.keys.a_place,
            "covers_less_of": suggestion.losses(found),
            "coverage": _groups(suggestion.coverage),
        },
    }


def _groups(found: Coverage) -> dict[str, Any]:
    return {
        "all": found.all(),
        "mean_over_classes": found.mean_of_classes(),
        "by_coco_size": found.by_coco_size(),
        "by_size": found.by_size(),
        "by_ratio": found.by_ratio(),
        "by_size_and_ratio": found.by_size_and_ratio(),
        "by_class": found.by_class(),
        "by_picture_scale": found.by_scale(),
    }


# ---------------------------------------------------------------- tables


def markdown(findings: Findings) -> str:
    """What a person wants to know first."""
    found, other = findings.found, findings.others
    blocks = [findings.verdict]
    kinds: dict[str, Any] = {
        "boxes": lambda c: [c.all(), c.mean_of_classes()][: 1 + (c.num_classes > 1)],
        "area in the picture as it is (COCO's)": Coverage.by_coco_size,
        "size (root of area) in resized pixels": Coverage.by_size,
        "height / width": Coverage.by_ratio,
        "class": Coverage.by_class,
        "short side of pictures": Coverage.by_scale,
    }
    for title, group in kinds.items():
        rows = group(found)
        if title.startswith("short") and len(rows) == 1:
            continue
        blocks.append(_table(title, rows, group(other) if other else None, found))
    blocks.append(_clusters(findings.clusters))
    blocks.append(_worst(found))
    if findings.suggestion:
        blocks.append(_advice(findings.suggestion, found))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _table(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]] | None,
    found: Coverage,
) -> str:
    head = [title, "number", *(f"IoU >= {t:g}" for t in found.thresholds), "mean best IoU"]
    if others:
        head += [f"suggested: IoU >= {found.positive:g}", "mean best IoU"]
    pairs = list(zip(rows, others or rows, strict=True))
    note = ""
    if len(pairs) > _MOST_CLASSES:
        pairs.sort(key=lambda pair: pair[0]["covered"][f"{found.positive:g}"])
        note = f"\n\n({len(pairs) - _MOST_CLASSES} more, better covered, are in the JSON.)"
    lines = []
    for row, other in pairs[:_MOST_CLASSES]:
        number = f"{row['boxes']:,}" if "boxes" in row else f"{row['classes']} classes"
        line = [row["name"], number, *map(_percent, row["covered"].values())]
        line.append(f"{row['mean_best_iou']:.3f}")
        if others:
            line += [_percent(other["covered"][f"{found.positive:g}"])]
            line += [f"{other['mean_best_iou']:.3f}"]
        lines.append(line)
    return _markdown_table(head, lines) + note


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _clusters(clusters: Sequence[Mapping[str, float]]) -> str:
    head = ["clusters of shapes: width x height", "height / width", "share of boxes"]
    rows = [
        [f"{c['width']:g} x {c['height']:g}", f"{c['ratio']:g}", _percent(c["share"])]
        for c in clusters
    ]
    return _markdown_table(head, rows)


def _worst(found: Coverage) -> str:
    worst = found.worst(_MOST_WORST_SHOWN)
    head = ["worst boxes", "image id", "class", "x, y, width, height", "resized to", "best IoU"]
    rows = [
        [
            *(str(w["file"]), str(w["image_id"]), w["class"]),
            ", ".join(f"{x:g}" for x in w["bbox"]),
            f"{w['resized_width']:g} x {w['resized_height']:g}",
            f"{w['best_iou']:.3f}",
        ]
        for w in worst
    ]
    return _markdown_table(head, rows) if rows else ""


def _advice(suggestion: Suggestion, found: Coverage) -> str:
    keys = suggestion.keys.items()
    losses = suggestion.losses(found)
    more = f"; and {len(losses) - _MOST_LOSSES} more" if len(losses) > _MOST_LOSSES else ""
    lines = [
        "Suggested, by coverage alone, which is not AP; the model is to be trained anew:",
        "",
        "```yaml",
        "MODEL:",
        "  ANCHOR_GENERATOR:",
        *(f"    {key.rpartition('.')[2]}: {value}" for key, value in keys.items()),
        "```",
        "",
        "or at the end of the command:",
        " ".join(f'{key} "{value}"' for key, value in keys.items()),
    ]
    if losses:
        lines += ["", f"They cover less of {'; '.join(losses[:_MOST_LOSSES])}{more}."]
    return "\n".join(lines)


# ---------------------------------------------------------------- figure


def draw(findings: Findings) -> Figure:
    """Shapes of boxes and anchors, coverage by size and ratio together, by size, and by class."""
    found = findings.found
    figure = Figure(figsize=(15, 12), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
    shapes, heat, sizes, classes = (figure.add_subplot(grid[i // 2, i % 2]) for i in range(4))
    _draw_shapes(shapes, findings)
    _draw_heat(heat, found)
    other = findings.others
    _draw_bars(sizes, found, found.by_size(), other.by_size() if other else None)
    sizes.set_xlabel("size of the box (root of its area), pixels of the resized picture")
    sizes.set_title("Covered boxes by size, and their number")
    _draw_bars(classes, found, *_worst_classes(found, other))
    few = len(found.by_class()) <= _MOST_CLASSES
    classes.set_title(
        "Covered boxes by class" if few else f"The {_MOST_CLASSES} classes that are covered least"
    )
    handles: list[Any] = [
        Patch(color=colour, label=label)
        for colour, label in zip((_COVERED, _BETWEEN, _LOST), _levels(found), strict=True)
    ]
    if other:
        handles.append(_marker("D", _OTHERS, f"suggested anchors: IoU >= {found.positive:g}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    scales = ", ".join(str(s.short or "as it is") for s in found.scales)
    figure.suptitle(
        f"The anchors cover {_covered(found)}\n"
        f"{len(found.data):,} boxes in {len(found.data.files):,} pictures, short side {scales}; "
        f"{findings.anchors.a_place} anchors at each place",
        size=14,
    )
    return figure


def _levels(found: Coverage) -> list[str]:
    """What the three colours mean."""
    low, high = found.thresholds[0], found.positive
    between = f"best IoU {low:g} to {high:g}" if low < high else ""
    return [f"best IoU >= {high:g}: covered", between, f"best IoU < {low:g}"]


def _short(count: int) -> str:
    """In three digits: 1,050,000 is 1.05M."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * factor:
            return f"{count / factor:.3g}{unit}"
    return str(count)


def _marker(shape: str, colour: str, label: str) -> Line2D:
    return Line2D(
        [], [], linestyle="", marker=shape, color=colour, markerfacecolor="white", label=label
    )


def _draw_shapes(axes: Axes, findings: Findings) -> None:
    """Dots are boxes, the lost ones on top; symbols are anchors."""
    found = findings.found
    chosen = np.random.default_rng(0).permutation(len(found.iou))[:_MOST_DOTS]
    chosen = chosen[np.argsort(-found.iou[chosen])]
    iou = found.iou[chosen]
    colours = np.where(iou >= found.thresholds[0], _BETWEEN, _LOST)
    colours[iou >= found.positive] = _COVERED
    size = np.where(iou >= found.positive, 5, 14)
    axes.scatter(
        found.width[chosen], found.height[chosen], s=size, c=colours, alpha=0.5, linewidth=0
    )
    handles = [_draw_anchors(axes, findings.anchors, "s", "black", "anchors")]
    if findings.suggestion:
        others = findings.suggestion.anchors
        handles.append(_draw_anchors(axes, others, "D", _OTHERS, "suggested anchors"))
    centres = [(c["width"], c["height"]) for c in findings.clusters]
    axes.plot(*np.transpose(centres), "*", color="white", markeredgecolor="black", markersize=13)
    handles.append(
        Line2D(
            [],
            [],
            linestyle="",
            marker="*",
            color="white",
            markeredgecolor="black",
            markersize=11,
            label="clusters of boxes",
        )
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = np.quantile([found.width, found.height], (0.002, 0.998))
    sides = np.concatenate([level.numpy().ravel() for level in findings.anchors.shapes])
    limits = min(low, sides.min()) / 1.4, max(high, sides.max()) * 1.4
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.grid(color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("width, pixels of the resized picture")
    axes.set_ylabel("height")
    axes.set_title("Shapes of the boxes (dots) and of the anchors")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=handles, frameon=True, edgecolor="none", loc="upper left")


def _draw_anchors(axes: Axes, anchors: Anchors, shape: str, colour: str, label: str) -> Line2D:
    for level in anchors.shapes:
        axes.plot(*level.T.numpy(), shape, color=colour, markerfacecolor="white", markersize=5)
    return _marker(shape, colour, label)


def _draw_heat(axes: Axes, found: Coverage) -> None:
    """The share of covered boxes, and their number, of each size and ratio."""
    rows = {row["name"]: row for row in found.by_size_and_ratio()}
    sizes = [row["name"] for row in found.by_size()]
    ratios = [row["name"] for row in found.by_ratio()]
    shares = np.full((len(sizes), len(ratios)), np.nan)
    for i, size in enumerate(sizes):
        for j, ratio in enumerate(ratios):
            row = rows.get(f"{size}, {ratio}")
            if row is None:
                continue
            shares[i, j] = share = row["covered"][f"{found.positive:g}"]
            text = f"{_percent(share)}\n{_short(row['boxes'])}"
            colour = "black" if 0.3 < share < 0.7 else "white"
            axes.text(j, i, text, ha="center", va="center", color=colour, size=8)
    colours = LinearSegmentedColormap.from_list("coverage", (_LOST, _BETWEEN, _COVERED))
    picture = axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto", origin="lower")
    bar = axes.figure.colorbar(picture, ax=axes, format="{x:.0%}", shrink=0.6)
    bar.outline.set_visible(False)
    axes.set_xticks(range(len(ratios)), ratios)
    axes.set_yticks(range(len(sizes)), sizes)
    axes.set_xlabel("height / width of the box")
    axes.set_ylabel("size of the box (root of its area), pixels")
    axes.set_title("Share of covered boxes, and their number")
    axes.spines[:].set_visible(False)


def _worst_classes(found: Coverage, other: Coverage | None) -> tuple[list[Any], list[Any] | None]:
    rows = found.by_class()
    shares = [row["covered"][f"{found.positive:g}"] for row in rows]
    order = np.argsort(shares, kind="stable")[:_MOST_CLASSES].tolist()
    others = other.by_class() if other else None
    return [rows[i] for i in order], others and [others[i] for i in order]


def _draw_bars(
    axes: Axes,
    found: Coverage,
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]] | None,
) -> None:
    """A bar a group, up to 1, in three colours; a symbol where the suggestion would cover."""
    high, low = f"{found.positive:g}", f"{found.thresholds[0]:g}"
    covered = np.array([row["covered"][high] for row in rows])
    nearly = np.array([row["covered"][low] for row in rows])
    x = np.arange(len(rows))
    axes.bar(x, covered, 0.75, color=_COVERED)
    axes.bar(x, nearly - covered, 0.75, bottom=covered, color=_BETWEEN)
    axes.bar(x, 1 - nearly, 0.75, bottom=nearly, color=_LOST)
    if others:
        shares = [row["covered"][high] for row in others]
        axes.plot(x, shares, "D", color=_OTHERS, markerfacecolor="white", clip_on=False, zorder=3)
    for i, row in enumerate(rows):
        axes.text(i, 1.03, _short(row["boxes"]), ha="center", size=8, color="#5b6670")
    turned = max(len(row["name"]) for row in rows) * len(rows) > 90
    names = [row["name"] for row in rows]
    axes.set_xticks(x, names, rotation=40 if turned else 0, ha="right" if turned else "center")
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
