"""The findings as a page: counts, how many boxes each class has, and the worst cases drawn."""

from collections.abc import Iterable, Sequence

from ...errors import printable
from ...html_page import image, page, text
from .boxes import counts_of
from .check import Checked
from .draw import COLOURS, Corners, draw
from .entries import CheckedSet
from .findings import KINDS, Finding, ordered
from .table import summary

_DRAWN = 6  # of a kind
_LISTED = 100  # of a kind; all are in the JSON
_CLASSES = 40  # shown at once

_SET_COLOURS = ("#2a6f97", "#e0a030", "#8a6fae")
_STYLE = """
.kinds td:nth-child(4) { min-width: 260px; color: var(--soft); }
.kinds td:nth-child(2) { white-space: nowrap; }
@media (max-width: 700px) {
  .kinds th:nth-child(4), .kinds td:nth-child(4) { display: none; }
}
.info { color: var(--soft); font-weight: 600; }
.bars { display: grid; grid-template-columns: minmax(60px, max-content) 1fr max-content;
  gap: 4px 12px; align-items: center; font-size: 0.92rem; }
.bars .name { max-width: 34vw; }
.bars .number { color: var(--soft); }
.bar { height: 9px; border-radius: 3px; margin: 2px 0; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin: 0 6px -1px 14px; }
.key:first-child { margin-left: 0; }
.findings { padding-left: 1.2em; font-size: 0.9rem; }
figcaption { margin-top: 4px; }
"""


def html(checked: Checked) -> str:
    """A whole document, with nothing outside of it."""
    groups = ordered(checked.findings)
    boxes_of = _boxes_of_pictures(checked.sets)
    sections = [
        _section(severity, kind, found, boxes_of) for (severity, kind), found in groups.items()
    ]
    body = [_lead(checked), _overview(groups), _classes(checked.sets), *sections]
    return page("Check of the data set", "\n".join(filter(None, body)), style=_STYLE)


def _shown(value: object) -> str:
    return text(printable(str(value)))


def _lead(checked: Checked) -> str:
    state = next((s for s in ("error", "warning") if checked.count(s)), "ok")
    sets = "".join(
        f"<br>{_shown(one.source.name)}: {_shown(one.source.file)}, pictures in "
        f"{_shown(one.source.folder)}"
        for one in checked.sets
    )
    numbers = {
        "pictures": sum(len(one.objects("images")) for one in checked.sets),
        "boxes": sum(len(one.objects("annotations")) for one in checked.sets),
        "classes": len({name for one in checked.sets for name in one.categories.values()}),
        "errors": checked.count("error"),
        "warnings": checked.count("warning"),
    }
    tiles = "".join(
        f'<div class="tile"><b>{count:,}</b><span>{name}</span></div>'
        for name, count in numbers.items()
    )
    return (
        f'<p class="lead {state}">{_shown(summary(checked))}</p>\n<p class="note">Looked at'
        f'{sets}</p>\n<div class="tiles">{tiles}</div>'
    )


def _overview(groups: dict[tuple[str, str], list[Finding]]) -> str:
    if not groups:
        return ""
    rows = "\n".join(
        f'<tr><td class="{severity}">{severity}</td><td><a href="#{_anchor(severity, kind)}">'
        f'{text(kind)}</a></td><td class="number">{len(found):,}</td>'
        f"<td>{text(KINDS[kind])}</td></tr>"
        for (severity, kind), found in groups.items()
    )
    return (
        '<section><h2>What was found</h2><div class="scroll" tabindex="0"><table class="kinds">'
        '<thead><tr><th></th><th>kind</th><th class="number">count</th><th>what follows</th></tr>'
        f"</thead>\n<tbody>{rows}</tbody></table></div></section>"
    )


def _anchor(severity: str, kind: str) -> str:
    return f"{severity}-{kind.replace(' ', '-')}"


