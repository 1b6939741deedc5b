"""A trained RetinaNet as one exportable module, from images to detections."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...modeling import FocalRetinaNet
from .traceable_nms import is_exporting, nms_top_k

# Boxes, scores, classes, max_detections, IoU threshold -> indices and scores of what remains.
Nms = Callable[[Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor]]


class ImageDetector(nn.Module):
    """Computes the detections of a ``FocalRetinaNet`` with tensor shapes that depend on input
    sizes only, never on the content of images.

    Args:
        model: shares its backbone and head with this module.
        layout: of the images, "nhwc" or "nchw".
        channels: of the images, "BGR" or "RGB".
        dtype: of the backbone and the head.

    Attributes:
        nms: non-maximum suppression, see :func:`traceable_nms.nms_top_k`.

    Raises:
        UserError: if ``model`` is of another class.
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
    ) -> None:
        super().__init__()
        if not isinstance(model, FocalRetinaNet):
            raise UserError(
                f"MODEL.META_ARCHITECTURE: cannot export {type(model).__name__}, only "
                "FocalRetinaNet."
            )
        self.backbone, self.head = model.backbone, model.head
        self.anchor_generator, self.decoder = model.anchor_generator, model.decoder
        self.features = list(model.head_in_features)
        self.stride = max(model.backbone.size_divisibility, 1)
        self.layout, self.dtype = layout, dtype
        self.nms: Nms = nms_top_k
        self.flip = channels != model.input_format
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns up to D detections per image, by descending score, followed by zeros.

        Args:
            images: (N, H, W, 3) or (N, 3, H, W), uint8 or float, values from 0 to 255.

        Returns:
            boxes (N, D, 4), XYXY in pixels, clipped to the image; scores (N, D); classes (N, D),
            int64; and the number of detections (N,), int64.
        """
        if self.layout == "nhwc":
            images = images.permute(0, 3, 1, 2)
        height, width = images.shape[2:]
        levels = self.backbone(self._preprocess(images).to(self.dtype))
        features = [levels[name] for name in self.features]
        logits, deltas = self.head(features)
        anchors = [level.tensor for level in self.anchor_generator(features)]
        candidates = [
            self._candidates(*level) for level in zip(logits, deltas, anchors, strict=True)
        ]
        boxes, scores, classes = (torch.cat(x, dim=1) for x in zip(*candidates, strict=True))
        if self.decoder.clip_before_nms:
            boxes = _clip(boxes, height, width)
        count = min(self.decoder.max_detections, len(logits) * self.decoder.topk_candidates)
        index, scores = self.nms(boxes, scores, classes, count, self.decoder.nms_thresh)
        boxes = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
        return _postprocess(boxes, scores, classes.gather(1, index), height, width)

    def _preprocess(self, images: Tensor) -> Tensor:
        """Normalizes images and pads them, right and bottom, to multiples of the stride."""
        images = images.to(torch.float32)
        if self.flip:
            images = images.flip(1)
        images = (images - self.pixel_mean) / self.pixel_std
        height, width = images.shape[2:]
        images = F.pad(images, (0, self._padding(width), 0, self._padding(height)))
        # torch.export assumes that convolutions of unknown sizes return this format.
        return images.contiguous()

    def _padding(self, size: int) -> int:
        tiles = (size + self.stride - 1) // self.stride
        if is_exporting():
            # A symbol of its own keeps the sizes of all features simple, and free of guards that
            # would exclude sizes of 1.
            tiles = torch.full((), tiles, dtype=torch.int64).item()
            torch._check(tiles >= 1)
            torch._check(tiles * self.stride >= size)
        return tiles * self.stride - size

    def _candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the T best of a level, in the decoder's order.

        The T best scores belong to at most T anchors: those with the T best maximum scores.
        Scores that are not above the threshold become 0.

        Args:
            logits: (N, A*K, H, W).
            deltas: (N, A*4, H, W) or (N, A*K*4, H, W).
            anchors: (H*W*A, 4).

        Returns:
            boxes (N, T, 4), scores (N, T) and classes (N, T).
        """
        count, num_classes = self.decoder.topk_candidates, self.decoder.num_classes
        num_anchors = logits.shape[1] // num_classes
        num_cells = logits.shape[2] * logits.shape[3]
        by_anchor = logits.flatten(2).unflatten(1, (num_anchors, num_classes))
        highest = by_anchor.amax(2).float().sigmoid().transpose(1, 2).flatten(1)  # (N, HWA)
        # Padding levels of few anchors makes T a constant.
        anchor = F.pad(highest, (0, count), value=-1.0).topk(count).indices.sort().values
        is_real = anchor < anchors.shape[0]
        anchor = anchor.clamp(max=anchors.shape[0] - 1)
        cell, anchor_of_cell = anchor // num_anchors, anchor % num_anchors
        # The K logits of each: (N, T, K)
        first = anchor_of_cell * (num_classes * num_cells) + cell
        offset = first[:, :, None] + torch.arange(num_classes, device=logits.device) * num_cells
        scores = logits.flatten(1).gather(1, offset.flatten(1)).float().sigmoid()
        scores = scores.unflatten(1, (count, num_classes)) * is_real[:, :, None]
        scores = scores.flatten(1)
        scores = torch.where(scores > self.decoder.score_thresh, scores, 0.0)
        best = scores.topk(count).indices.sort().values
        scores = scores.gather(1, best)
        index, classes = best // num_classes, best % num_classes
        anchor, cell = anchor.gather(1, index), cell.gather(1, index)
        group = anchor_of_cell.gather(1, index)
        if not self.decoder.class_agnostic:
            group = group * num_classes + classes
        offset = (group * (4 * num_cells) + cell)[:, :, None]
        offset = offset + torch.arange(4, device=logits.device) * num_cells
        selected = deltas.flatten(1).gather(1, offset.flatten(1)).float()
        boxes = self.decoder.apply_deltas(selected.reshape(-1, 4), anchors[anchor.flatten()])
        return boxes.reshape(-1, count, 4), scores, classes


def _postprocess(
    boxes: Tensor, scores: Tensor, classes: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clips boxes, drops empty ones and closes the gaps, like detectron2 after inference."""
    boxes = _clip(boxes, height, width)
    keep = (scores > 0) & (boxes[:, :, 2:] > boxes[:, :, :2]).all(dim=2)
    count = scores.shape[1]
    rank = torch.arange(count, device=scores.device) + count * (~keep).long()
    order = rank.sort(dim=1).indices
    keep = keep.gather(1, order)
    boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    return (
        boxes * keep[:, :, None],
        scores.gather(1, order) * keep,
        classes.gather(1, order) * keep,
        keep.sum(1),
    )


def _clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clips boxes (N, D, 4) to the image."""
    x1, y1, x2, y2 = boxes.unbind(2)
    x1, x2 = (x.clamp(min=0).clamp(max=width) for x in (x1, x2))
    y1, y2 = (y.clamp(min=0).clamp(max=height) for y in (y1, y2))
    return torch.stack((x1, y1, x2, y2), dim=2)
