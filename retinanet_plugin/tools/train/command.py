r"""Trains a detector from a YAML config, or evaluates one with --eval-only.

retinanet train --config-file retinanet_R50_FPN_1x.yaml --num-gpus 8
retinanet train --config-file retinanet_R50_FPN_1x.yaml --eval-only MODEL.WEIGHTS model.pth

KEY VALUE pairs at the end override the config. Without a GPU it runs on the CPU.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ...engine import invoke, launch


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet train``."""
    return launch.parser(__doc__)


def main(
    args: Sequence[str] | None = None, after_training: Callable[[str], Any] | None = None
) -> None:
    """Trains or evaluates; ``engine.launch.invoke`` explains ``after_training``."""
    invoke(args, description=__doc__, after_training=after_training)
