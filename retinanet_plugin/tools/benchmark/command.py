"""Time and memory of our RetinaNet beside detectron2's and torchvision's, on this machine.

    python -m retinanet_plugin.tools.benchmark
    python -m retinanet_plugin.tools.benchmark --only class-loss labels --size 640x640 --boxes 50
    python -m retinanet_plugin.tools.benchmark --sweep classes --json sweep.json --plot sweep.png
    python -m retinanet_plugin.tools.benchmark --config output/quickstart/config.yaml \\
        --size 128x128 --models output/quickstart/model_final.pth model.onnx model.pt2

The sides run in turn, each in a process of its own: ours as train_net.py runs it, the others as
they come. Before that, what they give is compared. Peak memory is that of a fresh process. Words
at the end override keys of the config. Tables in Markdown go to the standard output, progress to
the standard error; the exit status is 1 where ours differs from detectron2 or cannot run.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...acceleration.memory import keep_freed_memory
from ...command_line import whole
from ...errors import UserError, one_sentence
from ...evaluation.timing import describe_machine
from . import files
from .compare import SWEEPS, Comparison, Options, add_floor, probe
from .measure import better, measure_rates, release
from .models import Setting
from .parts import PARTS
from .report import every_result, markdown

_BOXES, _LABEL_BOXES = 20, (100, 1000)  # a picture, where --boxes says nothing


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = __doc__ or ""
    words = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("--only", nargs="+", metavar="PART", help=f"of: {', '.join(PARTS)}")
    words.add_argument(
        "--sweep",
        nargs="*",
        metavar="NAME",
        help=f"measure these instead, or all: {', '.join(SWEEPS)}",
    )
    words.add_argument(
        "--models",
        nargs="+",
        metavar="FILE",
        help="time these instead: checkpoints of the config, and files of tools.export",
    )
    words.add_argument("--config", default="retinanet_R50_FPN_1x.yaml", help="file or shipped name")
    words.add_argument("--size", default="800x1216", help="height x width of the pictures")
    words.add_argument("--batch", type=whole(1), default=1, help="pictures")
    words.add_argument("--classes", type=whole(1), help="default: the config's")
    words.add_argument(
        "--boxes",
        type=whole(0),
        help=f"a picture; default {_BOXES}, and {' and '.join(map(str, _LABEL_BOXES))} for labels",
    )
    words.add_argument("--device", help="cpu or cuda; default: a GPU where there is one")
    words.add_argument("--threads", type=whole(1), help="of the CPU; default: torch's choice")
    words.add_argument(
        "--rounds", type=whole(1), help="runs of each side; default: 3 to 15 within 12 seconds"
    )
    words.add_argument(
        "--no-memory", action="store_true", help="leave out the processes for memory"
    )
    words.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    words.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them there")
    words.add_argument("--probe", help=argparse.SUPPRESS)
    words.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of the config, after --")
    return words


def setting_of(args: argparse.Namespace) -> Setting:
    """What the command line asks for.

    Raises:
        UserError: for a size, device, config or key that cannot be.
    """
    size = re.fullmatch(r"(\d+)x(\d+)", args.size)
    if size is None or min(map(int, size.groups())) < 32:
        raise UserError(
            f'--size: "{args.size}" given; give height x width in pixels, each at least 32, such '
            "as 800x1216."
        )
    cuda = torch.cuda.is_available()
    device = args.device or ("cuda" if cuda else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device) or (device != "cpu" and not cuda):
        there = "cuda or cpu" if cuda else "cpu, as this machine has no GPU"
        raise UserError(f'--device: "{device}" given; give {there}.')
    classes = () if args.classes is None else ("MODEL.RETINANET.NUM_CLASSES", str(args.classes))
    setting = Setting(
        config=args.config,
        overrides=(*args.opts, *classes),
        height=int(size[1]),
        width=int(size[2]),
        batch=args.batch,
        boxes=_BOXES if args.boxes is None else args.boxes,
        device=device,
    )
    if setting.num_classes < 1:
        raise UserError(f"--classes: {args.config} leaves their number open; give it.")
    return setting


def check_names(given: Sequence[str], known: Sequence[str], option: str) -> None:
    """Raises UserError for a name that is not known."""
    for name in given:
        if name not in known:
            raise UserError(f'{option}: unknown name "{name}"; known: {", ".join(known)}.')


def check_output(path: Path | None, option: str) -> None:
    """Raises UserError, before minutes have passed, where the file could not be written."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise UserError(f"{option}: {path} cannot be written; give a file in an existing folder.")


def benchmark(args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """All that was asked for, as JSON."""
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    threads = torch.get_num_threads()
    options = Options(setting, threads, args.rounds, not args.no_memory, say)
    say("what the machine itself can do")
    device = torch.device(setting.device)
    rates = measure_rates(device)
    release()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Comparison(options, Path(folder))) as comparison,
    ):
        parts = {}
        if args.sweep is None:
            label_boxes = _LABEL_BOXES if args.boxes is None else (args.boxes,)
            parts = comparison.parts(args.only or list(PARTS), label_boxes)
        names = [] if args.sweep is None else args.sweep or list(SWEEPS)
        sweeps = {name: comparison.sweep(name) for name in names}
    rates = better(rates, measure_rates(device))
    results = {
        "machine": describe_machine(setting.device, threads),
        "setting": {
            **asdict(setting),
            "classes": setting.num_classes,
            "anchors": setting.num_anchors,
            "keep_freed_memory": setting.cfg().MODEL.ACCELERATION.KEEP_FREED_MEMORY,
        },
        "rates": asdict(rates),
        "parts": parts,
        "sweeps": sweeps,
        "took": time.perf_counter() - start,
    }
    for result in every_result(results):
        add_floor(result, rates)
    return results


def benchmark_models(args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """The times of the files of ``--models``, as JSON."""
    keep_freed_memory(setting.cfg())

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    return {
        "machine": describe_machine(setting.device, torch.get_num_threads()),
        "setting": asdict(setting),
        "models": files.measure(files.named(args.models), setting, args.rounds, say),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for; returns the exit status."""
    args = parser().parse_args(words)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    setting = setting_of(args)
    if args.probe:
        name, side = args.probe.split(":")
        print(json.dumps(probe(name, side, setting, args.weights)))
        return 0
    check_names(args.only or [], list(PARTS), "--only")
    check_names(args.sweep or [], list(SWEEPS), "--sweep")
    if sum(x is not None for x in (args.only, args.sweep, args.models)) > 1:
        raise UserError(
            "--only, --sweep, --models: several given, and each measures something else; give one."
        )
    if args.models is not None and args.plot is not None:
        raise UserError("--plot: draws parts and sweeps, not --models; leave it out.")
    check_output(args.json, "--json")
    check_output(args.plot, "--plot")
    results = benchmark(args, setting) if args.models is None else benchmark_models(args, setting)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))
    if args.models is not None:
        print(files.markdown(results))
        return 0
    if args.plot is not None:
        from .plot import draw  # matplotlib, which takes a second, for those who draw

        draw(results, args.plot)
    print(markdown(results))
    measured = every_result(results)
    good = all(c["agrees"] for r in measured for c in r["checks"])
    return 0 if good and all("ours" in r["seconds"] for r in measured) else 1


if __name__ == "__main__":
    with one_sentence():
        sys.exit(main())