def _classes(sets: Sequence[CheckedSet]) -> str:
    """Bars of the boxes of each class, one a set."""
    counts = [
        {name: counts_of(one)[number] for number, name in one.categories.items()} for one in sets
    ]
    names = {name: sum(c.get(name, 0) for c in counts) for c in counts for name in c}
    order = sorted(names, key=lambda name: -names[name])
    if not order:
        return ""
    longest = max(1, *(count for c in counts for count in c.values()))
    colours = [_SET_COLOURS[i % len(_SET_COLOURS)] for i in range(len(sets))]
    keys = "".join(
        f'<span class="key" style="background:{colour}"></span>{_shown(one.source.name)}'
        for one, colour in zip(sets, colours, strict=True)
    )

    def bars(some: Iterable[str]) -> str:
        lines = []
        for name in some:
            values = [c.get(name, 0) for c in counts]
            drawn = "".join(
                f'<div class="bar" style="width:max({100 * value / longest:.2f}%,'
                f'{min(value, 1)}px);background:{colour}">'
                "</div>"
                for value, colour in zip(values, colours, strict=True)
            )
            numbers = " / ".join(f"{value:,}" for value in values)
            lines.append(
                f'<div class="name">{_shown(name)}</div><div>{drawn}</div>'
                f'<div class="number">{numbers}</div>'
            )
        return f'<div class="bars">{"".join(lines)}</div>'

    more = order[_CLASSES:]
    rest = f"<details><summary>{len(more)} more</summary>{bars(more)}</details>" if more else ""
    return (
        f'<section><h2>Boxes of each class</h2><p class="note">{keys}</p>'
        f"{bars(order[:_CLASSES])}{rest}</section>"
    )


def _section(
    severity: str, kind: str, found: Sequence[Finding], boxes_of: dict[str, list[Corners]]
) -> str:
    figures: list[str] = []
    left: list[Finding] = []
    for finding in found:
        drawn = _figure(finding, boxes_of) if len(figures) < _DRAWN else None
        if drawn:
            figures.append(drawn)
        else:
            left.append(finding)
    about = ""
    if figures:
        colour = "#{:02x}{:02x}{:02x}".format(*COLOURS[severity])
        what = "the box it is about" if found[0].box else "the picture's boxes"
        others = ", thin and white: the others of that picture" if found[0].box else ""
        about = (
            f'<p class="note"><span class="key" style="background:{colour}"></span>{what}{others}'
            f'</p><div class="grid">{"".join(figures)}</div>'
        )
    listed = "".join(f"<li>{_shown(finding.text)}</li>" for finding in left[:_LISTED])
    beyond = len(left) - _LISTED
    if beyond > 0:
        listed += f"<li>and {beyond:,} more, all in check_dataset.json</li>"
    texts = f'<ul class="findings">{listed}</ul>' if left else ""
    if figures and left:
        texts = f"<details><summary>{len(left):,} more</summary>{texts}</details>"
    return (
        f'<section id="{_anchor(severity, kind)}"><h2><span class="{severity}">{severity}:</span> '
        f"{text(kind)}, {len(found):,}</h2><p>{text(KINDS[kind])}</p>{about}{texts}</section>"
    )


def _figure(finding: Finding, boxes_of: dict[str, list[Corners]]) -> str | None:
    """The finding drawn; None where it is about no picture, or about one that cannot be read."""
    if finding.picture is None:
        return None
    others = [box for box in boxes_of.get(finding.picture, ()) if box != finding.box]
    try:
        pixels = draw(finding.picture, finding.severity, finding.box, others)
    except Exception:  # as its reader does: the finding says so, or another one does
        return None
    caption = printable(finding.text)
    return f"<figure>{image(pixels, alt=caption)}<figcaption>{text(caption)}</figcaption></figure>"


def _boxes_of_pictures(sets: Sequence[CheckedSet]) -> dict[str, list[Corners]]:
    """Of each picture's file the boxes that can be drawn, XYXY."""
    boxes: dict[str, list[Corners]] = {}
    for one in sets:
        for row in one.annotations.values():
            x, y, width, height = row["bbox"]
            path = str(one.source.folder / one.images[row["image_id"]]["file_name"])
            boxes.setdefault(path, []).append((x, y, x + width, y + height))
    return boxes
