"""Formats the results as Markdown."""

from collections.abc import Mapping
from typing import Any

from ...utils import markdown_table

SIDES = ("detectron2", "torchvision", "ours")


def markdown(results: Mapping[str, Any]) -> str:
    """Returns tables of everything that was measured."""
    parts = list(results["parts"].values())
    header = [
        "time",
        *SIDES,
        "times as fast as detectron2",
        "as torchvision",
        "share of the floor",
    ]
    blocks = [_conditions(results), markdown_table(header, map(_time_row, parts))]
    if measured := [result for result in parts if "memory" in result]:
        header = ["peak memory", *SIDES, "of detectron2's", "of torchvision's"]
        blocks.append(markdown_table(header, map(_memory_row, measured)))
    lines = ["Ours against detectron2:", ""]
    for result in parts:
        if result["checks"]:
            verdict = "agrees" if all(c["agrees"] for c in result["checks"]) else "DIFFERS"
            checks = "; ".join(check["what"] for check in result["checks"])
            lines.append(f"- {result['title']}: {verdict}: {checks}")
        lines += [f"- {result['title']}: {note}" for note in result["notes"]]
    return "\n\n".join([*blocks, "\n".join(lines)]) + "\n"


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
    times, ratios = result["seconds"], result["times_as_fast_as"]
    cells = [
        duration(t["median"], t["min"], t["max"]) if (t := times.get(side)) else ""
        for side in SIDES
    ]
    faster, than_torchvision = (f"{ratios[x]:.3g}" if x in ratios else "" for x in SIDES[:2])
    if "times_as_fast_as_float32" in result:
        faster += f" ({result['times_as_fast_as_float32']:.3g} of its float32)"
    share = f"{result['share_of_floor']:.0%}" if "share_of_floor" in result else ""
    return [result["title"], *cells, faster, than_torchvision, share]


def _memory_row(result: Mapping[str, Any]) -> list[str]:
    memory, fractions = result["memory"], result["memory_of"]
    cells = [size(memory[side]) if side in memory else "" for side in SIDES]
    of_others = [f"{fractions[x]:.2g}" if x in fractions else "" for x in SIDES[:2]]
    return [result["title"], *cells, *of_others]


def duration(seconds: float, *others: float) -> str:
    """Formats seconds or milliseconds with three digits; ``others`` follow in the same unit."""
    factor, unit = (1, "s") if seconds >= 1 else (1000, "ms")
    spread = " to ".join(_three_digits(x * factor) for x in others)
    return f"{_three_digits(seconds * factor)} {unit}" + (f" ({spread})" if spread else "")


def _three_digits(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:,.0f}"


def size(num_bytes: float) -> str:
    """Formats megabytes or gigabytes."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
