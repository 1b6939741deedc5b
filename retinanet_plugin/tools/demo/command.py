r"""Detects objects in images, folders, videos and a camera's stream, and draws them.

    retinanet demo --weights output/quickstart/model_final.pth \
        --input street.jpg holidays/ 'shots/**/*.png' traffic.mp4 --output drawn
    retinanet demo --weights model.onnx --webcam 0 --output drawn \
        --score-threshold 0.3 --classes RBC,WBC

The config is the config.yaml beside the weights unless --config-file names another one; exported
models need none. OUTPUT receives a drawn image or video for each input, detections.json (a list in
COCO's results format) and images.json (COCO's images and categories). Inputs that cannot be read
are reported and skipped; the exit status is 1 then. Ctrl-C ends the camera, and keeps what is drawn
so far.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import PurePath

import cv2

from ...acceleration.memory import keep_freed_memory
from ...command_line import (
    add_config_file,
    add_device,
    add_output,
    add_overrides,
    add_weights,
    at_least,
    command_parser,
    parse,
    positive_int,
)
from ...errors import UserError
from ...predictor import Predictor
from ...runtimes.exported_files import ONNX_RUNTIMES
from .inputs import Frames, find_sources, is_video
from .outputs import DETECTIONS, Outputs
from .run import Demo


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet demo``."""
    result = command_parser("demo", __doc__)
    add_config_file(result, required=False)
    add_weights(result, required=False)
    result.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="images, videos, folders (searched recursively) and quoted patterns",
    )
    result.add_argument("--webcam", type=at_least(0), metavar="N", help="camera index")
    add_output(result, "a new folder", required=True)
    result.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="SCORE", help="default: 0.5"
    )
    result.add_argument("--classes", metavar="NAME,NAME", help="classes to keep; default: all")
    result.add_argument(
        "--batch-size", type=positive_int, default=4, help="images per batch; default: 4"
    )
    result.add_argument(
        "--runtime",
        choices=ONNX_RUNTIMES,
        default=ONNX_RUNTIMES[0],
        help=f"runs .onnx files; default: {ONNX_RUNTIMES[0]}",
    )
    add_device(result)
    add_overrides(result)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs ``retinanet demo`` and returns its exit status."""
    parsed = parse(parser(), args)
    opencv = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # OpenCV 4 and 5
    opencv.setLogLevel(0)  # silent: the demo itself reports what cannot be read
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    sources, unmatched = find_sources(parsed.input, parsed.output)
    if not sources and parsed.webcam is None:
        raise UserError(
            f"--input: no image or video {', '.join(unmatched) or 'given'}; give files, folders or "
            "patterns, or --webcam 0."
        )
    camera = None if parsed.webcam is None else Frames(parsed.webcam)
    predictor = Predictor(
        parsed.config_file,
        parsed.weights,
        score_threshold=parsed.score_threshold,
        classes=parsed.classes and [x.strip() for x in parsed.classes.split(",")],
        batch_size=parsed.batch_size,
        overrides=parsed.opts,
        runtime=parsed.runtime,
    )
    keep_freed_memory(predictor.cfg)
    outputs = Outputs(
        parsed.output, predictor.classes, predictor.category_ids, overwrite=parsed.overwrite
    )
    demo = Demo(predictor, outputs)
    for text in unmatched:
        demo.fail(text, "no image or video")
    try:
        demo.run_images([x for x in sources.items() if not is_video(x[0])])
        for file, name in sources.items():
            if is_video(file):
                demo.run_video(file, name)
        if camera:
            label = f"webcam_{parsed.webcam}"
            demo.run_frames(camera, label, PurePath(label), live=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{parsed.output} has the results so far") from None
    finally:
        outputs.write()
    print(
        f"{len(outputs.detections)} detections above {predictor.score_threshold:g} in "
        f"{len(outputs.images)} images and frames\n{parsed.output / DETECTIONS}"
    )
    return 1 if demo.num_failed else 0
