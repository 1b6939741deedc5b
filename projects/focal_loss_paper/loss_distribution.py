"""Which samples hold the loss of a trained model: section 5.1 and figure 4 of the paper.

The paper samples probabilities of positive and negative windows, computes the focal loss of each
for several gammas, sorts, and asks which share of the sum the hardest hold. Here a sample is one
binary problem, a logit: a positive is that of an assigned anchor's own class, all other logits of
anchors that are not ignored are negatives. Their losses are what the training loss sums.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from retinanet_plugin.errors import UserError
from retinanet_plugin.losses import BinaryLoss, FocalLoss, MinedLoss, SparseTargets
from retinanet_plugin.modeling import FocalRetinaNet

PAPER_GAMMAS = (0.0, 0.5, 1.0, 2.0)
HARDEST = (0.01, 0.1, 0.2)  # fractions of the samples
_LIMIT = 64  # logits beyond are counted in the outermost bins: losses of 1e-28, and of 64
_PER_UNIT = 2048  # bins a unit of logit
_BINS = 2 * _LIMIT * _PER_UNIT
_PIECE = 1 << 20  # samples whose losses are computed at a time


class LossHistogram:
    """Focal losses of any number of samples, for several gammas, in 2 MB a gamma.

    For every gamma the loss grows with ``-x_t``, the logit signed so that more is worse. So
    samples are sorted, for all gammas at once, by bins of that: 2,048 a unit, from -64 to 64. Each
    bin holds their number and, for each gamma, the sum of their losses, which is exact; between the
    edges of a bin, cumulated losses are interpolated. Losses within a bin differ by a factor of at
    most ``exp((1 + gamma) / 2048)``, so that a share of the sum is off by at most
    ``(1 + gamma) / 8192`` of what its bin holds: below 0.0004 for gamma 2 were all samples in one.
    :meth:`error` tells the bound for the samples that were seen.

    Args:
        gammas: at least 0 each.
        device: where samples come from.
    """

    def __init__(self, gammas: Sequence[float], device: torch.device | str = "cpu") -> None:
        self.gammas = tuple(gammas)
        self._losses = [FocalLoss(None, gamma) for gamma in gammas]
        self._counts = torch.zeros(_BINS, dtype=torch.int64, device=device)
        self._sums = torch.zeros((len(gammas), _BINS), dtype=torch.float64, device=device)

    def add(self, wrong: Tensor) -> None:
        """Counts samples: their ``-x_t``, finite, of any float dtype, (n,)."""
        for piece in wrong.split(_PIECE):
            x = piece.double()
            bins = ((x + _LIMIT) * _PER_UNIT).long().clamp_(0, _BINS - 1)
            self._counts += torch.bincount(bins, minlength=_BINS)
            for loss, sums in zip(self._losses, self._sums, strict=True):
                sums += torch.bincount(bins, loss.value(x, False), minlength=_BINS)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def total(self, gamma: float) -> float:
        """Sum of the losses, without alpha, in float64."""
        return float(self._sums[self.gammas.index(gamma)].sum())

    def curve(self, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """The cumulated loss over the samples, sorted from the smallest, at the edges of bins.

        Returns:
            fractions of the samples, ascending from 0 to 1; and the share of the loss that so many
            hold.
        """
        used = self._counts > 0
        counts = self._counts[used].cumsum(0).double()
        sums = self._sums[self.gammas.index(gamma)][used].cumsum(0)
        fractions, shares = (
            np.concatenate([[0.0], (x / x[-1]).cpu().numpy()]) for x in (counts, sums)
        )
        return fractions, shares

    def cumulated(self, gamma: float, fractions: np.ndarray) -> np.ndarray:
        """Shares of the loss that the given fractions of the samples, the easiest, hold."""
        return np.interp(fractions, *self.curve(gamma))

    def hardest(self, gamma: float, fraction: float) -> float:
        """The share of the loss that so many of the samples, the hardest, hold."""
        return float(1 - self.cumulated(gamma, np.array(1 - fraction)))

    def error(self, gamma: float) -> float:
        """A bound of what shares are off by, from interpolation.

        Of n losses within [a, b] and their mean, sorted, the straight line is off by the most where
        half are a and half are b: by ``n (b - a) / 4`` in the sum. In the last bin, which has no
        end, by less than ``n (mean - a)``.
        """
        i = self.gammas.index(gamma)
        edges = torch.arange(_BINS + 1, dtype=torch.float64) / _PER_UNIT - _LIMIT
        loss = self._losses[i].value(edges, False)
        loss[0] = 0
        counts, sums = self._counts.cpu().double(), self._sums[i].cpu()
        off = counts * loss.diff() / 4
        off[-1] = sums[-1] - counts[-1] * loss[-2]
        return float(off.max() / sums.sum())


@dataclass
class LossDistribution:
    """What :func:`measure` found.

    Args:
        positives, negatives: the samples.
        pictures, ignored_anchors: how many there were.
        model_loss, summed_loss: of each batch, the model's own ``loss_cls``; and the same as the
            sum of its loss, alpha included, over the samples, divided by the model's normalizer.
            Empty with a loss that chooses among the anchors, which is no such sum.
    """

    positives: LossHistogram
    negatives: LossHistogram
    pictures: int = 0
    ignored_anchors: int = 0
    model_loss: list[float] = field(default_factory=list)
    summed_loss: list[float] = field(default_factory=list)

    def training_loss(self) -> dict[str, float] | None:
        """Both losses, each averaged over the batches, and their relative difference."""
        if not self.model_loss:
            return None
        model, summed = float(np.mean(self.model_loss)), float(np.mean(self.summed_loss))
        return {
            "model": model,
            "summed_over_samples": summed,
            "relative_difference": abs(summed - model) / abs(model),
        }

    def report(self) -> dict[str, Any]:
        """All numbers but the curves, as JSON."""
        sides = {"positives": self.positives, "negatives": self.negatives}
        return {
            "pictures": self.pictures,
            "ignored_anchors": self.ignored_anchors,
            **{
                name: {
                    "samples": side.count,
                    "gammas": [
                        {
                            "gamma": gamma,
                            "sum_of_losses": side.total(gamma),
                            "held_by_hardest": {
                                f"{share:g}": side.hardest(gamma, share) for share in HARDEST
                            },
                            "error_at_most": side.error(gamma),
                        }
                        for gamma in side.gammas
                    ],
                }
                for name, side in sides.items()
            },
            "training_loss": self.training_loss(),
        }

    def table(self) -> str:
        """The shares of the hardest, in Markdown."""
        lines = [
            f"| samples | gamma | {' | '.join(f'hardest {share:.0%}' for share in HARDEST)} |",
            f"| --- | --- |{' --- |' * len(HARDEST)}",
        ]
        for name, side in (("positives", self.positives), ("negatives", self.negatives)):
            for gamma in side.gammas:
                shares = [f"{side.hardest(gamma, share):.1%}" for share in HARDEST]
                lines.append(f"| {side.count:,} {name} | {gamma:g} | {' | '.join(shares)} |")
        return "\n".join(lines)


@torch.no_grad()
def measure(
    model: FocalRetinaNet, batches: Iterable[list[dict[str, Any]]], gammas: Sequence[float]
) -> LossDistribution:
    """Looks at all samples of the pictures once.

    The model is put into evaluation: norms use their running averages, and stay as they are.

    Args:
        model: trained; its ``head.cls_loss`` is what it is trained with.
        batches: pictures with ``instances``, as detectron2's mapper gives them for training.
        gammas: of the focal losses to compare.

    Raises:
        UserError: for logits that are not finite or boxes of classes beyond the model's, or where
            there is no positive.
    """
    model.eval()
    found = LossDistribution(
        LossHistogram(gammas, model.device), LossHistogram(gammas, model.device)
    )
    for batch in batches:
        images = model.preprocess_image(batch)
        levels = model.backbone(images.tensor)
        features = [levels[f] for f in model.head_in_features]
        predictions = model.head(features)
        gt_instances = [x["instances"] for x in batch]
        losses = model.forward_training(images, features, predictions, gt_instances)
        targets = model.label_anchors(features, gt_instances)
        positives, negatives = samples(predictions[0], targets, model.num_classes)
        if not all(x.isfinite().all() for x in (positives, negatives)):
            raise UserError(
                f"MODEL.WEIGHTS: logits of {batch[0].get('file_name', 'a picture')} are not "
                "finite, so the model has diverged; give a checkpoint from before that."
            )
        found.positives.add(-positives)
        found.negatives.add(negatives)
        found.pictures += len(batch)
        found.ignored_anchors += len(targets.ignored_anchor)
        if not isinstance(model.head.cls_loss, MinedLoss):
            total = _sum(model.head.cls_loss.binary, positives, True)
            total += _sum(model.head.cls_loss.binary, negatives, False)
            found.model_loss.append(float(losses["loss_cls"]))
            found.summed_loss.append(total / _normalizer(model, targets))
    if not found.positives.count:
        raise UserError(
            f"the {found.pictures} pictures have no anchor assigned to a box, so there are no "
            "positives to look at; give more pictures, or others."
        )
    return found


def samples(
    logits: Sequence[Tensor], targets: SparseTargets, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The logits that the class loss sums over.

    Args:
        logits: a tensor a level, (N, A*K, H, W).

    Returns:
        positives, (P,): of each assigned anchor that of its class; negatives, (n,): all others of
        anchors that are not ignored.
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


def _sum(loss: BinaryLoss, logits: Tensor, positive: bool) -> float:
    return sum(float(loss.value(x.double(), positive).sum()) for x in logits.split(_PIECE))


def _normalizer(model: FocalRetinaNet, targets: SparseTargets) -> float:
    """What the model has just divided its loss by."""
    if model.normalize_by == "ema":
        return float(model.loss_normalizer)
    return max(targets.num_positives, 1)


def curves(found: LossDistribution) -> dict[str, np.ndarray]:
    """Columns: fractions of the samples, finer towards 1, and the share that so many hold."""
    tail = 1 - np.logspace(-2, -6, 81)
    fractions = np.unique(np.concatenate([np.linspace(0, 1, 1001), tail]))
    columns = {"fraction": fractions}
    for name, side in (("positives", found.positives), ("negatives", found.negatives)):
        for gamma in side.gammas:
            columns[f"{name} gamma={gamma:g}"] = side.cumulated(gamma, fractions)
    return columns


def draw(found: LossDistribution) -> Figure:
    """The paper's two charts, and the hardest negatives again on a logarithmic scale."""
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    gammas = found.positives.gammas
    colours = dict(
        zip(gammas, colormaps["viridis"](np.linspace(0, 0.84, len(gammas))), strict=True)
    )
    sides = ((left, found.positives, "positives"), (middle, found.negatives, "negatives"))
    for axes, side, name in sides:
        for gamma in gammas:
            axes.plot(
                *side.curve(gamma),
                color=colours[gamma],
                linewidth=2,
                label=f"$\\gamma$ = {gamma:g}",
            )
        axes.set_xlim(0, 1.01)
        axes.set_xlabel(f"fraction of {side.count:,} {name}, easiest first")
        axes.set_ylabel("share of the loss that they hold")
        axes.legend(frameon=False, loc="upper left")
    _draw_hardest(right, found.negatives, colours)
    for axes in (left, middle, right):
        axes.set_ylim(0, 1.01)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title(_title("positives", found.positives))
    middle.set_title(_title("negatives", found.negatives))
    return figure


def _title(name: str, side: LossHistogram) -> str:
    ends = dict.fromkeys((min(side.gammas), max(side.gammas)))
    shares = [f"{side.hardest(gamma, 0.1):.0%} at $\\gamma$ = {gamma:g}" for gamma in ends]
    return f"Of the loss of {name}, the hardest 10%\nhold {', '.join(shares)}"


def _draw_hardest(axes: Axes, side: LossHistogram, colours: dict[float, Any]) -> None:
    for gamma, colour in colours.items():
        fractions, shares = side.curve(gamma)
        kept = fractions < 1
        axes.plot(1 - fractions[kept], 1 - shares[kept], color=colour, linewidth=2)
    for share in HARDEST:
        axes.axvline(share, color="#c8ced3", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(1e-5, 1)
    axes.set_xlabel("fraction of negatives, hardest first (logarithmic)")
    axes.set_ylabel("share of the loss that they hold")
    axes.set_title("The hardest negatives alone\n(grey: 1%, 10% and 20%)")
