r"""Trains RetinaNet from a YAML config, or evaluates it with --eval-only, on detectron2's trainer.

retinanet train --config-file retinanet_R50_FPN_1x.yaml --num-gpus 8
retinanet train --config-file retinanet_R50_FPN_1x.yaml --eval-only MODEL.WEIGHTS model.pth
"""

from collections.abc import Sequence

from ...engine import invoke


def main(args: Sequence[str] | None = None) -> None:
    """Trains or evaluates as the arguments say; see ``engine.launch``."""
    invoke(args, epilog=__doc__)
