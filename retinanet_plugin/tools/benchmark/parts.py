"""What is compared: each part of a detector, and how each of the three does it."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from types import ModuleType
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from detectron2.modeling.meta_arch import retinanet as detectron2_retinanet
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K
from detectron2.solver import build_optimizer
from detectron2.structures import ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList as TorchvisionImageList
from torchvision.ops import box_iou

from ...engine.amp import autocast
from ...losses import SparseTargets
from ...modeling import head as our_head
from .measure import Rates, Run
from .models import SHARE_ABOVE, Bench, Setting, torchvision_images, torchvision_targets

Check: TypeAlias = tuple[str, bool]  # what was compared, and whether it agrees
Losses: TypeAlias = dict[str, Tensor]
Outputs: TypeAlias = tuple[list[Tensor], list[Tensor]]  # logits and deltas, a tensor a level


@dataclass(frozen=True)
class Part:
    """A comparison.

    Args:
        title: for people.
        sides: how each detector does it, by the detector's name.
        compare: what of detectron2's and ours, in this order, agrees.
        floor: seconds that the machine needs at least, from its rates, the number of logits and
            the multiplications of the network.
        whole: the memory counted is the detector's too, not of the run alone.
        needs: bytes that the others take, roughly: more than there are is not tried.
        float32: name of the part that does the same in float32.
    """

    title: str
    sides: Mapping[str, Callable[[Bench], Run]]
    compare: Callable[[Any, Any], list[Check]]
    floor: Callable[[Rates, int, int], float] | None = None
    whole: bool = False
    needs: Callable[[Setting], float] = lambda setting: 0.0
    float32: str | None = None


def random_outputs(bench: Bench, memory_format: torch.memory_format) -> Outputs:
    """What a head gives for a batch; ``SHARE_ABOVE`` of the logits score above the threshold."""
    setting = bench.setting
    score = setting.cfg().MODEL.RETINANET.SCORE_THRESH_TEST
    mean = math.log(score / (1 - score)) - NormalDist().inv_cdf(1 - SHARE_ABOVE)
    generator = torch.Generator().manual_seed(0)

    def normal(channels: int, shape: tuple[int, int]) -> Tensor:
        channels *= setting.anchors_a_place
        return torch.randn(setting.batch, channels, *shape, generator=generator)

    def place(x: Tensor) -> Tensor:
        return x.to(bench.device).contiguous(memory_format=memory_format)

    shapes = setting.level_shapes
    logits = [place(normal(setting.num_classes, shape).add_(mean)) for shape in shapes]
    return logits, [place(normal(4, shape).mul_(0.2)) for shape in shapes]


def features_of(bench: Bench) -> list[Tensor]:
    """Tensors of the feature levels' heights and widths: anchors depend on no more."""
    setting = bench.setting
    return [torch.empty(setting.batch, 1, *s, device=bench.device) for s in setting.level_shapes]


def truths_of(bench: Bench) -> list[Instances]:
    return [p["instances"].to(bench.device) for p in bench.pictures]


# Losses, forward and backward, from what a head gives.


def _loss_run(losses: Callable[[], Losses], *outputs: list[Tensor]) -> Run:
    leaves = [x.requires_grad_() for part in outputs for x in part]

    def clear() -> None:
        for x in leaves:
            x.grad = None

    def run(_: None) -> Losses:
        values = losses()
        _sum(values).backward()
        return values

    def observe(values: Losses) -> tuple[dict[str, float], list[Tensor | None]]:
        return _numbers(values), [x.grad for x in leaves]

    return Run(run, clear, observe)


def _detectron2_loss(bench: Bench) -> Run:
    model = bench.detectron2
    outputs = random_outputs(bench, torch.contiguous_format)
    anchors = model.anchor_generator(features_of(bench))
    labels, boxes = model.label_anchors(anchors, truths_of(bench))

    def losses() -> Losses:
        _forget_average(model)
        logits, deltas = model._transpose_dense_predictions(outputs, [model.num_classes, 4])
        with EventStorage():
            values: Losses = model.losses(anchors, logits, labels, deltas, boxes)
        return values

    return _loss_run(losses, *outputs)


