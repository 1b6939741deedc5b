"""Converts weights from and to detectron2, torchvision and mmdetection.

    retinanet convert-weights --weights retinanet_resnet50_fpn_v2_coco.pth --output converted
    retinanet convert-weights --weights output/run/model_final.pth --to torchvision --output theirs

The kind of file is recognized by its keys: a RetinaNet of detectron2 or this plugin, of torchvision
(retinanet_resnet50_fpn and version 2) or of mmdetection, or a torchvision ResNet to train from. The
folder gets the weights, a config with which they detect the same (for torchvision, a script), and
conversion.json, which lists every key. KEY VALUE pairs change the config, such as
MODEL.RETINANET.SCORE_THRESH_TEST 0.3. Files that do not match completely are refused. See
docs/weights.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...command_line import add_output, add_overrides, command_parser, parse
from ...engine.checkpoint import local_file
from .conversion import convert
from .model import Options


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet convert-weights``."""
    result = command_parser("convert-weights", __doc__)
    result.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help=".pth or .pkl; also a URL or a detectron2:// name",
    )
    result.add_argument(
        "--config-file",
        metavar="FILE",
        help="config of a model trained by this plugin or detectron2; default: config.yaml beside "
        "the weights",
    )
    result.add_argument(
        "--to",
        choices=("plugin", "detectron2", "torchvision"),
        default="plugin",
        help="default: plugin",
    )
    add_output(result, "the folder to write into", required=True)
    result.add_argument(
        "--classes", nargs="+", metavar="NAME", help="class names, if the file does not have them"
    )
    result.add_argument(
        "--no-background",
        action="store_true",
        help="torchvision: output 0 is a class, not the background",
    )
    result.add_argument(
        "--norm-eps",
        type=float,
        metavar="NUMBER",
        help="torchvision: epsilon of frozen batch norms; default: 0 for the published COCO_V1 "
        "file, 1e-5 for others",
    )
    result.add_argument(
        "--caffe-style",
        action="store_true",
        default=None,
        help="mmdetection: the ResNet is Caffe's; default: as in the config in the file",
    )
    add_overrides(result)
    return result


def main(args: Sequence[str] | None = None) -> None:
    """Converts weights."""
    parsed = parse(parser(), args)
    summary = convert(
        Path(local_file(parsed.weights, "--weights")),
        parsed.output,
        to=parsed.to,
        config=parsed.config_file,
        options=Options(
            parsed.classes, not parsed.no_background, parsed.norm_eps, parsed.caffe_style
        ),
        overrides=parsed.opts,
        overwrite=parsed.overwrite,
    )
    print(summary)
