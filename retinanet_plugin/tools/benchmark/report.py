"""Formats the results as Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

from ...utils import markdown_table
from .comparison import SIDES
from .units import duration, size


def markdown(results: Mapping[str, Any]) -> str:
    """Returns tables of everything that was measured."""
    parts = results["parts"].values()
    header = ["time", *SIDES, "times as fast as detectron2", "as torchvision", "share of the floor"]
    blocks = [_conditions(results), markdown_table(header, map(_time_row, parts))]
    if measured := [result for result in parts if "memory" in result]:
        header = ["peak memory", *SIDES, "of detectron2's", "of torchvision's"]
        blocks.append(markdown_table(header, map(_memory_row, measured)))
    return "\n\n".join([*blocks, _agreement(parts)]) + "\n"


def _conditions(results: Mapping[str, Any]) -> str:
    machine, rates, setting = results["machine"], results["rates"], results["setting"]
    return (
        f"{setting['config']}, {setting['height']} x {setting['width']}, batch "
        f"{setting['batch']}, {setting['boxes']} boxes per image, {setting['classes']} classes: "
        f"{setting['anchors']:,} anchors.\n"
        f"{machine['device']}, {machine['threads']} threads; torch {machine['torch']}, torchvision "
        f"{machine['torchvision']}, detectron2 {machine['detectron2']}.\n"
        f"The machine does {rates['float32'] / 1e9:,.0f} (float32) or "
        f"{rates['bfloat16'] / 1e9:,.0f} (bfloat16) billion multiply-adds per second, copies "
        f"{rates['copy'] / 1e9:.1f} GB and compares {rates['compare'] / 1e9:.1f} billion numbers.\n"
        "Each side ran in a process of its own: ours as train_net.py runs it "
        f"(MODEL.ACCELERATION.KEEP_FREED_MEMORY {setting['keep_freed_memory']}), the others by "
        "default."
    )


def _time_row(result: Mapping[str, Any]) -> list[str]:
    def ratio(side: str) -> str:
        value = result["times_as_fast_as"].get(side)
        return "" if value is None else f"{value:.3g}"

    faster = ratio("detectron2")
    if "times_as_fast_as_float32" in result:
        faster += f" ({result['times_as_fast_as_float32']:.3g} of its float32)"
    share = f"{result['share_of_floor']:.0%}" if "share_of_floor" in result else ""
    return [
        result["title"],
        *(_time(result, x) for x in SIDES),
        faster,
        ratio("torchvision"),
        share,
    ]


def _memory_row(result: Mapping[str, Any]) -> list[str]:
    fractions = (result["memory_of"].get(side) for side in SIDES[:2])
    return [
        result["title"],
        *(_memory(result, side) for side in SIDES),
        *("" if x is None else f"{x:.2g}" for x in fractions),
    ]


def _time(result: Mapping[str, Any], side: str) -> str:
    times = result["seconds"].get(side)
    return "" if times is None else duration(times["median"], times["min"], times["max"])


def _memory(result: Mapping[str, Any], side: str) -> str:
    value = result.get("memory", {}).get(side)
    return "" if value is None else size(value)


def _agreement(parts: Iterable[Mapping[str, Any]]) -> str:
    """Returns a line per comparison with detectron2, and per note."""
    lines = ["Ours against detectron2:", ""]
    for result in parts:
        if result["checks"]:
            verdict = "agrees" if all(c["agrees"] for c in result["checks"]) else "DIFFERS"
            checks = "; ".join(check["what"] for check in result["checks"])
            lines.append(f"- {result['title']}: {verdict}: {checks}")
        lines += [f"- {result['title']}: {note}" for note in result["notes"]]
    return "\n".join(lines)