def _detectron2_class_loss(bench: Bench) -> Run:
    model = bench.detectron2
    outputs, _ = random_outputs(bench, torch.contiguous_format)
    anchors = model.anchor_generator(features_of(bench))
    labels, boxes = model.label_anchors(anchors, truths_of(bench))

    def losses() -> Losses:
        _forget_average(model)
        (logits,) = model._transpose_dense_predictions([outputs], [model.num_classes])
        with EventStorage(), _no_box_loss(detectron2_retinanet, "_dense_box_regression_loss"):
            values = model.losses(anchors, logits, labels, [], boxes)
        return {"loss_cls": values["loss_cls"]}

    return _loss_run(losses, outputs)


def _torchvision_loss(bench: Bench, *, class_alone: bool = False) -> Run:
    head = bench.torchvision.head
    outputs = random_outputs(bench, torch.contiguous_format)
    anchors = _torchvision_anchors(bench)
    targets = torchvision_targets(bench.pictures, bench.device)
    matches = _torchvision_labels(bench).run(None)

    def joined(part: list[Tensor], channels: int) -> Tensor:
        return torch.cat([permute_to_N_HWA_K(x, channels) for x in part], dim=1)

    def losses() -> Losses:
        named = {"cls_logits": joined(outputs[0], bench.setting.num_classes)}
        if class_alone:
            value: Tensor = head.classification_head.compute_loss(targets, named, matches)
            return {"classification": value}
        named["bbox_regression"] = joined(outputs[1], 4)
        values: Losses = head.compute_loss(targets, named, anchors, matches)
        return values

    return _loss_run(losses, *outputs[: 1 if class_alone else 2])


def _our_loss(bench: Bench) -> Run:
    losses, outputs = _our_losses(bench, bench.ours)
    return _loss_run(losses, *outputs)


def _our_class_loss(bench: Bench, *, compiled: bool = False) -> Run:
    both, outputs = _our_losses(bench, bench.ours_compiled_loss if compiled else bench.ours)

    def losses() -> Losses:
        with _no_box_loss(our_head, "box_regression_loss"):
            return {"loss_cls": both()["loss_cls"]}

    return _loss_run(losses, outputs[0])


def _our_losses(bench: Bench, model: Any) -> tuple[Callable[[], Losses], Outputs]:
    outputs = random_outputs(bench, torch.channels_last)
    targets = our_targets(model, features_of(bench), truths_of(bench))
    # detectron2's moving average after one step.
    normalizer = torch.tensor(0.9 * 100 + 0.1 * max(targets.num_positives, 1), device=bench.device)
    return lambda: model.head.losses(outputs, targets, normalizer), outputs


def _no_box_loss(module: ModuleType, name: str) -> AbstractContextManager[Any]:
    """Leaves the class loss in a function that computes both."""
    return patch.object(module, name, lambda *_, **__: 0.0)


def _compare_losses(theirs: Any, ours: Any) -> list[Check]:
    errors = [
        (a - b).abs().max().item() / max(b.abs().max().item(), 1e-12)
        for a, b in zip(ours[1], theirs[1], strict=True)
    ]
    return [*_compare_numbers(theirs[0], ours[0], 1e-4), _at_most("gradients", max(errors), 1e-4)]


# Which anchors train towards which box.


def our_targets(
    model: Any, features: Sequence[Tensor], truths: Sequence[Instances]
) -> SparseTargets:
    targets: SparseTargets = model.assigner(model._host_anchors(features), truths)
    return targets


