"""Weights of detectron2, torchvision or mmdetection become a model here, or one from here theirs.

    python -m retinanet_plugin.tools.convert_weights.command retinanet_resnet50_fpn_v2_coco.pth mine
    python -m retinanet_plugin.tools.convert_weights.command output/run/model_final.pth theirs \
        --to torchvision

The kind of FILE is known from its keys: a RetinaNet of detectron2 or this plugin, of torchvision
(retinanet_resnet50_fpn and its second version) or of mmdetection, or a ResNet of torchvision to
train from. OUT gets the weights, the config that makes the same detections of them (for torchvision
a script), conversion.json, which names each key that was used, made, missing or left out, and a
model card. Half a match is refused. docs/weights.md has what differs between the frameworks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...engine.checkpoint import local_file
from ...errors import one_sentence
from .conversion import convert
from .model import Options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m retinanet_plugin.tools.convert_weights.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "file", metavar="FILE", help=".pth or .pkl; also a URL or a name of detectron2://"
    )
    words.add_argument("out", type=Path, metavar="OUT", help="folder, made where it is absent")
    words.add_argument("--to", choices=("plugin", "detectron2", "torchvision"), default="plugin")
    words.add_argument(
        "--config-file",
        metavar="CONFIG",
        help="of a model trained here or by detectron2; default: config.yaml beside FILE",
    )
    words.add_argument(
        "--classes", nargs="+", metavar="NAME", help="of the outputs, where FILE does not tell"
    )
    words.add_argument(
        "--no-background",
        action="store_true",
        help="torchvision: output 0 is a class, as where labels were counted from 0",
    )
    words.add_argument(
        "--norm-eps",
        type=float,
        metavar="NUMBER",
        help="torchvision: epsilon of frozen batch norms; default: 0 for the published COCO_V1 "
        "file, else 1e-5",
    )
    words.add_argument(
        "--caffe-style",
        action="store_true",
        default=None,
        help="mmdetection: the ResNet is Caffe's; default: as the config in FILE says",
    )
    words.add_argument("--overwrite", action="store_true", help="replace what is there")
    return words


def main(words: Sequence[str] | None = None) -> None:
    """Converts what the command line names."""
    args = parser().parse_args(words)
    options = Options(args.classes, not args.no_background, args.norm_eps, args.caffe_style)
    print(
        convert(
            Path(local_file(args.file, "FILE")),
            args.out,
            to=args.to,
            config=args.config_file,
            options=options,
            overwrite=args.overwrite,
        )
    )


if __name__ == "__main__":
    with one_sentence("the conversion is not whole; run it again with --overwrite"):
        main()
