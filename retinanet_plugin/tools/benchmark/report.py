"""The results as Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

from .compare import SIDES, SWEEPS, TWO_SIDES
from .parts import PARTS
from .units import duration, size


def markdown(results: Mapping[str, Any]) -> str:
    """Everything that was measured, to be read or pasted into a page."""
    blocks = [_machine(results)]
    if results["parts"]:
        blocks += [_times(results["parts"]), _memory(results["parts"])]
    for name, points in results["sweeps"].items():
        blocks += [_sweep(name, part, points) for part in SWEEPS[name].parts]
    blocks.append(_agreement(results))
    return "\n\n".join(filter(None, blocks)) + "\n"


def every_result(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the parts and of each point of the sweeps."""
    points = [point for points in results["sweeps"].values() for point in points]
    return [*results["parts"].values(), *(r for p in points for r in p["parts"].values())]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(results: Mapping[str, Any]) -> str:
    machine, rates, setting = results["machine"], results["rates"], results["setting"]
    return (
        f"{setting['config']}, {setting['height']} x {setting['width']}, batch "
        f"{setting['batch']}, {setting['boxes']} boxes a picture, {setting['classes']} classes: "
        f"{setting['anchors']:,} anchors.\n"
        f"{machine['device']}, {machine['threads']} threads; torch {machine['torch']}, torchvision "
        f"{machine['torchvision']}, detectron2 {machine['detectron2']}.\n"
        f"The machine multiplies {rates['float32'] / 1e9:,.0f} (float32) or "
        f"{rates['bfloat16'] / 1e9:,.0f} (bfloat16) billion pairs of numbers a second, copies "
        f"{rates['copy'] / 1e9:.1f} GB and compares {rates['compare'] / 1e9:.1f} billion numbers.\n"
        "Each side ran in a process of its own: ours as train_net.py runs it "
        f"(MODEL.ACCELERATION.KEEP_FREED_MEMORY {setting['keep_freed_memory']}), the others as they come."
    )


def _times(parts: Mapping[str, Any]) -> str:
    head = ["time", *SIDES, "times as fast as detectron2", "as torchvision", "share of the floor"]
    return _table(head, (_time_row(result) for result in parts.values()))


def _time_row(result: Mapping[str, Any]) -> list[str]:
    def ratio(side: str) -> str:
        value = result["times_as_fast_as"].get(side)
        return "" if value is None else f"{value:.3g}"

    faster = ratio("detectron2")
    if "times_as_fast_as_float32" in result:
        faster += f" ({result['times_as_fast_as_float32']:.3g} of its float32)"
    share = f"{result['share_of_floor']:.0%}" if "share_of_floor" in result else ""
    times = [_spread(result["seconds"].get(side)) for side in SIDES]
    return [result["title"], *times, faster, ratio("torchvision"), share]


def _spread(times: Mapping[str, Any] | None) -> str:
    return "" if times is None else duration(times["median"], times["min"], times["max"])


def _memory(parts: Mapping[str, Any]) -> str:
    measured = [r for r in parts.values() if "memory" in r]
    if not measured:
        return ""
    head = ["memory at the peak", *SIDES, "of detectron2's", "of torchvision's"]
    return _table(head, (_memory_row(r) for r in measured))


def _memory_row(result: Mapping[str, Any]) -> list[str]:
    sizes = [_size(result, side) for side in SIDES]
    ratios = (result["memory_of"].get(side) for side in SIDES[:2])
    return [result["title"], *sizes, *("" if r is None else f"{r:.2g}" for r in ratios)]


def _size(result: Mapping[str, Any], side: str) -> str:
    value = result.get("memory", {}).get(side)
    return "" if value is None else size(value)


def _sweep(name: str, part: str, points: Iterable[Mapping[str, Any]]) -> str:
    head = [SWEEPS[name].title, "detectron2", "ours", "times as fast"]
    head += ["memory of detectron2", "of ours"]
    rows = []
    for point in points:
        result = point["parts"][part]
        ratio = result["times_as_fast_as"].get("detectron2")
        row = [f"{point['value']:,}", *(_spread(result["seconds"].get(side)) for side in TWO_SIDES)]
        row.append("" if ratio is None else f"{ratio:.3g}")
        rows.append([*row, *(_size(result, side) for side in TWO_SIDES)])
    return f"{PARTS[part].title}:\n\n{_table(head, rows)}"


def _agreement(results: Mapping[str, Any]) -> str:
    """A line for each comparison with detectron2, and what else there is to say."""
    lines = []
    for result in every_result(results):
        if result["checks"]:
            verdict = "agrees" if all(c["agrees"] for c in result["checks"]) else "DIFFERS"
            words = "; ".join(check["what"] for check in result["checks"])
            lines.append(f"- {result['title']}: {verdict}: {words}")
        lines += [f"- {result['title']}: {note}" for note in result["notes"]]
    return "Ours against detectron2:\n\n" + "\n".join(lines)
