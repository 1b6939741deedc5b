r"""Measures milliseconds per image and AP of trained models, beside the paper's figure 2.

    python -m projects.focal_loss_paper speed-accuracy output/quickstart
    python -m projects.focal_loss_paper speed-accuracy output/ablations/quickstart/e_speed/*/seed_1
    python -m projects.focal_loss_paper speed-accuracy \
        retinanet_R50_FPN_1x.yaml=r50.pth bccd_R18_FPN.yaml=model.onnx --evaluate

A MODEL is the folder of a run, whose AP is read from its metrics.json, or CONFIG=WEIGHTS, where
WEIGHTS may be an exported model. All are timed in turn, as `train --eval-only` runs them: warm, one
image of the test set at a time, from the resized image in memory to its detections. AP is measured
with --evaluate; overrides apply to all configs.
"""

import argparse
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from matplotlib.figure import Figure

from retinanet_plugin.acceleration.memory import keep_freed_memory
from retinanet_plugin.command_line import (
    add_output,
    add_overrides,
    parse,
    positive_int,
    split_overrides,
)
from retinanet_plugin.config import get_config
from retinanet_plugin.data import check_datasets, register_own_datasets
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.checkpoint import local_file
from retinanet_plugin.engine.setup import check_names, choose_device
from retinanet_plugin.errors import UserError
from retinanet_plugin.evaluation.metrics import METRICS, last_metrics, short_names
from retinanet_plugin.evaluation.timing import (
    describe_machine,
    inference,
    load_images,
    median_shape,
    time_in_turn,
)
from retinanet_plugin.runtimes.exported_files import is_exported
from retinanet_plugin.runtimes.network import load_network
from retinanet_plugin.utils import markdown_table, output_files, write_figure, write_json

from .common import find_config, paper_parser
from .speed_figure import Point, draw_curves, draw_paper


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Args:
        name: for people.
        cfg: its config; ``MODEL.WEIGHTS`` is its checkpoint or exported file.
        metrics: in percent, of its last evaluation; None if there is none.
    """

    name: str
    cfg: CfgNode
    metrics: Mapping[str, float] | None = None

    @property
    def dataset(self) -> str:
        """What it is evaluated and timed on."""
        return str(self.cfg.DATASETS.TEST[0])

    @property
    def backbone(self) -> str:
        """Backbone, for people."""
        resnets, name = self.cfg.MODEL.RESNETS, self.cfg.MODEL.BACKBONE.NAME
        if "resnet" not in name:
            return str(name)
        if resnets.NUM_GROUPS > 1:
            return f"ResNeXt-{resnets.DEPTH}-{resnets.NUM_GROUPS}x{resnets.WIDTH_PER_GROUP}d"
        return f"ResNet-{resnets.DEPTH}"


@dataclass(frozen=True)
class Measured:
    """Speed and accuracy of a model.

    Args:
        shape: median height and width of the network's inputs.
        times: seconds of each run.
        metrics: in percent; None if they are not known.
    """

    subject: Subject
    shape: tuple[int, int]
    times: Sequence[float]
    metrics: Mapping[str, float] | None

    def quartiles(self) -> tuple[float, float, float]:
        """Returns the quartiles of the times, the median among them, in milliseconds."""
        low, middle, high = (float(x) * 1000 for x in np.quantile(self.times, (0.25, 0.5, 0.75)))
        return low, middle, high


def _parser() -> argparse.ArgumentParser:
    usage = "MODEL [MODEL ...] [options] [KEY VALUE ...]"
    parser = paper_parser("speed-accuracy", __doc__, usage)
    parser.add_argument("--images", type=positive_int, default=10, help="to time; default: 10")
    parser.add_argument("--rounds", type=positive_int, default=3, help="per image; default: 3")
    parser.add_argument("--evaluate", action="store_true", help="measure AP on DATASETS.TEST")
    add_output(parser, "default: output/speed_accuracy")
    add_overrides(parser)
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Measures the models, and writes ``speed_accuracy.png`` and ``.json``."""
    parsed = parse(_parser(), args)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("detectron2.evaluation").setLevel(logging.INFO)  # its progress
    models, overrides = split_overrides(parsed.opts)
    subjects = read_subjects(models, overrides)
    keep_freed_memory(subjects[0].cfg)
    folder = parsed.output or Path("output/speed_accuracy")
    files = ["speed_accuracy.png", "speed_accuracy.json"]
    figure, numbers = output_files(folder, files, overwrite=parsed.overwrite)
    results = list(_measure(parsed, subjects, folder))
    machine = describe_machine(subjects[0].cfg.MODEL.DEVICE, torch.get_num_threads())
    write_figure(figure, draw(results, machine))
    write_json(numbers, {"machine": machine, "models": [_numbers(x) for x in results]})
    print(f"{markdown(results, machine)}\n{figure}\n{numbers}")


def read_subjects(args: Sequence[str], overrides: Sequence[str]) -> list[Subject]:
    """Finds the models that are meant, and the mistakes that can be found before building them.

    Raises:
        UserError: for a model or dataset that does not exist.
    """
    if not args:
        raise UserError("MODEL: none given; name the folder of a run, or CONFIG=WEIGHTS.")
    args = list(dict.fromkeys(args))
    names = short_names([Path(arg) for arg in args])
    subjects = [read_subject(arg, name, overrides) for arg, name in zip(args, names, strict=True)]
    for subject in subjects:
        check_names(subject.cfg)
        _register_data(subject)
    return subjects


