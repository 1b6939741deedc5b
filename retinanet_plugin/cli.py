"""The ``retinanet`` command: dispatches to the commands in ``tools/``.

``python -m retinanet_plugin`` is the same, where the script is not on the path.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import did_you_mean, one_sentence

# Name -> what it does; ``tools/NAME/command.py`` has its ``parser()`` and ``main(args)``.
COMMANDS = {
    "convert-dataset": "turn COCO, Pascal VOC, YOLO or CSV annotations into COCO JSON",
    "check-dataset": "find what is wrong with a dataset, and fix it",
    "anchors": "measure how well anchors fit a dataset, and suggest better ones",
    "train": "train from a YAML config, or evaluate with --eval-only",
    "evaluate": "compare checkpoints and exported models: AP and milliseconds per image",
    "report": "write a page about a finished run",
    "demo": "detect objects in images, videos and what a camera sees",
    "export": "write a model as ONNX, .pt2 or TorchScript",
    "convert-weights": "exchange weights with torchvision, mmdetection and detectron2",
    "benchmark": "measure speed and memory beside detectron2's and torchvision's RetinaNet",
}


def parser() -> argparse.ArgumentParser:
    """Returns the top-level parser, which leaves a command's arguments unparsed."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items())
    result = argparse.ArgumentParser(
        prog="retinanet",
        usage="retinanet COMMAND [arguments]",
        description="RetinaNet and the focal loss on detectron2.",
        epilog=f"commands:\n{commands}\n\n`retinanet COMMAND --help` explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("command", metavar="COMMAND", help="one of those below")
    result.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return result


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its status: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    top = parser()
    known = top.parse_args(args)
    if known.command not in COMMANDS:
        near = did_you_mean(known.command, COMMANDS)
        top.error(f'unknown command "{known.command}"{near}; known: {", ".join(COMMANDS)}')
    with one_sentence():
        name = known.command.replace("-", "_")
        command = importlib.import_module(f".tools.{name}.command", __package__)
        options = {"after_training": report_on} if name == "train" else {}
        sys.exit(command.main(known.arguments, **options))


def report_on(output_dir: str) -> None:
    """Writes the report of a run; training calls it at its end."""
    from .tools.report import write_report

    logging.getLogger(__package__).info(f"Report: {write_report(Path(output_dir))}")
