"""Draws milliseconds per image against AP of trained models, beside figure 2 of the paper.

    python -m projects.focal_loss_paper speed-accuracy output/quickstart
    python -m projects.focal_loss_paper speed-accuracy output/ablations/quickstart/e_speed/*/seed_1

A FOLDER is the OUTPUT_DIR of a training run. AP is that of its last evaluation. All models are
timed in turn, as `train --eval-only` runs them: warm, one image of the test set at a time, from the
resized image in memory to its detections. Writes speed_accuracy.png and speed_accuracy.json.

`retinanet evaluate` measures exported models too.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retinanet_plugin.acceleration.memory import keep_freed_memory
from retinanet_plugin.command_line import (
    add_device,
    add_output,
    add_overrides,
    parse,
    positive_int,
    split_overrides,
)
from retinanet_plugin.config import get_config
from retinanet_plugin.engine.setup import prepare_evaluation
from retinanet_plugin.errors import UserError
from retinanet_plugin.evaluation.run_log import METRICS, last_metrics, short_names
from retinanet_plugin.evaluation.timing import (
    describe_machine,
    inference,
    load_images,
    median_shape,
    summarize,
    time_in_turn,
)
from retinanet_plugin.runtimes.network import load_network
from retinanet_plugin.utils import markdown_table, output_files, write_figure, write_json

from .common import hide_frame, paper_parser
from .tables import TABLES

# By backbone, the same in all figures; other backbones take the following colors in order.
_COLORS = {"ResNet-50": "#2a6f97", "ResNet-101": "#b0413e"}
_MORE_COLORS = ("#e0a030", "#6a3d8f", "#4d8b6a", "#1b1b1b", "#8c6d46")


@dataclass
class Model:
    """A trained model and what was measured.

    Args:
        name: for people.
        cfg: its config.
        metrics: AP, AP50 and AP75 in percent, of its last evaluation.
        shape: median height and width of the network's inputs.
        milliseconds: per image, as ``timing.summarize`` returns them.
    """

    name: str
    cfg: CfgNode
    metrics: Mapping[str, float]
    shape: tuple[int, int] = (0, 0)
    milliseconds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """What it is timed on, and was evaluated on."""
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

    def quartiles(self) -> tuple[float, float, float]:
        """Returns the 25th, 50th and 75th percentile of the milliseconds."""
        low, high = self.milliseconds["quartiles"]
        return low, self.milliseconds["median"], high

    def numbers(self) -> dict[str, Any]:
        """Returns all numbers as JSON."""
        return {
            "name": self.name,
            "backbone": self.backbone,
            "weights": self.cfg.MODEL.WEIGHTS,
            "dataset": self.dataset,
            "height": self.shape[0],
            "width": self.shape[1],
            "dtype": self.cfg.TEST.DTYPE,
            "milliseconds": self.milliseconds,
            "metrics": dict(self.metrics),
        }


def _parser() -> argparse.ArgumentParser:
    parser = paper_parser(
        "speed-accuracy", __doc__, "FOLDER [FOLDER ...] [options] [KEY VALUE ...]"
    )
    parser.add_argument(
        "--num-images",
        type=positive_int,
        default=10,
        help="number of images to time; default: 10",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=3, help="timed runs per image; default: 3"
    )
    add_output(parser, "default: output/speed_accuracy")
    add_device(parser)
    add_overrides(parser)
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Times the models, and writes the figure and its numbers."""
    parsed = parse(_parser(), args)
    args, overrides = split_overrides(parsed.opts)
    if not args:
        raise UserError("FOLDER: none given; give the OUTPUT_DIR of a training run.")
    folders = [Path(arg) for arg in args]
    models = [read_run(*x, overrides) for x in zip(folders, short_names(folders), strict=True)]
    folder = parsed.output or Path("output/speed_accuracy")
    files = ["speed_accuracy.png", "speed_accuracy.json"]
    figure, numbers = output_files(folder, files, overwrite=parsed.overwrite)
    measure(models, parsed.num_images, parsed.rounds)
    machine = describe_machine(models[0].cfg.MODEL.DEVICE, torch.get_num_threads())
    write_figure(figure, draw(models, machine))
    write_json(numbers, {"machine": machine, "models": [model.numbers() for model in models]})
    print(f"{markdown(models, machine)}\n{figure}\n{numbers}")


def read_run(folder: Path, name: str, overrides: Sequence[str] = ()) -> Model:
    """Reads config and AP of a training run.

    Raises:
        UserError: if the folder holds no run, or its final checkpoint was not evaluated.
    """
    # One device for all, whatever a run's config.yaml says: a GPU if there is one.
    cfg = get_config(folder / "config.yaml", ["MODEL.DEVICE", "cuda", *overrides])
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    metrics = last_metrics(folder / "metrics.json", cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER)
    if metrics is None:
        raise UserError(
            f"{folder / 'metrics.json'}: no evaluation of the final checkpoint; run "
            "`retinanet train --eval-only` with this OUTPUT_DIR."
        )
    return Model(name, cfg, {key: metrics[key] for key in METRICS})


