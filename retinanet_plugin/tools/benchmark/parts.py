"""What is compared: each part of a detector, and how each of the three computes it."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from types import ModuleType
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from detectron2.modeling.meta_arch import retinanet as detectron2_retinanet
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor
from torchvision.models.detection.image_list import ImageList as TorchvisionImageList
from torchvision.ops import box_iou

from ...losses import SparseTargets
from ...modeling import head as our_head
from . import networks
from .measure import Rates, Run
from .models import SHARE_ABOVE, Bench, torchvision_targets
from .networks import Check, Losses, compare_numbers, compare_overlap

Outputs: TypeAlias = tuple[list[Tensor], list[Tensor]]  # logits and deltas, a tensor per level


@dataclass(frozen=True)
class Part:
    """A comparison.

    Args:
        sides: how each detector does it, by the detector's name.
        compare: compares what detectron2 and ours observed, in this order.
        floor: seconds that the machine needs at least, from its rates, the number of logits and
            the network's multiplications.
        whole: whether memory includes the detector itself, not only the run.
        float32: the name of the part that does the same in float32.
    """

    title: str
    sides: Mapping[str, Callable[[Bench], Run]]
    compare: Callable[[Any, Any], list[Check]]
    floor: Callable[[Rates, int, int], float] | None = None
    whole: bool = False
    float32: str | None = None


def random_outputs(bench: Bench, memory_format: torch.memory_format) -> Outputs:
    """Returns random outputs of a head; ``SHARE_ABOVE`` of the logits score above the threshold."""
    setting = bench.setting
    score = setting.cfg().MODEL.RETINANET.SCORE_THRESH_TEST
    mean = math.log(score / (1 - score)) - NormalDist().inv_cdf(1 - SHARE_ABOVE)
    generator = torch.Generator().manual_seed(0)

    def normal(channels: int, shape: tuple[int, int]) -> Tensor:
        channels *= setting.anchors_per_location
        return torch.randn(setting.batch, channels, *shape, generator=generator)

    def to_device(x: Tensor) -> Tensor:
        return x.to(bench.device).contiguous(memory_format=memory_format)

    shapes = setting.level_shapes
    logits = [to_device(normal(setting.num_classes, shape).add_(mean)) for shape in shapes]
    return logits, [to_device(normal(4, shape).mul_(0.2)) for shape in shapes]


def features_of(bench: Bench) -> list[Tensor]:
    """Returns tensors with the levels' heights and widths, all that anchors depend on."""
    setting = bench.setting
    return [torch.empty(setting.batch, 1, *s, device=bench.device) for s in setting.level_shapes]


def truths_of(bench: Bench) -> list[Instances]:
    """Returns the ground truth on the detector's device."""
    return [x["instances"].to(bench.device) for x in bench.inputs]


def our_targets(
    model: Any, features: Sequence[Tensor], truths: Sequence[Instances]
) -> SparseTargets:
    """Assigns anchors to ground truth as our model does."""
    targets: SparseTargets = model.label_anchors(features, truths)
    return targets


# ---------------------------------------------------------------- losses, from a head's outputs


def _loss_run(losses: Callable[[], Losses], *outputs: list[Tensor]) -> Run:
    """Returns a forward and backward run, which observes losses and gradients of ``outputs``."""
    leaves = [x.requires_grad_() for part in outputs for x in part]

    def clear() -> None:
        for x in leaves:
            x.grad = None

    def run(_: None) -> Losses:
        values = losses()
        networks.total(values).backward()
        return values

    def observe(values: Losses) -> tuple[dict[str, float], list[Tensor | None]]:
        return networks.numbers(values), [x.grad for x in leaves]

    return Run(run, clear, observe)


def _without_box_loss(
    module: ModuleType, name: str, *, only_if: bool
) -> AbstractContextManager[Any]:
    """Removes the box loss from a function that computes both losses."""
    return patch.object(module, name, lambda *_, **__: 0.0) if only_if else nullcontext()


