"""Runs of the whole network: training steps and inference."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from detectron2.solver import build_optimizer
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ...engine.amp import autocast
from .measure import Run
from .models import Bench, torchvision_images, torchvision_targets

Check: TypeAlias = tuple[str, bool]  # what was compared, and whether it agrees
Losses: TypeAlias = dict[str, Tensor]


def forget_average(model: nn.Module) -> None:
    """Resets detectron2's moving average of positives to its initial value."""
    vars(model).pop("loss_normalizer", None)


def total(values: Losses) -> Tensor:
    """Returns the sum of the losses."""
    return torch.stack(list(values.values())).sum()


def numbers(values: Losses) -> dict[str, float]:
    """Returns the losses as numbers."""
    return {name: value.item() for name, value in values.items()}


def training_step(bench: Bench, side: str, dtype: torch.dtype) -> Run:
    """Returns the run of a training step: forward, backward and the optimizer's update.

    The learning rate is 0 and statistics do not move, so all runs have the same weights.
    """
    model = getattr(bench, side)
    inputs: list[Any] = [bench.inputs]
    if side == "torchvision":
        images = torchvision_images(bench.inputs, bench.device)
        inputs = [images, torchvision_targets(bench.inputs, bench.device)]
    optimizer = build_optimizer(bench.setting.cfg("SOLVER.BASE_LR", "0.0"), model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0

    def run(_: None) -> Losses:
        with EventStorage():
            with autocast(bench.device.type, dtype):
                if side == "detectron2":
                    forget_average(model)
                elif side == "ours":
                    model.loss_normalizer.fill_(100.0)  # detectron2's initial value
                values: Losses = model(*inputs)
            optimizer.zero_grad()
            total(values).backward()
            optimizer.step()
        return values

    def observe(values: Losses) -> dict[str, float]:
        norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
        return {**numbers(values), "gradient norm": torch.stack(norms).norm().item()}

    return Run(run, lambda: model.train() and None, observe, network=model)


def inference(bench: Bench, side: str, dtype: torch.dtype) -> Run:
    """Returns the run of inference, from images in memory to detections."""
    variants = {torch.float32: "ours_inference", torch.bfloat16: "ours_half_inference"}
    model = getattr(bench, variants[dtype] if side == "ours" else side).eval()
    inputs: Sequence[Any] = bench.inputs
    if side == "torchvision":
        inputs = torchvision_images(bench.inputs, bench.device)

    @torch.no_grad()
    def run(_: None) -> Any:
        with autocast(bench.device.type, dtype):
            return model(inputs)

    return Run(run, network=model)


# ---------------------------------------------------------------- comparisons of theirs and ours


def compare_overlap(
    theirs: list[dict[str, Instances]], ours: list[dict[str, Instances]]
) -> list[Check]:
    """Checks how many of their detections we have too: the same class, and nearly the same box.

    One in fifty, plus one, may differ: scores next to each other or to the threshold.
    """
    count = matched = 0
    for their_output, our_output in zip(theirs, ours, strict=True):
        a, b = their_output["instances"], our_output["instances"]
        if len(a) and len(b):
            same = a.pred_classes[:, None] == b.pred_classes
            near = pairwise_iou(a.pred_boxes, b.pred_boxes) > 0.99
            matched += int((same & near).any(dim=1).sum())
        count += len(a)
    agrees = count - matched <= 1 + count / 50
    return [(f"{matched} of {count} detections the same, IoU above 0.99", agrees)]


def compare_scores(
    theirs: list[dict[str, Instances]], ours: list[dict[str, Instances]]
) -> list[Check]:
    """Compares sorted scores only: in half precision the order of similar scores is random."""
    error = 0.0
    for their_output, our_output in zip(theirs, ours, strict=True):
        a, b = (x["instances"].scores for x in (their_output, our_output))
        error = max(error, *(a[: len(b)] - b[: len(a)]).abs().tolist(), 0.0)
    return [(f"sorted scores: largest difference {error:.1e} (at most 0.05)", error <= 0.05)]


def compare_numbers(
    theirs: Mapping[str, float], ours: Mapping[str, float], tolerance: float
) -> list[Check]:
    return [
        at_most(name, abs(ours[name] - value) / max(abs(value), 1e-12), tolerance)
        for name, value in theirs.items()
    ]


def at_most(name: str, error: float, tolerance: float) -> Check:
    return f"{name}: relative difference {error:.1e} (at most {tolerance:g})", error <= tolerance