def measure(models: Sequence[Model], num_images: int, rounds: int) -> None:
    """Loads all models, times them in turn, and sets ``milliseconds`` and ``shape``."""
    networks, images = {}, {}
    for model in models:
        prepare_evaluation(model.cfg)  # here, as own datasets of several models share their names
        keep_freed_memory(model.cfg)
        images[model.name] = load_images(model.cfg, model.dataset, num_images)
        networks[model.name] = inference(load_network(model.cfg)[0], model.cfg)
    count = min(map(len, images.values()))
    inputs = {name: own[:count] for name, own in images.items()}
    device = torch.device(models[0].cfg.MODEL.DEVICE)
    seconds = time_in_turn(networks, inputs, device, rounds)
    for model in models:
        model.shape = median_shape(inputs[model.name])
        model.milliseconds = summarize(seconds[model.name])


def markdown(models: Sequence[Model], machine: Mapping[str, Any]) -> str:
    """Returns a table, and how it was measured."""
    head = ["model", "backbone", "data", "input", "ms per image: median (quartiles)", *METRICS]
    rows = []
    for model in models:
        size = f"{model.shape[0]} x {model.shape[1]}, {model.cfg.TEST.DTYPE}"
        low, middle, high = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in model.quartiles())
        metrics = [f"{model.metrics[key]:.1f}" for key in METRICS]
        times = f"{middle} ({low} to {high})"
        rows.append([model.name, model.backbone, model.dataset, size, times, *metrics])
    note = (
        f"{machine['device']}, {machine['threads']} CPU threads, torch {machine['torch']}; "
        f"{len(models[0].milliseconds['all'])} runs of each model, in turn, one image at a time."
    )
    return f"{markdown_table(head, rows)}\n\n{note}\n"


@dataclass(frozen=True)
class Point:
    """Speed and accuracy in a figure.

    Args:
        x, y: milliseconds per image, and AP.
        label: written beside it.
        size: what distinguishes the points that are joined by a line.
        x_error: from the lower end of the error bar to ``x``, and from there to the upper one.
    """

    x: float
    y: float
    label: str
    size: object
    x_error: tuple[float, float] = (0.0, 0.0)


def draw(models: Sequence[Model], machine: Mapping[str, Any]) -> Figure:
    """Draws the models left, and figure 2 of the paper, from its table 1e, right."""
    figure = Figure(figsize=(14, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ours: dict[str, list[Point]] = {}
    for model in models:
        low, x, high = model.quartiles()
        point = Point(x, model.metrics["AP"], model.name, model.shape, (x - low, high - x))
        ours.setdefault(model.backbone, []).append(point)
    draw_curves(left, ours)
    left.set_title(f"Here: {', '.join(sorted({x.dataset for x in models}))}, {machine['device']}")
    left.set_xlabel("milliseconds per image: median and quartiles")
    table = TABLES["e_speed"]
    paper: dict[str, list[Point]] = {}
    for row in table.rows:
        if row.milliseconds is not None and row.ap is not None:
            side = row.name.rpartition("_")[2]
            point = Point(row.milliseconds, row.ap, side, side)
            paper.setdefault(row.label.split(",")[0], []).append(point)
    draw_curves(right, paper)
    right.set_title(f"The paper (table 1e): {table.data}, Nvidia M40")
    right.set_xlabel("milliseconds per image")
    figure.suptitle("Machines and data differ: compare shapes, not numbers", size=13)
    return figure


def draw_curves(axes: Axes, curves: Mapping[str, Sequence[Point]]) -> None:
    """Draws the points of each backbone, joined by a line if they differ in image size."""
    others = [name for name in curves if name not in _COLORS]
    colors = {**_COLORS, **dict(zip(others, cycle(_MORE_COLORS), strict=False))}
    for i, (backbone, points) in enumerate(curves.items()):
        curve = sorted(points, key=lambda point: point.x)
        joined = len({point.size for point in curve}) == len(curve)
        errors = np.transpose([point.x_error for point in curve])
        axes.errorbar(
            [point.x for point in curve],
            [point.y for point in curve],
            xerr=errors if errors.any() else None,
            fmt="o-" if joined else "o",
            color=colors[backbone],
            capsize=3,
            label=backbone,
            clip_on=False,
        )
        for point in curve:  # labels of one curve lie below it, those of the next one above
            axes.annotate(
                point.label,
                (point.x, point.y),
                xytext=(-5, 5) if i % 2 else (5, -5),
                textcoords="offset points",
                ha="right" if i % 2 else "left",
                va="bottom" if i % 2 else "top",
                size=8,
                color=colors[backbone],
            )
    axes.margins(x=0.14, y=0.14)
    axes.set_ylabel("AP")
    axes.set_xlim(left=max(axes.get_xlim()[0], 0))
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))
    hide_frame(axes)
    axes.grid(color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="best")
