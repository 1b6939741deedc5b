"""Measures time and memory of our RetinaNet, detectron2's and torchvision's on this machine.

    retinanet benchmark
    retinanet benchmark --only class-loss labels --size 640x640 --boxes 50
    retinanet benchmark --output speed --only class-loss MODEL.RETINANET.NUM_CLASSES 365

The detectors run in turn, each in a process of its own: ours as train_net.py runs it, the others by
default. Their results are compared first. Peak memory is that of a fresh process. Tables in
Markdown go to stdout and, with --output, into a folder with all numbers as JSON; progress goes to
stderr. The exit status is 1 if ours differs from detectron2 or cannot run.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...command_line import (
    add_config_file,
    add_device,
    add_output,
    add_overrides,
    at_least,
    command_parser,
    parse,
    positive_int,
    split_overrides,
)
from ...config import get_config
from ...engine.setup import choose_device
from ...errors import UserError
from ...evaluation.timing import describe_machine
from ...utils import output_files, shorten, write_json, write_text
from .comparison import Comparison, add_floor
from .measure import better, measure_rates, release
from .models import Setting
from .parts import PARTS
from .report import markdown

_FILES = ("benchmark.md", "benchmark.json")
_BOXES, _LABEL_BOXES = 20, (100, 1000)  # per image, without --boxes


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet benchmark``."""
    result = command_parser("benchmark", __doc__)
    result.add_argument("--only", nargs="+", metavar="PART", help=f"of: {', '.join(PARTS)}")
    add_config_file(result, default="retinanet_R50_FPN_1x.yaml", required=False)
    result.add_argument("--size", default="800x1216", help="height x width; default: 800x1216")
    result.add_argument(
        "--batch-size", type=positive_int, default=1, help="images per batch; default: 1"
    )
    result.add_argument(
        "--boxes",
        type=at_least(0),
        help=f"per image; default: {_BOXES}, and {' and '.join(map(str, _LABEL_BOXES))} for labels",
    )
    result.add_argument("--threads", type=positive_int, help="of the CPU; default: torch's")
    result.add_argument(
        "--rounds",
        type=positive_int,
        help="runs of each detector; default: 3 to 15 within 12 seconds",
    )
    result.add_argument("--no-memory", action="store_true", help="do not measure memory")
    add_output(result, f"a folder for {' and '.join(_FILES)}")
    add_device(result)
    add_overrides(result)
    return result


def setting_of(args: argparse.Namespace, overrides: Sequence[str]) -> Setting:
    """Returns the setting that the command line asks for.

    Raises:
        UserError: for a wrong size, device, config or key.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", args.size)
    if match is None or min(map(int, match.groups())) < 32:
        raise UserError(
            f'--size: "{args.size}" given; give height x width in pixels, each at least 32, such '
            "as 800x1216."
        )
    cfg = get_config(args.config_file, overrides)
    choose_device(cfg)
    if cfg.MODEL.RETINANET.NUM_CLASSES < 1:
        raise UserError(
            "MODEL.RETINANET.NUM_CLASSES: the config leaves it to the dataset; give it at the end "
            "of the command."
        )
    return Setting(
        config=args.config_file,
        overrides=tuple(overrides),
        height=int(match[1]),
        width=int(match[2]),
        batch=args.batch_size,
        boxes=_BOXES if args.boxes is None else args.boxes,
        device=cfg.MODEL.DEVICE,
    )


def benchmark(args: argparse.Namespace, names: Sequence[str], setting: Setting) -> dict[str, Any]:
    """Measures the parts with these names; returns JSON."""
    start = time.perf_counter()
    device = torch.device(setting.device)
    rates = measure_rates(device)
    release()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Comparison(setting, args, Path(folder))) as comparison,
    ):
        label_boxes = _LABEL_BOXES if args.boxes is None else (args.boxes,)
        parts = comparison.parts(names, label_boxes)
    rates = better(rates, measure_rates(device))
    for result in parts.values():
        add_floor(result, rates)
    return {
        "machine": describe_machine(setting.device, torch.get_num_threads()),
        "setting": {
            **asdict(setting),
            "classes": setting.num_classes,
            "anchors": setting.num_anchors,
            "keep_freed_memory": setting.cfg().MODEL.ACCELERATION.KEEP_FREED_MEMORY,
        },
        "rates": asdict(rates),
        "parts": parts,
        "took": time.perf_counter() - start,
    }


def main(args: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for; returns the exit status."""
    parsed = parse(parser(), args)
    names, overrides = split_overrides(parsed.only or [])
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"--only: no {shorten(unknown)}; known: {', '.join(PARTS)}.")
    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    setting = setting_of(parsed, [*overrides, *parsed.opts])
    paths = []
    if parsed.output is not None:
        paths = output_files(parsed.output, _FILES, overwrite=parsed.overwrite)
    results = benchmark(parsed, names or list(PARTS), setting)
    report = markdown(results)
    if paths:
        write_text(paths[0], report)
        write_json(paths[1], results)
    print(report)
    measured = results["parts"].values()
    agrees = all(check["agrees"] for result in measured for check in result["checks"])
    return 0 if agrees and all("ours" in result["seconds"] for result in measured) else 1
