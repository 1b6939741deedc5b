r"""AP and milliseconds a picture of a checkpoint, and of files that tools.export has written.

    python -m retinanet_plugin.tools.evaluate.command --model output/quickstart/model_final.pth \
        --model model.onnx --config-file output/quickstart/config.yaml
    python -m retinanet_plugin.tools.evaluate.command --model model.onnx --runtime openvino \
        --config-file bccd_R18_FPN.yaml DATASETS.OWN.ROOT /data/bccd

Each is evaluated on the config's DATASETS.TEST, whose pictures are resized as train_net.py
--eval-only resizes them; thresholds and NMS of an exported file are its own. Then all are timed in
turn, one picture at a time, warm: from the resized picture in memory to its detections. The table
goes to the standard output, all numbers into FOLDER/evaluate.json, detections into FOLDER/MODEL.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from ...acceleration.memory import keep_freed_memory
from ...command_line import whole
from ...config import get_config
from ...data import check_datasets, register_own_datasets
from ...engine import Trainer, import_code
from ...engine.checkpoint import local_file
from ...engine.setup import check_names, choose_device
from ...engine.user_code import add_option
from ...errors import UserError, one_sentence
from ...evaluation.timing import (
    describe_machine,
    inference,
    load_images,
    median_shape,
    time_in_turn,
)
from ...runtimes.exported_files import ONNX_RUNTIMES
from ...runtimes.network import is_exported, load_network
from ...utils import output_files, write_json
from .comparison import Form, markdown, report

NUMBERS = "evaluate.json"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m retinanet_plugin.tools.evaluate.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="FILE",
        help="checkpoint or exported file; may be given several times",
    )
    words.add_argument(
        "--config-file", metavar="FILE", help="default: the config.yaml beside the first model"
    )
    words.add_argument(
        "--runtime",
        action="append",
        choices=ONNX_RUNTIMES,
        help="of .onnx files; may be given twice; default: onnxruntime",
    )
    words.add_argument("--out", type=Path, metavar="FOLDER", help="default: OUTPUT_DIR/evaluate")
    words.add_argument("--overwrite", action="store_true", help="replace what is there")
    words.add_argument(
        "--pictures", type=whole(1), default=10, help="of the data set, to time; default: 10"
    )
    words.add_argument("--rounds", type=whole(1), default=3, help="runs of each; default: 3")
    words.add_argument("--threads", type=whole(1), help="of the CPU; default: torch's choice")
    add_option(words)
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of the config")
    return words


def prepare(args: argparse.Namespace) -> CfgNode:
    """The configuration, with its data set known and looked at."""
    config = args.config_file
    if config is None:
        config = Path(args.model[0]).expanduser().with_name("config.yaml")
        if not config.is_file():
            raise UserError(f"--config-file: none given, and there is no {config}; give one.")
    cfg = get_config(config, args.opts)
    choose_device(cfg)
    check_names(cfg)
    cfg.TEST.LOSS = False  # which exported files do not tell
    register_own_datasets(cfg, training=False)
    check_datasets(cfg, training=False)
    return cfg


def build(
    args: argparse.Namespace, cfg: CfgNode, folder: Path
) -> dict[str, tuple[Form, CfgNode, Any]]:
    """By name each model, and the configuration and the network that it is evaluated with."""
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes")
    built = {}
    for word in dict.fromkeys(args.model):
        own = cfg.clone()
        own.MODEL.WEIGHTS = local_file(word, "--model")
        if is_exported(word):
            own.TEST.DTYPE = "float32"  # its own is in the file
        runtimes = args.runtime if args.runtime and word.endswith(".onnx") else ONNX_RUNTIMES[:1]
        for runtime in dict.fromkeys(runtimes):
            network, name, _ = load_network(own, runtime=runtime, classes=classes)
            form = Form(word, Path(own.MODEL.WEIGHTS), name)
            key = f"{word}, {name}"
            own.OUTPUT_DIR = str(folder / re.sub(r"[^\w.=-]+", "_", key))
            built[key] = form, own.clone(), network
    return built


def main(words: Sequence[str] | None = None) -> None:
    """Evaluates and times what the command line asks for."""
    args = parser().parse_intermixed_args(words)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    import_code(args.imports)
    cfg = prepare(args)
    keep_freed_memory(cfg)
    folder = args.out or Path(cfg.OUTPUT_DIR, "evaluate")
    (numbers,) = output_files(folder, [NUMBERS], overwrite=args.overwrite)
    built = build(args, cfg, folder)
    for key, (form, own, network) in built.items():
        print(f"evaluating {key}", file=sys.stderr, flush=True)
        with redirect_stdout(sys.stderr):  # COCO's own tables are not ours
            results = Trainer.test(own, network)
        names = cfg.DATASETS.TEST
        by_set = results if len(names) > 1 else {names[0]: results}
        form.metrics = {name: by_set[name]["bbox"] for name in names}
    pictures = load_images(cfg, cfg.DATASETS.TEST[0], args.pictures)
    runs = {key: inference(network, own) for key, (_, own, network) in built.items()}
    with tqdm(
        total=len(runs) * len(pictures) * (1 + args.rounds), desc="timing", unit="run"
    ) as bar:
        given, device = dict.fromkeys(runs, pictures), torch.device(cfg.MODEL.DEVICE)
        times = time_in_turn(runs, given, device, args.rounds, bar.update)
    for key, (form, *_) in built.items():
        form.times = times[key]
    forms = [form for form, *_ in built.values()]
    machine = describe_machine(cfg.MODEL.DEVICE, torch.get_num_threads())
    about = {
        "machine": machine,
        "data": {name: len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TEST},
        "shape": median_shape(pictures),
    }
    write_json(numbers, report(forms, about))
    print(f"{markdown(forms, about)}\n{numbers}")


if __name__ == "__main__":
    with one_sentence(f"{NUMBERS} was not written; run it again"):
        logging.basicConfig(format="%(message)s")
        logging.getLogger("detectron2.evaluation").setLevel(logging.INFO)  # AP tables, time left
        main()