def read_subject(arg: str, name: str, overrides: Sequence[str] = ()) -> Subject:
    """Finds the model that is meant: the folder of a run, or ``CONFIG=WEIGHTS``.

    Raises:
        UserError: if it does not exist.
    """
    folder = Path(arg).expanduser()
    if folder.is_dir():
        config, weights = str(folder / "config.yaml"), str(folder / "model_final.pth")
    else:
        config, _, weights = arg.partition("=")
    if not weights:
        raise UserError(f"MODEL: {arg} has no weights; name CONFIG=WEIGHTS or a run's folder.")
    # One device for all, whatever a run's config.yaml says: a GPU if there is one.
    cfg = get_config(find_config(config), ["MODEL.DEVICE", "cuda", *overrides])
    choose_device(cfg)
    cfg.MODEL.WEIGHTS = local_file(weights)
    if is_exported(weights):
        cfg.TEST.DTYPE = "float32"  # the file has its own precision
    metrics = None
    if folder.is_dir() and not overrides:  # overrides might change what is evaluated
        known = last_metrics(folder / "metrics.json", cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER)
        metrics = {key: known[key] for key in METRICS} if known else None
    return Subject(name, cfg, metrics)


def _register_data(subject: Subject) -> None:
    """Registers the model's test set; own datasets of several models share their names."""
    register_own_datasets(subject.cfg, training=False)
    check_datasets(subject.cfg, training=False)


def _measure(
    parsed: argparse.Namespace, subjects: Sequence[Subject], folder: Path
) -> Iterator[Measured]:
    """Builds all models, evaluates them if asked to, and times them in turn."""
    networks, images, metrics = {}, {}, {}
    for subject in subjects:
        _register_data(subject)
        images[subject.name] = load_images(subject.cfg, subject.dataset, parsed.images)
        networks[subject.name] = load_network(subject.cfg)[0]
    for subject in subjects if parsed.evaluate else ():  # not before all checkpoints are loaded
        _register_data(subject)
        name = re.sub(r"[^\w.=-]+", "_", subject.name)
        with redirect_stdout(sys.stderr):  # pycocotools prints
            metrics[subject.name] = evaluate(subject, networks[subject.name], folder / name)
    runs = {s.name: inference(networks[s.name], s.cfg) for s in subjects}
    count = min(map(len, images.values()))
    inputs = {name: own[:count] for name, own in images.items()}
    device = torch.device(subjects[0].cfg.MODEL.DEVICE)
    times = time_in_turn(runs, inputs, device, parsed.rounds)
    for subject in subjects:
        name = subject.name
        known = metrics.get(name, subject.metrics)
        yield Measured(subject, median_shape(inputs[name]), times[name], known)


def evaluate(subject: Subject, network: Any, folder: Path) -> dict[str, float]:
    """Returns AP, AP50 and AP75 in percent, 0 without detections; writes files to ``folder``."""
    cfg = subject.cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TEST = (subject.dataset,)
    results = flatten_results_dict(Trainer.test(cfg, network))
    return {key: float(np.nan_to_num(results[f"bbox/{key}"])) for key in METRICS}


def _numbers(result: Measured) -> dict[str, Any]:
    low, middle, high = result.quartiles()
    return {
        "name": result.subject.name,
        "backbone": result.subject.backbone,
        "weights": result.subject.cfg.MODEL.WEIGHTS,
        "dataset": result.subject.dataset,
        "height": result.shape[0],
        "width": result.shape[1],
        "dtype": result.subject.cfg.TEST.DTYPE,
        "milliseconds": {
            "median": middle,
            "quartiles": [low, high],
            "all": [time * 1000 for time in result.times],
        },
        "metrics": dict(result.metrics) if result.metrics else None,
    }


def markdown(results: Sequence[Measured], machine: Mapping[str, Any]) -> str:
    """Returns a table, and how it was measured."""
    head = ["model", "backbone", "data", "input", "ms per image: median (quartiles)", *METRICS]
    rows = []
    for result in results:
        subject, metrics = result.subject, result.metrics or {}
        height, width = result.shape
        row = [subject.name, subject.backbone, subject.dataset]
        row.append(f"{height} x {width}, {subject.cfg.TEST.DTYPE}")
        low, middle, high = map(_three_digits, result.quartiles())
        row.append(f"{middle} ({low} to {high})")
        rows.append([*row, *(f"{metrics[key]:.1f}" if metrics else "" for key in METRICS)])
    note = (
        f"{machine['device']}, {machine['threads']} CPU threads, torch {machine['torch']}; "
        f"{len(results[0].times)} runs of each model, in turn, one image at a time."
    )
    return f"{markdown_table(head, rows)}\n\n{note}\n"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def draw(results: Sequence[Measured], machine: Mapping[str, Any]) -> Figure:
    """Draws the models whose AP is known left, and the paper's figure 2 right.

    Models of one backbone are joined by a line if they differ in image size.
    """
    points, shapes = [], dict[str, list[tuple[int, int]]]()
    known = [result for result in results if result.metrics]
    for result in known:
        low, middle, high = result.quartiles()
        name, backbone = result.subject.name, result.subject.backbone
        ap = result.metrics["AP"] if result.metrics else 0.0
        points.append(Point(backbone, middle, ap, name, (middle - low, high - middle)))
        shapes.setdefault(backbone, []).append(result.shape)
    figure = Figure(figsize=(14, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(left, points, [x for x, own in shapes.items() if len(set(own)) == len(own) > 1])
    data = ", ".join(sorted({result.subject.dataset for result in known})) or "no AP known"
    left.set_title(f"Here: {data}, {machine['device']}")
    left.set_xlabel("milliseconds per image: median and quartiles")
    draw_paper(right)
    figure.suptitle("Machines and data differ: compare shapes, not numbers", size=13)
    return figure
