"""Detects and draws objects in pictures, folders of them, videos and what a camera sees.

    python -m retinanet_plugin.tools.demo.command --weights output/quickstart/model_final.pth \
        --input street.jpg holidays/ 'shots/**/*.png' traffic.mp4 --output found
    python -m retinanet_plugin.tools.demo.command --config-file output/bccd_R18_FPN/config.yaml \
        --webcam 0 --output found --score-threshold 0.3 --classes RBC,WBC --opts MODEL.DEVICE cpu
    python -m retinanet_plugin.tools.demo.command --weights model.onnx --input street.jpg --output found

OUTPUT gets a drawn picture or video of each, detections.json (a list in COCO's results format) and
pictures.json (COCO's images and categories: what each image_id and category_id is). What cannot be
read is named and skipped, and the exit status is 1 then. Ctrl-C keeps what is drawn so far; it is
also what ends a camera.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

from ...acceleration.memory import keep_freed_memory
from ...command_line import add_opts_option, whole
from ...engine.user_code import add_option, import_code
from ...errors import UserError, one_sentence
from ...evaluation.scores import highest_score
from ...predictor import Predictor
from ...runtimes.exported_files import ONNX_RUNTIMES
from .inputs import camera, find
from .outputs import DETECTIONS, Outputs
from .run import Demo


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m retinanet_plugin.tools.demo.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "--config-file", metavar="FILE", help="default: the config.yaml beside the weights"
    )
    words.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint, or a file of tools.export, which needs no config; default: "
        "model_best.pth or model_final.pth beside the config, else its MODEL.WEIGHTS",
    )
    words.add_argument(
        "--runtime",
        choices=ONNX_RUNTIMES,
        default=ONNX_RUNTIMES[0],
        help="of an .onnx file; default: onnxruntime",
    )
    words.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="pictures, videos, folders (with all below) and patterns in quotes",
    )
    words.add_argument("--webcam", type=whole(0), metavar="NUMBER", help="a camera; 0 is the first")
    words.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    words.add_argument(
        "--score-threshold", type=_fraction, default=0.5, metavar="S", help="default: 0.5"
    )
    words.add_argument(
        "--classes", type=_names, metavar="NAME,NAME", help="keep only these; default: all"
    )
    words.add_argument(
        "--batch-size", type=whole(1), default=4, help="of pictures of one size; default: 4"
    )
    words.add_argument(
        "--overwrite", action="store_true", help="replace what this command left in FOLDER"
    )
    add_option(words)
    add_opts_option(words)
    return words


def _fraction(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{word!r} given; give a number from 0 to below 1")
    return value


def _names(word: str) -> list[str]:
    return [name.strip() for name in word.split(",") if name.strip()]


def main(words: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; returns the exit status."""
    args = parser().parse_args(words)
    opencv = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # 4 and 5
    opencv.setLogLevel(0)  # silent: we name what cannot be read
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if not args.input and args.webcam is None:
        raise UserError("--input: none given; give pictures, folders or videos, or --webcam 0.")
    sources, absent = find(args.input, args.output)
    if not sources and args.webcam is None:
        raise UserError(
            f"--input: no picture or video under {', '.join(absent)} (working directory "
            f"{Path.cwd()}); give files, folders or patterns that there are."
        )
    frames = None if args.webcam is None else camera(args.webcam)
    import_code(args.imports)
    predictor = Predictor(
        args.config_file,
        args.weights,
        score_threshold=args.score_threshold,
        classes=args.classes,
        batch_size=args.batch_size,
        overrides=args.opts,
        runtime=args.runtime,
    )
    keep_freed_memory(predictor.cfg)
    outputs = Outputs(
        args.output, predictor.classes, predictor.category_ids, overwrite=args.overwrite
    )
    demo = Demo(predictor, outputs)
    with highest_score(predictor.model, predictor.kept_classes) as highest:
        try:
            with outputs:
                for word in absent:
                    demo.fail(word, "no picture or video is there")
                demo.pictures([x for x in sources if not x.is_video])
                for source in sources:
                    if source.is_video:
                        demo.video(source)
                if frames:
                    demo.camera(frames, f"webcam_{args.webcam}")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{args.output} keeps what was drawn of {demo.done} inputs, whole files all, and "
                f"{DETECTIONS} of them; --overwrite begins anew"
            ) from None
        print(f"{demo.summary(highest())}\n{args.output / DETECTIONS}")
    if demo.failed:
        inputs = "1 input" if len(demo.failed) == 1 else f"{len(demo.failed)} inputs"
        print(f"{inputs} could not be read, see above.", file=sys.stderr)
    return 1 if demo.failed else 0


if __name__ == "__main__":
    with one_sentence():
        sys.exit(main())
