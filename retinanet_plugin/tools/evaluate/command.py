r"""Measures AP and milliseconds per image of checkpoints and exported models.

    retinanet evaluate --weights output/quickstart/model_final.pth model.onnx
    retinanet evaluate --weights model.onnx --runtime openvino \
        --config-file bccd_R18_FPN.yaml DATASETS.OWN.ROOT /data/bccd

Each model is evaluated on the config's DATASETS.TEST, with images resized as `train --eval-only`
resizes them; exported models have their own thresholds and NMS. Then all are timed in turn, warm,
one image at a time, from the resized image in memory to its detections. Prints a table, and writes
all numbers to OUTPUT/evaluate.json and detections to a folder per model.
"""

import argparse
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...acceleration.memory import keep_freed_memory
from ...command_line import (
    add_config_file,
    add_device,
    add_output,
    add_overrides,
    command_parser,
    parse,
    positive_int,
    split_overrides,
)
from ...config import get_config
from ...engine import Trainer
from ...engine.checkpoint import local_file
from ...engine.setup import prepare_evaluation
from ...evaluation.run_log import METRICS
from ...evaluation.timing import (
    describe_machine,
    inference,
    load_images,
    median_shape,
    summarize,
    time_in_turn,
)
from ...predictor import config_beside
from ...runtimes.exported_files import ONNX_RUNTIMES, is_exported
from ...runtimes.network import load_network
from ...utils import markdown_table, output_files, write_json

_COLUMNS = (*METRICS, "APs", "APm", "APl")


