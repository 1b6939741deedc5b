r"""Writes a trained model as one file that runs without this package.

    retinanet export --weights output/quickstart/model_final.pth \
        --format onnx --output model.onnx
    retinanet export --weights output/bccd_R18_FPN/model_final.pth \
        --format onnx --dtype int8 --calibration 200 --output small.onnx

The config is the config.yaml beside the weights unless --config-file names another one. The file
maps batches of images of any size to boxes, scores, classes and num_detections, with normalization,
padding, decoding and NMS inside. It is loaded again and compared with the model on images of the
test dataset, at several sizes. If they differ, no file is written and the exit status is 2. A model
card, OUTPUT.md, lies beside the file. See docs/export.md.
"""

import argparse
import sys
from collections.abc import Sequence

from ...command_line import (
    add_config_file,
    add_device,
    add_output,
    add_overrides,
    add_weights,
    command_parser,
    parse,
    positive_int,
)
from ...errors import UserError
from ...runtimes.exported_files import CHANNELS, FORMATS, INPUT_DTYPES, LAYOUTS
from ...utils import output_files, write_text
from .card import card_path, model_card
from .comparison import TOLERANCES
from .exporting import PRECISIONS, comparison_images, export, load_model


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet export``."""
    result = command_parser("export", __doc__)
    add_config_file(result, required=False)
    add_weights(result)
    result.add_argument("--format", choices=FORMATS, required=True)
    add_output(result, "the exported file, whose name ends in .FORMAT", required=True)
    result.add_argument(
        "--dtype",
        choices=TOLERANCES,
        default="float32",
        help="of backbone and head; default: float32",
    )
    result.add_argument(
        "--calibration",
        type=positive_int,
        default=100,
        metavar="N",
        help="int8: training images to measure ranges on; default: 100",
    )
    for name, choices in (("layout", LAYOUTS), ("channels", CHANNELS), ("input", INPUT_DTYPES)):
        about = f"of the input; default: {choices[0]}"
        result.add_argument(f"--{name}", choices=choices, default=choices[0], help=about)
    add_device(result)
    add_overrides(result)
    return result


def main(args: Sequence[str] | None = None) -> None:
    """Runs ``retinanet export``."""
    parsed = parse(parser(), args)
    if parsed.dtype not in PRECISIONS[parsed.format]:
        raise UserError(
            f"--dtype: {parsed.dtype} is not supported by --format {parsed.format}; give "
            f"{', '.join(PRECISIONS[parsed.format])}, or another --format."
        )
    path = parsed.output
    if path.suffix != f".{parsed.format}":
        raise UserError(f"--output: {path}: the name must end in .{parsed.format}.")
    names = path.name, card_path(path).name
    path, card = output_files(path.parent, names, overwrite=parsed.overwrite)
    if parsed.format == "torchscript":
        _log("PyTorch has deprecated TorchScript; prefer onnx or pt2.")
    predictor = load_model(parsed.config_file, parsed.weights, parsed.opts)
    _log(f"writing {path} and comparing it with the model")
    exported, comparison = export(predictor, path, parsed, comparison_images(predictor.cfg))
    if not comparison.detections:
        _log("warning: the model detected nothing in the compared images, so this proves little.")
    write_text(card, model_card(path, predictor, exported, comparison))
    print(f"{path}\n{card}")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
