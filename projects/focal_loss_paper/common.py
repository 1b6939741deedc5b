"""What the commands of this project share."""

import argparse
import math
from pathlib import Path

from matplotlib.axes import Axes

from retinanet_plugin.command_line import command_parser
from retinanet_plugin.config import find_config

CONFIGS = Path(__file__).resolve().parent / "configs"


def paper_parser(name: str, description: str | None, usage: str) -> argparse.ArgumentParser:
    """Returns the parser of ``python -m projects.focal_loss_paper NAME``."""
    parser = command_parser(name, description)
    parser.prog = f"python -m projects.focal_loss_paper {name}"
    parser.usage = f"%(prog)s {usage}"
    return parser


def find_paper_config(name: str | Path) -> Path:
    """Finds a config: a file, or the name of one of this project's or the plugin's.

    Raises:
        UserError: if there is none.
    """
    own = CONFIGS / name
    return own if own.is_file() and not Path(name).is_file() else find_config(name)


def numbers(text: str) -> list[float]:
    """Reads finite numbers separated by commas: an argparse ``type``."""
    try:
        values = [float(x) for x in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers such as 0,0.5,2")
    return values


def hide_frame(axes: Axes) -> None:
    """Leaves the left and the lower axis only."""
    axes.spines[["top", "right"]].set_visible(False)
