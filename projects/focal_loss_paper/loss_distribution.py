r"""Draws which samples hold a trained model's loss, for several gammas: figure 4 of the paper.

    python -m projects.focal_loss_paper loss-distribution \
        --config-file configs/quickstart.yaml --weights output/quickstart/model_final.pth

Runs the model once over a dataset, and writes loss_distribution.png, .csv (the curves) and .json
(the shares of the hardest samples).

The paper samples probabilities of positive and negative windows, computes the focal loss of each
for several gammas, sorts, and asks which share of the sum the hardest hold. Here a sample is one
binary problem, a logit: a positive is an assigned anchor's logit of its own class, and all other
logits of anchors that are not ignored are negatives. The training loss sums their losses.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from retinanet_plugin.command_line import (
    add_config_file,
    add_device,
    add_output,
    add_overrides,
    add_weights,
    dataset_names,
    parse,
    positive_int,
)
from retinanet_plugin.config import get_config
from retinanet_plugin.engine import SafeCheckpointer, Trainer
from retinanet_plugin.engine.setup import check_weights, prepare_evaluation
from retinanet_plugin.errors import UserError
from retinanet_plugin.evaluation.validation_loss import mapper_with_truth
from retinanet_plugin.losses import SparseTargets
from retinanet_plugin.modeling import FocalRetinaNet
from retinanet_plugin.utils import (
    markdown_table,
    output_files,
    spread,
    write_csv,
    write_figure,
    write_json,
)

from .common import hide_frame, numbers, paper_parser
from .loss_histogram import LossHistogram

PAPER_GAMMAS = [0.0, 0.5, 1.0, 2.0]
HARDEST = (0.01, 0.1, 0.2)  # fractions of the samples
_MAX_GAMMA = 20  # the losses of the easiest samples are still float64 numbers


@dataclass
class LossDistribution:
    """The losses of all samples of a dataset.

    Args:
        positives, negatives: the samples.
        images, ignored_anchors: how many there were.
    """

    positives: LossHistogram
    negatives: LossHistogram
    images: int = 0
    ignored_anchors: int = 0

    @property
    def sides(self) -> dict[str, LossHistogram]:
        """Positives and negatives by name."""
        return {"positives": self.positives, "negatives": self.negatives}

    def report(self) -> dict[str, Any]:
        """Returns all numbers except the curves, as JSON."""
        report: dict[str, Any] = {"images": self.images, "ignored_anchors": self.ignored_anchors}
        for name, side in self.sides.items():
            gammas = [
                {
                    "gamma": gamma,
                    "sum_of_losses": side.total(gamma),
                    "held_by_hardest": {f"{x:g}": side.hardest(gamma, x) for x in HARDEST},
                }
                for gamma in side.gammas
            ]
            report[name] = {"samples": side.count, "gammas": gammas}
        return report

    def table(self) -> str:
        """Returns the shares of the hardest samples in Markdown."""
        rows = [
            [f"{side.count:,} {name}", f"{gamma:g}"]
            + [f"{side.hardest(gamma, share):.1%}" for share in HARDEST]
            for name, side in self.sides.items()
            for gamma in side.gammas
        ]
        return markdown_table(["samples", "gamma", *(f"hardest {x:.0%}" for x in HARDEST)], rows)

    def curves(self) -> dict[str, np.ndarray]:
        """Returns columns: fractions of the samples, finer towards 1, and the shares they hold."""
        tail = 1 - np.logspace(-2, -6, 81)
        fractions = np.unique(np.concatenate([np.linspace(0, 1, 1001), tail]))
        columns = {"fraction": fractions}
        for name, side in self.sides.items():
            for gamma in side.gammas:
                columns[f"{name} gamma={gamma:g}"] = side.cumulative(gamma, fractions)
        return columns


@torch.no_grad()
def measure(
    model: FocalRetinaNet, batches: Iterable[list[dict[str, Any]]], gammas: Sequence[float]
) -> LossDistribution:
    """Computes the losses of all samples of a dataset.

    The model is put into eval mode: norms use their running statistics and do not change them.

    Args:
        model: trained.
        batches: images with ``instances``, as detectron2's mapper gives them for training.
        gammas: of the focal losses to compare.

    Raises:
        UserError: for logits that are not finite, or if there is no positive.
    """
    model.eval()
    distribution = LossDistribution(
        LossHistogram(gammas, model.device), LossHistogram(gammas, model.device)
    )
    for batch in batches:
        levels = model.backbone(model.preprocess_image(batch).tensor)
        features = [levels[f] for f in model.head_in_features]
        logits, _ = model.head(features)
        targets = model.label_anchors(features, [x["instances"] for x in batch])
        positives, negatives = select_samples(logits, targets, model.num_classes)
        if not all(x.isfinite().all() for x in (positives, negatives)):
            raise UserError(
                f"MODEL.WEIGHTS: logits are not finite in {batch[0].get('file_name', 'an image')}; "
                "training has diverged; use an earlier checkpoint."
            )
        distribution.positives.add(-positives)
        distribution.negatives.add(negatives)
        distribution.images += len(batch)
        distribution.ignored_anchors += len(targets.ignored_anchor)
    if not distribution.positives.count:
        raise UserError(
            f"--num-images: none of the {distribution.images} images has a positive anchor; give a "
            "larger number."
        )
    return distribution


def select_samples(
    logits: Sequence[Tensor], targets: SparseTargets, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Selects the logits that the class loss sums over.

    Args:
        logits: per level, (N, A*K, H, W).

    Returns:
        positives, (P,): each assigned anchor's logit of its own class; negatives, (n,): all other
        logits of anchors that are not ignored.
    """
    x = torch.cat(
        [
            level.unflatten(1, (-1, num_classes)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            for level in logits
        ],
        dim=1,
    )  # (N, R, K)
    device = x.device
    own = tuple(i.to(device) for i in (targets.image, targets.anchor, targets.gt_class))
    ignored = tuple(i.to(device) for i in (targets.ignored_image, targets.ignored_anchor))
    is_negative = torch.ones_like(x, dtype=torch.bool)
    is_negative[own] = False
    is_negative[ignored] = False
    return x[own], x[is_negative]


def draw(distribution: LossDistribution) -> Figure:
    """Draws the paper's two plots, and the hardest negatives again on a logarithmic scale."""
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    *both, right = figure.subplots(1, 3)
    gammas = distribution.positives.gammas
    colors = colormaps["viridis"](np.linspace(0, 0.84, len(gammas)))
    for axes, (name, side) in zip(both, distribution.sides.items(), strict=True):
        for gamma, color in zip(gammas, colors, strict=True):
            label = f"$\\gamma$ = {gamma:g}"
            axes.plot(*side.curve(gamma), color=color, linewidth=2, label=label)
        axes.set_xlim(0, 1.01)
        axes.set_xlabel(f"fraction of {side.count:,} {name}, easiest first")
        axes.legend(frameon=False, loc="upper left")
        ends = dict.fromkeys((min(gammas), max(gammas)))
        held = [f"{side.hardest(gamma, 0.1):.0%} ($\\gamma$ = {gamma:g})" for gamma in ends]
        axes.set_title(f"The hardest 10% of {name} hold\n{' and '.join(held)} of their loss")
    for gamma, color in zip(gammas, colors, strict=True):
        fractions, shares = distribution.negatives.curve(gamma)
        kept = fractions < 1
        right.plot(1 - fractions[kept], 1 - shares[kept], color=color, linewidth=2)
    for share in HARDEST:
        right.axvline(share, color="#c8ced3", linewidth=1, zorder=0)
    right.set_xscale("log")
    right.set_xlim(1e-5, 1)
    right.set_xlabel("fraction of negatives, hardest first (logarithmic)")
    right.set_title("The hardest negatives\n(grey: 1%, 10% and 20%)")
    for axes in (*both, right):
        axes.set_ylabel("share of their loss")
        axes.set_ylim(0, 1.01)
        hide_frame(axes)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = paper_parser("loss-distribution", __doc__, "[options] [KEY VALUE ...]")
    add_config_file(parser)
    add_weights(parser, required=False)
    parser.add_argument("--dataset", default="test", help="train, test or a name; default: test")
    parser.add_argument(
        "--num-images", type=positive_int, help="number of images, evenly spaced; default: all"
    )
    parser.add_argument(
        "--gammas",
        type=numbers,
        default=PAPER_GAMMAS,
        help="gammas to compare; default: 0,0.5,1,2",
    )
    add_output(parser, "default: OUTPUT_DIR/loss_distribution")
    add_device(parser)
    add_overrides(parser)
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Measures the distribution and writes it."""
    parsed = parse(_parser(), args)
    gammas = sorted(set(parsed.gammas))
    if not 0 <= gammas[0] <= gammas[-1] <= _MAX_GAMMA:
        raise UserError(f"--gammas: {parsed.gammas}; give numbers from 0 to {_MAX_GAMMA}.")
    cfg = _prepare(parsed)
    folder = parsed.output or Path(cfg.OUTPUT_DIR, "loss_distribution")
    files = [f"loss_distribution.{suffix}" for suffix in ("png", "csv", "json")]
    figure, table, report = output_files(folder, files, overwrite=parsed.overwrite)
    batches = load_batches(cfg, parsed.num_images)
    model = Trainer.build_model(cfg)
    if not isinstance(model, FocalRetinaNet):
        raise UserError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE}, but this needs "
            "FocalRetinaNet, which loads weights of detectron2's RetinaNet too."
        )
    SafeCheckpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    distribution = measure(model, tqdm(batches, desc="images"), gammas)
    write_figure(figure, draw(distribution))
    curves = distribution.curves()
    write_csv(table, {name: column.tolist() for name, column in curves.items()})
    about = {"config": parsed.config_file, "weights": cfg.MODEL.WEIGHTS}
    write_json(report, {**about, "datasets": list(cfg.DATASETS.TEST), **distribution.report()})
    print(f"{distribution.table()}\n\n{figure}\n{table}\n{report}")


def _prepare(parsed: argparse.Namespace) -> CfgNode:
    """Returns the checked config; ``DATASETS.TEST`` is what ``--dataset`` names."""
    weights = ["MODEL.WEIGHTS", parsed.weights] if parsed.weights else []
    cfg = get_config(parsed.config_file, [*parsed.opts, *weights])
    check_weights(cfg, training=False, resume=False)
    prepare_evaluation(
        cfg,
        training=parsed.dataset == "train",
        choose=lambda: dataset_names(cfg, parsed.dataset),
    )
    cfg.freeze()
    return cfg


def load_batches(cfg: CfgNode, num_images: int | None) -> Any:
    """Loads test images with ground truth, one per batch, resized as in evaluation."""
    entries = [x for name in cfg.DATASETS.TEST for x in DatasetCatalog.get(name)]
    if not entries or any("annotations" not in x for x in entries):
        raise UserError(f"--dataset: {', '.join(cfg.DATASETS.TEST)} has no annotations.")
    return build_detection_test_loader(
        dataset=spread(entries, num_images or len(entries)),
        mapper=mapper_with_truth(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