def _detectron2_loss(bench: Bench, *, class_only: bool = False) -> Run:
    model = bench.detectron2
    outputs = random_outputs(bench, torch.contiguous_format)[: 1 if class_only else 2]
    anchors = model.anchor_generator(features_of(bench))
    labels, boxes = model.label_anchors(anchors, truths_of(bench))

    def losses() -> Losses:
        networks.forget_average(model)
        channels = [model.num_classes, 4][: len(outputs)]
        logits, *rest = model._transpose_dense_predictions(outputs, channels)
        deltas = rest[0] if rest else []
        name = "_dense_box_regression_loss"
        with EventStorage(), _without_box_loss(detectron2_retinanet, name, only_if=class_only):
            values: Losses = model.losses(anchors, logits, labels, deltas, boxes)
        return {"loss_cls": values["loss_cls"]} if class_only else values

    return _loss_run(losses, *outputs)


_detectron2_class_loss = partial(_detectron2_loss, class_only=True)


def _torchvision_loss(bench: Bench, *, class_only: bool = False) -> Run:
    head = bench.torchvision.head
    outputs = random_outputs(bench, torch.contiguous_format)
    anchors = _torchvision_anchors(bench)
    targets = torchvision_targets(bench.inputs, bench.device)
    matches = _torchvision_labels(bench).run(None)

    def joined(part: list[Tensor], channels: int) -> Tensor:
        return torch.cat([permute_to_N_HWA_K(x, channels) for x in part], dim=1)

    def losses() -> Losses:
        named = {"cls_logits": joined(outputs[0], bench.setting.num_classes)}
        if class_only:
            value: Tensor = head.classification_head.compute_loss(targets, named, matches)
            return {"classification": value}
        named["bbox_regression"] = joined(outputs[1], 4)
        values: Losses = head.compute_loss(targets, named, anchors, matches)
        return values

    return _loss_run(losses, *outputs[: 1 if class_only else 2])


def _our_loss(bench: Bench, *, class_only: bool = False, compiled: bool = False) -> Run:
    model = bench.ours_compiled_loss if compiled else bench.ours
    outputs = random_outputs(bench, torch.channels_last)
    targets = our_targets(model, features_of(bench), truths_of(bench))
    # detectron2's moving average after one step
    normalizer = torch.tensor(0.9 * 100 + 0.1 * max(targets.num_positives, 1), device=bench.device)

    def losses() -> Losses:
        with _without_box_loss(our_head, "box_regression_loss", only_if=class_only):
            values: Losses = model.head.losses(outputs, targets, normalizer)
        return {"loss_cls": values["loss_cls"]} if class_only else values

    return _loss_run(losses, *outputs[: 1 if class_only else 2])


def _compare_losses(theirs: Any, ours: Any) -> list[Check]:
    errors = [
        (a - b).abs().max().item() / max(b.abs().max().item(), 1e-12)
        for a, b in zip(ours[1], theirs[1], strict=True)
    ]
    gradients = networks.at_most("gradients", max(errors), 1e-4)
    return [*compare_numbers(theirs[0], ours[0], 1e-4), gradients]


# ---------------------------------------------------------------- labels of the anchors


