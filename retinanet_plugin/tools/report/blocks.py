"""What the parts of a report's page are made of, as HTML."""

from collections.abc import Iterable, Sequence

from ...html_page import table, text

DASH = "\u2013"  # for what is not defined or not known


def section(anchor: str, title: str, *content: str) -> str:
    """A card with a heading, which ``#anchor`` leads to."""
    return f'<section id="{anchor}">\n<h2>{text(title)}</h2>\n{"".join(content)}\n</section>'


def note(sentence: str) -> str:
    """A sentence set small; nothing where it is empty."""
    return f'<p class="note">{text(sentence)}</p>' if sentence else ""


def tiles(entries: Iterable[tuple[str, str]], *, kind: str = "") -> str:
    """Numbers in boxes: (number, what it is). Of the ``kind`` "result" the first stands out."""
    boxes = (
        f'<div class="tile"><b>{text(number)}</b><span>{text(label)}</span></div>'
        for number, label in entries
    )
    return f'<div class="tiles {kind}">{"".join(boxes)}</div>'


def bars(entries: Iterable[tuple[str, float | None, str, str]], *, full: float) -> str:
    """Bars to the right.

    Args:
        entries: name, length, the number beside it, and a sentence below it or nothing.
        full: the length that fills the width.
    """
    rows = []
    for name, value, number, about in entries:
        share = 100 * min(max((value or 0) / full, 0), 1) if full > 0 else 0
        rows.append(
            f'<span>{text(name)}</span><span class="track"><i style="width:{share:.1f}%"></i>'
            f'</span><span class="value">{text(number)}</span>'
        )
        if about:
            rows.append(f'<span class="about">{text(about)}</span>')
    return f'<div class="bars">{"".join(rows)}</div>'


def numbers(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, title: str = "The numbers"
) -> str:
    """A table under a curve or bars, open only where no script closes it.

    All columns but the first hold numbers.
    """
    columns = table(header, rows, numeric=range(1, len(header)))
    return f'<details class="numbers" open><summary>{text(title)}</summary>{columns}</details>'


def show(value: float | None, digits: int = 1) -> str:
    """With so many decimals, or :data:`DASH`."""
    return DASH if value is None or value != value else f"{value:,.{digits}f}"