@dataclass
class Evaluated:
    """A model and what was measured.

    Args:
        file: checkpoint or exported model.
        runtime: what runs it.
        cfg: its config; its ``OUTPUT_DIR`` takes its detections.
        network: called as detectron2's models.
        metrics: of each test set in percent, as its evaluator returns them.
        milliseconds: per image, as ``timing.summarize`` returns them.
    """

    file: str
    runtime: str
    cfg: CfgNode
    network: Any
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    milliseconds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return Path(self.cfg.MODEL.WEIGHTS).stat().st_size

    def numbers(self) -> dict[str, Any]:
        """Returns what was measured, as JSON."""
        return {
            "file": self.file,
            "bytes": self.size,
            "runtime": self.runtime,
            "metrics": {
                name: {key: x if math.isfinite(x) else None for key, x in metrics.items()}
                for name, metrics in self.metrics.items()
            },
            "milliseconds": self.milliseconds,
        }


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet evaluate``."""
    result = command_parser("evaluate", __doc__)
    result.add_argument(
        "--weights",
        nargs="+",
        required=True,
        metavar="FILE",
        help="checkpoints and exported models",
    )
    add_config_file(result, required=False)
    result.add_argument(
        "--runtime",
        action="append",
        choices=ONNX_RUNTIMES,
        help="of .onnx files; may be repeated; default: onnxruntime",
    )
    add_output(result, "default: OUTPUT_DIR/evaluate")
    result.add_argument(
        "--num-images",
        type=positive_int,
        default=10,
        help="number of images to time; default: 10",
    )
    result.add_argument(
        "--rounds", type=positive_int, default=3, help="timed runs per image; default: 3"
    )
    add_device(result)
    add_overrides(result)
    return result


def main(args: Sequence[str] | None = None) -> None:
    """Evaluates and times models."""
    parsed = parse(parser(), args)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("detectron2.evaluation").setLevel(logging.INFO)  # its progress
    weights, overrides = split_overrides(parsed.weights)
    cfg = _prepare(parsed.config_file, weights, [*overrides, *parsed.opts])
    keep_freed_memory(cfg)
    folder = parsed.output or Path(cfg.OUTPUT_DIR, "evaluate")
    (numbers,) = output_files(folder, ["evaluate.json"], overwrite=parsed.overwrite)
    models = build(weights, parsed.runtime or ONNX_RUNTIMES[:1], cfg, folder)
    for name, model in models.items():
        print(f"evaluating {name}", file=sys.stderr, flush=True)
        with redirect_stdout(sys.stderr):  # pycocotools prints
            results = Trainer.test(model.cfg, model.network)
        datasets = cfg.DATASETS.TEST
        by_dataset = results if len(datasets) > 1 else {datasets[0]: results}
        model.metrics = {dataset: by_dataset[dataset]["bbox"] for dataset in datasets}
    images = load_images(cfg, cfg.DATASETS.TEST[0], parsed.num_images)
    runs = {name: inference(model.network, model.cfg) for name, model in models.items()}
    inputs, device = dict.fromkeys(runs, images), torch.device(cfg.MODEL.DEVICE)
    times = time_in_turn(runs, inputs, device, parsed.rounds)
    for name, model in models.items():
        model.milliseconds = summarize(times[name])
    about = {
        "machine": describe_machine(cfg.MODEL.DEVICE, torch.get_num_threads()),
        "data": {name: len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TEST},
        "shape": median_shape(images),
    }
    write_json(numbers, {**about, "models": [model.numbers() for model in models.values()]})
    print(f"{markdown(list(models.values()), about)}\n{numbers}")


def _prepare(config: str | None, weights: Sequence[str], overrides: Sequence[str]) -> CfgNode:
    """Returns the config, with its test sets registered and checked."""
    cfg = get_config(config or config_beside(weights[0]), overrides)
    cfg.TEST.LOSS = False  # exported models have none
    prepare_evaluation(cfg)
    return cfg


def build(
    weights: Sequence[str], runtimes: Sequence[str], cfg: CfgNode, folder: Path
) -> dict[str, Evaluated]:
    """Loads the models, ``.onnx`` files once for each runtime; by name."""
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes")
    models = {}
    for file in dict.fromkeys(weights):
        for runtime in dict.fromkeys(runtimes if file.endswith(".onnx") else ONNX_RUNTIMES[:1]):
            own = cfg.clone()
            own.MODEL.WEIGHTS = local_file(file, "--weights")
            if is_exported(file):
                own.TEST.DTYPE = "float32"  # the file has its own precision
            network, runs_it, _ = load_network(own, runtime=runtime, classes=classes)
            name = f"{file}, {runs_it}"
            own.OUTPUT_DIR = str(folder / re.sub(r"[^\w.=-]+", "_", name))
            models[name] = Evaluated(file, runs_it, own, network)
    return models


def markdown(models: Sequence[Evaluated], about: Mapping[str, Any]) -> str:
    """Returns a table with a line per model and test set, and how it was measured.

    Args:
        about: "machine", as ``describe_machine`` returns it; "data", the number of images of each
            test set; "shape", height and width of the images that were timed.
    """
    head = ["model", "runtime", "data", "MB", *_COLUMNS, "ms per image: median (quartiles)"]
    rows = []
    for model in models:
        middle, (low, high) = model.milliseconds["median"], model.milliseconds["quartiles"]
        for dataset, metrics in model.metrics.items():
            values = [metrics.get(key, math.nan) for key in _COLUMNS]
            rows.append(
                [
                    *(model.file, model.runtime, dataset, f"{model.size / 1e6:.1f}"),
                    *("" if math.isnan(x) else f"{x:.2f}" for x in values),
                    f"{middle:.3g} ({low:.3g} to {high:.3g})",
                ]
            )
    machine, (height, width) = about["machine"], about["shape"]
    runs = len(models[0].milliseconds["all"])
    data = ", ".join(f"{name} ({count} images)" for name, count in about["data"].items())
    return (
        f"{markdown_table(head, rows)}\n\n{data}. {machine['device']}, {machine['threads']} CPU "
        f"threads, torch {machine['torch']}; {runs} runs of each model, in turn, one image of "
        f"about {height} x {width} pixels at a time.\n"
    )
