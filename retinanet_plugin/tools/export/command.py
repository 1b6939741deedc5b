"""A trained model as one file that runs without this package.

    python -m retinanet_plugin.tools.export.command output/quickstart/config.yaml \\
        output/quickstart/model_final.pth --format onnx --output model.onnx
    python -m retinanet_plugin.tools.export.command output/bccd_R18_FPN/config.yaml \\
        output/bccd_R18_FPN/model_final.pth --format onnx --dtype int8 --calibration 200 \\
        --evaluate --output small.onnx

The file takes a batch of any number, height and width of pictures, and gives boxes, scores, classes
and num_detections: normalisation, padding, decoding and NMS are inside. Before it gets its name it
is loaded, run on pictures of the config's test set at several sizes, and compared with the model:
where they differ, nothing is written and the exit status is 2. OUTPUT.md, a model card, lies beside
it. docs/export.md tells the rest.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch

from ...command_line import add_opts_option, whole
from ...engine.user_code import add_option, import_code
from ...errors import UserError, one_sentence
from ...evaluation.timing import describe_machine
from ...model_card import card_path, model_card, time_both
from ...predictor import Predictor
from ...runtimes.exported_files import Runtime
from ...utils import write_text
from .checking import Comparison
from .exporting import (
    PRECISIONS,
    Options,
    accuracy,
    data_set,
    export,
    load_model,
    pictures_to_compare,
)
from .files import FORMATS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m retinanet_plugin.tools.export.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("config", metavar="CONFIG", help="YAML file that the model was trained with")
    words.add_argument("weights", metavar="WEIGHTS", help="its checkpoint")
    words.add_argument("--format", choices=FORMATS, required=True)
    words.add_argument("--output", type=Path, required=True, metavar="FILE", help="ends in .FORMAT")
    words.add_argument(
        "--dtype",
        choices=sorted({x for allowed in PRECISIONS.values() for x in allowed}),
        default="float32",
        help="of the network; default: float32",
    )
    words.add_argument(
        "--calibration",
        type=whole(1),
        default=100,
        metavar="N",
        help="training pictures that int8 takes its ranges from; default: 100",
    )
    words.add_argument(
        "--layout", choices=("nhwc", "nchw"), default="nhwc", help="of the input; default: nhwc"
    )
    words.add_argument(
        "--channels", choices=("BGR", "RGB"), default="BGR", help="of the input; default: BGR"
    )
    words.add_argument(
        "--input", choices=("uint8", "float32"), default="uint8", help="its type; default: uint8"
    )
    words.add_argument(
        "--compile", action="store_true", help="pt2: compile it for this machine by AOTInductor"
    )
    words.add_argument(
        "--evaluate", action="store_true", help="tell the AP of the model and of the file"
    )
    words.add_argument("--overwrite", action="store_true", help="replace FILE and its card")
    add_option(words)
    add_opts_option(words)
    return words


def main(words: Sequence[str] | None = None) -> None:
    """Does what the command line asks for."""
    args = parser().parse_args(words)
    options = Options(
        file_format=args.format,
        precision=args.dtype,
        layout=args.layout,
        channels=args.channels,
        input_dtype=args.input,
        compiled=args.compile,
        calibration=args.calibration,
    )
    path: Path = args.output
    for there in (path, card_path(path)):
        if there.exists() and not args.overwrite:
            raise UserError(
                f"--output: {there} is there already; give another file, or --overwrite."
            )
    if args.format == "torchscript":
        say("PyTorch has deprecated TorchScript; choose onnx or pt2 where you can.")
    import_code(args.imports)
    predictor = load_model(args.config, args.weights, args.opts)
    if args.evaluate:
        data_set(predictor.cfg)  # before the long work
    runtime, comparison = export(predictor, path, options, say=say)
    if not comparison.detections:
        say("warning: the model found nothing in the pictures compared, so little was compared.")
    try:
        measured = describe_file(path, predictor, runtime, comparison, evaluate=args.evaluate)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{path} is whole and has been compared, but its card was not written; --overwrite "
            "makes both anew"
        ) from None
    for name, metrics in measured.items():
        print(f"AP of {name}: {metrics['AP']:.2f}")
    print(f"{path}\n{card_path(path)}")


def describe_file(
    path: Path, predictor: Predictor, runtime: Runtime, comparison: Comparison, *, evaluate: bool
) -> dict[str, dict[str, float]]:
    """Writes the card; the metrics of the model and of the file, if they are to be measured."""
    measured = {}
    if evaluate:
        say("evaluating the model and the file")
        with redirect_stdout(sys.stderr):
            measured = {"the model": accuracy(predictor), "this file": accuracy(predictor, runtime)}
    pictures, _ = pictures_to_compare(predictor)
    card = model_card(
        path,
        predictor,
        runtime,
        comparison,
        measured=measured,
        seconds=time_both(predictor, runtime, pictures[0]),
        machine=describe_machine(predictor.cfg.MODEL.DEVICE, torch.get_num_threads()),
        shape=pictures[0].shape[:2],
    )
    write_text(card_path(path), card)
    return measured


def say(text: str) -> None:
    """To the person, apart from the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with one_sentence("no file was written; run it again"):
        main()