def _detectron2_labels(bench: Bench) -> Run:
    model = bench.detectron2
    anchors, truths = model.anchor_generator(features_of(bench)), truths_of(bench)

    def observe(result: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
        labels, boxes = (torch.stack(x).cpu() for x in result)
        positive = torch.where((labels >= 0) & (labels < model.num_classes))
        return [*positive, labels[positive], boxes[positive], *torch.where(labels == -1)]

    return Run(lambda _: model.label_anchors(anchors, truths), observe=observe)


def _torchvision_anchors(bench: Bench) -> list[Tensor]:
    setting = bench.setting
    size = (setting.height, setting.width)
    tensors = torch.empty(setting.batch, 3, *size, device=bench.device)
    images = TorchvisionImageList(tensors, [size] * setting.batch)
    anchors: list[Tensor] = bench.torchvision.anchor_generator(images, features_of(bench))
    return anchors


def _torchvision_labels(bench: Bench) -> Run:
    matcher, anchors = bench.torchvision.proposal_matcher, _torchvision_anchors(bench)
    targets = torchvision_targets(bench.inputs, bench.device)
    pairs = list(zip(targets, anchors, strict=True))
    return Run(lambda _: [matcher(box_iou(t["boxes"], a)) for t, a in pairs])


def _our_labels(bench: Bench) -> Run:
    model, features = bench.ours, features_of(bench)
    truths = [x["instances"] for x in bench.inputs]  # where the data loader leaves them

    def observe(targets: SparseTargets) -> list[Tensor]:
        positive = [targets.image, targets.anchor, targets.gt_class, targets.gt_box]
        return [x.cpu() for x in (*positive, targets.ignored_image, targets.ignored_anchor)]

    return Run(lambda _: our_targets(model, features, truths), observe=observe)


def _compare_labels(theirs: list[Tensor], ours: list[Tensor]) -> list[Check]:
    same = all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
    return [
        (f"the same {len(theirs[0]):,} positives, their boxes, {len(theirs[4]):,} ignored", same)
    ]


# ---------------------------------------------------------------- detections, from a head's outputs


def _decoding(bench: Bench, model: Any, memory_format: torch.memory_format) -> Run:
    outputs, features = random_outputs(bench, memory_format), features_of(bench)
    sizes = [(bench.setting.height, bench.setting.width)] * bench.setting.batch
    images = ImageList(torch.empty(0), sizes)

    @torch.no_grad()
    def run(predictions: list[list[Tensor]]) -> list[Instances]:
        detections: list[Instances] = model.forward_inference(images, features, predictions)
        return detections

    # Copies, because detectron2 replaces logits by scores in place.
    return Run(run, lambda: [[x.clone() for x in part] for part in outputs])


def _torchvision_decoding(bench: Bench) -> Run:
    model, outputs = bench.torchvision, random_outputs(bench, torch.contiguous_format)
    sizes = [(bench.setting.height, bench.setting.width)] * bench.setting.batch
    per_level = [x.shape[1] // 4 * x.shape[2] * x.shape[3] for x in outputs[1]]
    anchors = [list(x.split(per_level)) for x in _torchvision_anchors(bench)]

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


# ---------------------------------------------------------------- the parts


def _loss_part(
    title: str, sides: Mapping[str, Callable[..., Run]], *, class_only: bool = True
) -> Part:
    return Part(
        title,
        {name: partial(side, class_only=class_only) for name, side in sides.items()},
        _compare_losses,
        # Logits are read once and gradients written once.
        floor=lambda rates, logits, _: 4 * logits / rates.copy,
    )


def _network_part(
    title: str,
    run: Callable[..., Run],
    dtype: torch.dtype,
    compare: Callable[[Any, Any], list[Check]],
    float32: str | None = None,
) -> Part:
    # torchvision only takes part in float32: all of it would take more than ten minutes.
    sides = ("detectron2", "ours") if float32 else ("detectron2", "torchvision", "ours")
    rate = str(dtype).removeprefix("torch.")
    return Part(
        title,
        {side: partial(run, side=side, dtype=dtype) for side in sides},
        compare,
        floor=lambda rates, _, count: count / getattr(rates, rate),
        whole=True,
        float32=float32,
    )


_LOSS_SIDES = {"detectron2": _detectron2_loss, "torchvision": _torchvision_loss, "ours": _our_loss}
PARTS: dict[str, Part] = {
    "class-loss": _loss_part("class loss, forward and backward", _LOSS_SIDES),
    "class-loss-compiled": _loss_part(
        "class loss, ours compiled",
        {"detectron2": _detectron2_loss, "ours": partial(_our_loss, compiled=True)},
    ),
    "loss": _loss_part("class and box loss, forward and backward", _LOSS_SIDES, class_only=False),
    "labels": Part(
        "labels of the anchors",
        {
            "detectron2": _detectron2_labels,
            "torchvision": _torchvision_labels,
            "ours": _our_labels,
        },
        _compare_labels,
    ),
    "decoding": Part(
        "decoding and NMS",
        {
            "detectron2": lambda bench: _decoding(bench, bench.detectron2, torch.contiguous_format),
            "torchvision": _torchvision_decoding,
            "ours": lambda bench: _decoding(bench, bench.ours, torch.channels_last),
        },
        _compare_detections,
        floor=lambda rates, logits, _: logits / rates.compare,
    ),
    "training": _network_part(
        "training step, float32",
        networks.training_step,
        torch.float32,
        partial(compare_numbers, tolerance=1e-3),
    ),
    "training-bfloat16": _network_part(
        "training step, bfloat16 autocast",
        networks.training_step,
        torch.bfloat16,
        partial(compare_numbers, tolerance=0.05),
        float32="training",
    ),
    "inference": _network_part(
        "inference, float32", networks.inference, torch.float32, compare_overlap
    ),
    "inference-bfloat16": _network_part(
        "inference, bfloat16 autocast",
        networks.inference,
        torch.bfloat16,
        networks.compare_scores,
        float32="inference",
    ),
}
