"""A trained RetinaNet as one module from pictures to detections, made to be exported."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...modeling import FocalRetinaNet
from .traceable_nms import is_exporting, pick

OUTPUTS = ("boxes", "scores", "classes", "num_detections")
LAYOUTS = ("nhwc", "nchw")
Select = Callable[[Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor]]


class PictureDetector(nn.Module):
    """Pictures to detections, those of ``FocalRetinaNet``, without a shape that depends on them.

    Args:
        model: shares backbone and head with this.
        layout: of the pictures: "nhwc" or "nchw".
        channels: of the pictures: "BGR" or "RGB".
        dtype: that backbone and head are in.
        select: non-maximum suppression, as :func:`picking.pick`.
        compiled: whether a compiler gets it, which wants 2 rows and columns of the last level.

    Attributes:
        smallest_side: that pictures may have, in pixels.

    Raises:
        UserError: for a model of another kind.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: str = "nhwc",
        channels: str = "BGR",
        dtype: torch.dtype = torch.float32,
        select: Select = pick,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, FocalRetinaNet):
            raise UserError(
                f"MODEL.META_ARCHITECTURE: {type(model).__name__} cannot be exported; only "
                "FocalRetinaNet can."
            )
        constraints = model.backbone.padding_constraints or {}
        if constraints.get("square_size", 0) > 0:
            raise UserError(
                f"MODEL.BACKBONE.NAME: {type(model.backbone).__name__} wants pictures padded to "
                "squares of one size, which cannot be exported."
            )
        self.backbone, self.head = model.backbone, model.head
        self.anchor_generator, self.decoder = model.anchor_generator, model.decoder
        self.features = list(model.head_in_features)
        stride = constraints.get("size_divisibility", 0) or model.backbone.size_divisibility
        self.stride = max(stride, 1)
        # Of what the backbone computes, used or not.
        self.last_stride = max(x.stride for x in model.backbone.output_shape().values())
        self.smallest_side = self.last_stride + 1 if compiled else 1
        self.layout, self.dtype, self.select = layout, dtype, select
        self.flips = channels != model.input_format
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detections of each picture, by falling score; zeros follow the last.

        Args:
            pictures: (N, H, W, 3) or (N, 3, H, W), uint8 or float, values from 0 to 255.

        Returns:
            boxes (N, K, 4), XYXY in pixels, within the picture; scores (N, K); classes (N, K),
            int64; and the number of detections (N,), int64.
        """
        images = pictures.permute(0, 3, 1, 2) if self.layout == "nhwc" else pictures
        height, width = images.shape[2:]
        levels = self.backbone(self._prepare(images).to(self.dtype))
        features = [levels[name] for name in self.features]
        logits, deltas = self.head(features)
        anchors = [level.tensor for level in self.anchor_generator(features)]
        candidates = [
            self._candidates(*level) for level in zip(logits, deltas, anchors, strict=True)
        ]
        boxes, scores, classes = (torch.cat(x, dim=1) for x in zip(*candidates, strict=True))
        if self.decoder.clip_before_nms:
            boxes = _clipped(boxes, height, width)
        most = min(self.decoder.max_detections, len(logits) * self.decoder.topk_candidates)
        index, scores = self.select(boxes, scores, classes, most, self.decoder.nms_thresh)
        boxes = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
        return _finish(boxes, scores, classes.gather(1, index), height, width)

    def _prepare(self, images: Tensor) -> Tensor:
        """Normalised, padded at the right and the bottom to what the backbone can halve."""
        images = images.to(torch.float32)
        if self.flips:
            images = images.flip(1)
        images = (images - self.pixel_mean) / self.pixel_std
        height, width = images.shape[2:]
        images = F.pad(images, (0, self._missing(width), 0, self._missing(height)))
        # torch.export takes for granted that convolutions of sizes it does not know give this.
        return images.contiguous()

    def _missing(self, size: int) -> int:
        """What lacks to a multiple of the stride."""
        tiles = (size + self.stride - 1) // self.stride
        if is_exporting() and self.smallest_side == 1:
            # As a number of its own it keeps the sizes of all features simple, and free of guards
            # that would exclude sizes of 1.
            tiles = torch.full((), tiles, dtype=torch.int64).item()
            torch._check(tiles >= 1)
            torch._check(tiles * self.stride >= size)
        return tiles * self.stride - size

    def _candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A level's T best boxes (N, T, 4), scores (N, T), classes (N, T), in the decoder's order.

        The T best scores are those of at most T anchors: those of the T best highest scores.
        Scores that are not above the threshold are 0.

        Args:
            logits: (N, A*K, H, W).
            deltas: (N, A*4, H, W) or (N, A*K*4, H, W).
            anchors: (H*W*A, 4).
        """
        count, num_classes = self.decoder.topk_candidates, self.decoder.num_classes
        num_anchors = logits.shape[1] // num_classes
        cells = logits.shape[2] * logits.shape[3]
        by_anchor = logits.flatten(2).unflatten(1, (num_anchors, num_classes))
        highest = by_anchor.amax(2).float().sigmoid().transpose(1, 2).flatten(1)  # (N, HWA)
        # Levels of few anchors are filled up, so that T is a constant.
        anchor = F.pad(highest, (0, count), value=-1.0).topk(count).indices.sort().values
        is_there = anchor < anchors.shape[0]
        anchor = anchor.clamp(max=anchors.shape[0] - 1)
        cell, anchor_of_cell = anchor // num_anchors, anchor % num_anchors
        # The K logits of each: (N, T, K)
        first = anchor_of_cell * (num_classes * cells) + cell
        place = first[:, :, None] + torch.arange(num_classes, device=logits.device) * cells
        scores = logits.flatten(1).gather(1, place.flatten(1)).float().sigmoid()
        scores = scores.unflatten(1, (count, num_classes)) * is_there[:, :, None]
        scores = scores.flatten(1)
        scores = torch.where(scores > self.decoder.score_thresh, scores, 0.0)
        best = scores.topk(count).indices.sort().values
        scores = scores.gather(1, best)
        which, classes = best // num_classes, best % num_classes
        anchor, cell = anchor.gather(1, which), cell.gather(1, which)
        group = anchor_of_cell.gather(1, which)
        if not self.decoder.class_agnostic:
            group = group * num_classes + classes
        place = (group * (4 * cells) + cell)[:, :, None]
        place = place + torch.arange(4, device=logits.device) * cells
        chosen = deltas.flatten(1).gather(1, place.flatten(1)).float()
        boxes = self.decoder.apply_deltas(chosen.reshape(-1, 4), anchors[anchor.flatten()])
        return boxes.reshape(-1, count, 4), scores, classes


def _finish(
    boxes: Tensor, scores: Tensor, classes: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clips, drops what is empty then, and leaves no gap, as detectron2 does after detection."""
    boxes = _clipped(boxes, height, width)
    found = (scores > 0) & (boxes[:, :, 2:] > boxes[:, :, :2]).all(dim=2)
    most = scores.shape[1]
    last = torch.arange(most, device=scores.device) + most * (~found).long()
    order = last.sort(dim=1).indices
    found = found.gather(1, order)
    boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    return (
        boxes * found[:, :, None],
        scores.gather(1, order) * found,
        classes.gather(1, order) * found,
        found.sum(1),
    )


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, K, 4) within the picture."""
    x1, y1, x2, y2 = boxes.unbind(2)
    x1, x2 = (x.clamp(min=0).clamp(max=width) for x in (x1, x2))
    y1, y2 = (y.clamp(min=0).clamp(max=height) for y in (y1, y2))
    return torch.stack((x1, y1, x2, y2), dim=2)
