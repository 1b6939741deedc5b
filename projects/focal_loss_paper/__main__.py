"""Repeats tables and figures of "Focal Loss for Dense Object Detection" (arXiv 1708.02002)."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from retinanet_plugin.errors import one_sentence

COMMANDS = {
    "ablate": "train the rows of a table and compare their AP with the paper's",
    "loss-curves": "draw focal loss and FL* as functions (figure 1 and the appendix)",
    "loss-distribution": "draw which samples hold a trained model's loss (figure 4)",
    "imbalance": "draw positives and negatives during training, and their shares of the loss",
    "speed-accuracy": "draw milliseconds per image against AP (figure 2)",
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its status: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m projects.focal_loss_paper",
        usage="%(prog)s COMMAND [arguments]",
        description=__doc__,
        epilog=f"commands:\n{commands}\n\n`COMMAND --help` explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(args)
    with one_sentence():
        command = importlib.import_module(f".{parsed.command.replace('-', '_')}", __package__)
        sys.exit(command.main(parsed.arguments))


if __name__ == "__main__":
    main()