def _detectron2_labels(bench: Bench) -> Run:
    model = bench.detectron2
    anchors, truths = model.anchor_generator(features_of(bench)), truths_of(bench)

    def observe(result: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
        labels, boxes = (torch.stack(x).cpu() for x in result)
        chosen = torch.where((labels >= 0) & (labels < model.num_classes))
        return [*chosen, labels[chosen], boxes[chosen], *torch.where(labels == -1)]

    return Run(lambda _: model.label_anchors(anchors, truths), observe=observe)


def _torchvision_anchors(bench: Bench) -> list[Tensor]:
    setting = bench.setting
    size = (setting.height, setting.width)
    pictures = torch.empty(setting.batch, 3, *size, device=bench.device)
    images = TorchvisionImageList(pictures, [size] * setting.batch)
    anchors: list[Tensor] = bench.torchvision.anchor_generator(images, features_of(bench))
    return anchors


def _torchvision_labels(bench: Bench) -> Run:
    matcher, anchors = bench.torchvision.proposal_matcher, _torchvision_anchors(bench)
    targets = torchvision_targets(bench.pictures, bench.device)
    pairs = list(zip(targets, anchors, strict=True))
    return Run(lambda _: [matcher(box_iou(t["boxes"], a)) for t, a in pairs])


def _our_labels(bench: Bench) -> Run:
    model, features = bench.ours, features_of(bench)
    truths = [p["instances"] for p in bench.pictures]  # where the data loader leaves them

    def observe(targets: SparseTargets) -> list[Tensor]:
        chosen = [targets.image, targets.anchor, targets.gt_class, targets.gt_box]
        return [x.cpu() for x in (*chosen, targets.ignored_image, targets.ignored_anchor)]

    return Run(lambda _: our_targets(model, features, truths), observe=observe)


def _compare_labels(theirs: list[Tensor], ours: list[Tensor]) -> list[Check]:
    same = all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
    return [
        (f"the same {len(theirs[0]):,} positives, their boxes, {len(theirs[4]):,} ignored", same)
    ]


# Detections from what a head gives.


def _decoding(bench: Bench, model: Any, memory_format: torch.memory_format) -> Run:
    outputs, features = random_outputs(bench, memory_format), features_of(bench)
    sizes = [(bench.setting.height, bench.setting.width)] * bench.setting.batch
    images = ImageList(torch.empty(0), sizes)

    @torch.no_grad()
    def run(given: list[list[Tensor]]) -> list[Instances]:
        found: list[Instances] = model.forward_inference(images, features, given)
        return found

    # Copies: detectron2 turns logits into scores where they are.
    return Run(run, lambda: [[x.clone() for x in part] for part in outputs])


def _torchvision_decoding(bench: Bench) -> Run:
    model, outputs = bench.torchvision, random_outputs(bench, torch.contiguous_format)
    sizes = [(bench.setting.height, bench.setting.width)] * bench.setting.batch
    a_level = [x.shape[1] // 4 * x.shape[2] * x.shape[3] for x in outputs[1]]
    anchors = [list(x.split(a_level)) for x in _torchvision_anchors(bench)]

    @torch.no_grad()
    def run(_: None) -> Any:
        logits, deltas = (
            [permute_to_N_HWA_K(x, k) for x in part]
            for part, k in zip(outputs, (bench.setting.num_classes, 4), strict=True)
        )
        named = {"cls_logits": logits, "bbox_regression": deltas}
        return model.postprocess_detections(named, anchors, sizes)

    return Run(run)


def _compare_detections(theirs: list[Instances], ours: list[Instances]) -> list[Check]:
    same = all(
        torch.equal(a.pred_classes, b.pred_classes)
        and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        and torch.allclose(a.scores, b.scores, rtol=1e-6, atol=0)
        for a, b in zip(theirs, ours, strict=True)
    )
    return [(f"the same {sum(map(len, theirs)):,} detections in the same order", same)]


# The step of training: forward, backward, and the optimizer's update.


def _step(bench: Bench, model: nn.Module, dtype: torch.dtype, losses: Callable[[], Losses]) -> Run:
    # Nothing moves, so that all runs have the same weights and statistics; the work is the same.
    optimizer = build_optimizer(bench.setting.cfg("SOLVER.BASE_LR", "0.0"), model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0

    def run(_: None) -> Losses:
        with EventStorage():
            with autocast(bench.device.type, dtype):
                values = losses()
            optimizer.zero_grad()
            _sum(values).backward()
            optimizer.step()
        return values

    def observe(values: Losses) -> dict[str, float]:
        norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
        return {**_numbers(values), "gradient norm": torch.stack(norms).norm().item()}

    return Run(run, lambda: model.train() and None, observe, network=model)


def _detectron2_step(bench: Bench, dtype: torch.dtype) -> Run:
    model = bench.detectron2

    def losses() -> Losses:
        _forget_average(model)
        values: Losses = model(bench.pictures)
        return values

    return _step(bench, model, dtype, losses)


def _our_step(bench: Bench, dtype: torch.dtype) -> Run:
    model = bench.ours

    def losses() -> Losses:
        model.loss_normalizer.fill_(100.0)
        values: Losses = model(bench.pictures)
        return values

    return _step(bench, model, dtype, losses)


def _torchvision_step(bench: Bench, dtype: torch.dtype) -> Run:
    model = bench.torchvision
    images = torchvision_images(bench.pictures, bench.device)
    targets = torchvision_targets(bench.pictures, bench.device)
    return _step(bench, model, dtype, lambda: model(images, targets))


# Inference: from pictures to detections.


def inference(
    device: torch.device, model: Callable[..., Any], dtype: torch.dtype, given: Sequence[Any]
) -> Run:
    """The detections in a batch by a model in evaluation mode."""

    @torch.no_grad()
    def run(_: None) -> Any:
        with autocast(device.type, dtype):
            return model(given)

    return Run(run, network=model if isinstance(model, nn.Module) else None)


def _our_inference(bench: Bench, dtype: torch.dtype) -> Run:
    half = dtype is torch.bfloat16
    model = bench.ours_half_inference if half else bench.ours_inference
    return inference(bench.device, model.eval(), dtype, bench.pictures)


def _detectron2_inference(bench: Bench, dtype: torch.dtype) -> Run:
    return inference(bench.device, bench.detectron2.eval(), dtype, bench.pictures)


def _torchvision_inference(bench: Bench, dtype: torch.dtype) -> Run:
    images = torchvision_images(bench.pictures, bench.device)
    return inference(bench.device, bench.torchvision.eval(), dtype, images)


def _compare_found(
    theirs: list[dict[str, Instances]], ours: list[dict[str, Instances]]
) -> list[Check]:
    """How many of theirs ours has too, of the same class and nearly the same box.

    One in fifty, and one more, may differ: scores next to each other or to the threshold.
    """
    total = again = 0
    for their_picture, our_picture in zip(theirs, ours, strict=True):
        a, b = their_picture["instances"], our_picture["instances"]
        if len(a) and len(b):
            same = a.pred_classes[:, None] == b.pred_classes
            near = pairwise_iou(a.pred_boxes, b.pred_boxes) > 0.99
            again += int((same & near).any(dim=1).sum())
        total += len(a)
    missing = total - again
    return [(f"{again} of {total} detections again, IoU above 0.99", missing <= 1 + total / 50)]


def _compare_scores(
    theirs: list[dict[str, Instances]], ours: list[dict[str, Instances]]
) -> list[Check]:
    """For half precision, in which the order of near scores is chance."""
    error = 0.0
    for their_picture, our_picture in zip(theirs, ours, strict=True):
        a, b = (x["instances"].scores for x in (their_picture, our_picture))
        error = max(error, *(a[: len(b)] - b[: len(a)]).abs().tolist(), 0.0)
    return [(f"falling scores: largest difference {error:.1e} (at most 0.05)", error <= 0.05)]


def _compare_numbers(
    theirs: Mapping[str, float], ours: Mapping[str, float], tolerance: float
) -> list[Check]:
    return [
        _at_most(name, abs(ours[name] - value) / max(abs(value), 1e-12), tolerance)
        for name, value in theirs.items()
    ]


def _at_most(name: str, error: float, tolerance: float) -> Check:
    return f"{name}: relative difference {error:.1e} (at most {tolerance:g})", error <= tolerance


def _numbers(values: Losses) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def _sum(values: Losses) -> Tensor:
    return torch.stack(list(values.values())).sum()


def _forget_average(model: nn.Module) -> None:
    """Takes back what the runs before did to detectron2's moving average of positives."""
    vars(model).pop("loss_normalizer", None)


def _in(dtype: torch.dtype, **sides: Callable[..., Run]) -> dict[str, Callable[[Bench], Run]]:
    return {name: partial(side, dtype=dtype) for name, side in sides.items()}


_FORMAT = {"theirs": torch.contiguous_format, "ours": torch.channels_last}


def _copy_floor(rates: Rates, logits: int, _: int) -> float:
    """Logits are read once and gradients written once."""
    return 4 * logits / rates.copy


def _loss_needs(setting: Setting) -> float:
    return 15 * 4 * setting.num_logits


# torchvision stands in the float32 parts alone: all of it would take more than ten minutes.
PARTS: dict[str, Part] = {
    "class-loss": Part(
        "class loss, forward and backward",
        {
            "detectron2": _detectron2_class_loss,
            "torchvision": partial(_torchvision_loss, class_alone=True),
            "ours": _our_class_loss,
        },
        _compare_losses,
        floor=_copy_floor,
        needs=_loss_needs,
    ),
    "class-loss-compiled": Part(
        "the same, ours compiled",
        {"detectron2": _detectron2_class_loss, "ours": partial(_our_class_loss, compiled=True)},
        _compare_losses,
        floor=_copy_floor,
        needs=_loss_needs,
    ),
    "loss": Part(
        "class and box loss, forward and backward",
        {"detectron2": _detectron2_loss, "torchvision": _torchvision_loss, "ours": _our_loss},
        _compare_losses,
        floor=_copy_floor,
        needs=_loss_needs,
    ),
    "labels": Part(
        "labels of the anchors",
        {
            "detectron2": _detectron2_labels,
            "torchvision": _torchvision_labels,
            "ours": _our_labels,
        },
        _compare_labels,
        needs=lambda setting: 25.0 * setting.num_anchors * setting.boxes,
    ),
    "decoding": Part(
        "decoding and suppression",
        {
            "detectron2": lambda bench: _decoding(bench, bench.detectron2, _FORMAT["theirs"]),
            "torchvision": _torchvision_decoding,
            "ours": lambda bench: _decoding(bench, bench.ours, _FORMAT["ours"]),
        },
        _compare_detections,
        floor=lambda rates, logits, _: logits / rates.compare,
    ),
    "training": Part(
        "step of training, float32",
        _in(
            torch.float32,
            detectron2=_detectron2_step,
            torchvision=_torchvision_step,
            ours=_our_step,
        ),
        partial(_compare_numbers, tolerance=1e-3),
        floor=lambda rates, _, count: count / rates.float32,
        whole=True,
    ),
    "training-bfloat16": Part(
        "step of training, bfloat16 autocast",
        _in(torch.bfloat16, detectron2=_detectron2_step, ours=_our_step),
        partial(_compare_numbers, tolerance=0.05),
        floor=lambda rates, _, count: count / rates.bfloat16,
        whole=True,
        float32="training",
    ),
    "inference": Part(
        "inference, float32",
        _in(
            torch.float32,
            detectron2=_detectron2_inference,
            torchvision=_torchvision_inference,
            ours=_our_inference,
        ),
        _compare_found,
        floor=lambda rates, _, count: count / rates.float32,
        whole=True,
    ),
    "inference-bfloat16": Part(
        "inference, bfloat16 autocast",
        _in(torch.bfloat16, detectron2=_detectron2_inference, ours=_our_inference),
        _compare_scores,
        floor=lambda rates, _, count: count / rates.bfloat16,
        whole=True,
        float32="inference",
    ),
}
