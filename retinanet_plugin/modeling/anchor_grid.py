"""The anchors of an image, and a geometric search for those that overlap a box.

Anchors stand in rows and columns, so the intersection of a box and an anchor is the overlap of
their x intervals times the overlap of their y intervals. An IoU of t or more needs

    intersection >= t / (1 + t) * (area of the box + area of the anchor),

which most anchor shapes cannot reach, and the others only in a few rows, and there in a few
columns. IoUs are computed for those alone, with the float32 operations of ``pairwise_iou``.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# How far the edges of anchors may be from an even grid, in steps and sizes: float32 rounds them.
_TOLERANCE = 1e-3
# Subtracted from the required overlap and added to both ends of a range of positions, so that no
# anchor is missed; 8 tolerances cover the effect of the rounding on sizes, overlaps and areas.
_SLACK = 10 * _TOLERANCE
# Below this, a float32 IoU may be denormal, and no slack covers its rounding.
_MIN_IOU = 1e-30
# Elements per buffer: small enough for the processor's cache.
_CHUNK = 64 * 1024

Pairs = Iterator[tuple[Tensor, Tensor, Tensor]]


class AnchorGrid:
    """The R anchors of an image, numbered by level, row, column, then anchor at that location.

    Args:
        levels: (H, W, A, 4) each, float32, XYXY in pixels, on the CPU. If they are not evenly
            spaced, each box is compared with all of them.

    Attributes:
        num_anchors: R.
        is_even: whether they are evenly spaced.
    """

    def __init__(self, levels: Sequence[Tensor]) -> None:
        self._x = _Axis([x[0, :, :, 0::2] for x in levels])
        self._y = _Axis([x[:, 0, :, 1::2] for x in levels])
        aligned = all(
            (x[..., 0::2] == x[:1, ..., 0::2]).all() and (x[..., 1::2] == x[:, :1, :, 1::2]).all()
            for x in levels
        )
        self.is_even = bool(aligned and self._x.is_even and self._y.is_even)
        self._all = None if self.is_even else torch.cat([x.reshape(-1, 4) for x in levels])
        # A shape is one of the A anchors of a level; shapes are numbered over all levels.
        per_cell = torch.tensor([x.shape[2] for x in levels])
        sizes = torch.tensor([x[..., 0].numel() for x in levels])
        self.num_anchors = int(sizes.sum())
        self._level_end = sizes.cumsum(0)
        self._level_shape = per_cell.cumsum(0) - per_cell
        level = torch.repeat_interleave(per_cell)
        # Of each shape: the index of its first anchor, and the steps to the next column and row.
        index = torch.arange(len(level)) - self._level_shape[level]
        self._first = (self._level_end - sizes)[level] + index
        self._column_step = per_cell[level]
        self._row_step = self._column_step * self._x.count

    def boxes_of(self, anchor: Tensor) -> Tensor:
        """Returns the exact boxes (P, 4) of the anchors with indices (P,), int64."""
        if self._all is not None:
            return self._all[anchor]
        shape = self._level_shape[torch.bucketize(anchor, self._level_end, right=True)]
        anchor = anchor - self._first[shape]
        row = torch.div(anchor, self._row_step[shape], rounding_mode="floor")
        anchor = anchor - row * self._row_step[shape]
        column = torch.div(anchor, self._column_step[shape], rounding_mode="floor")
        shape = shape + anchor - column * self._column_step[shape]
        x, y = self._x.first[shape] + column, self._y.first[shape] + row
        return torch.stack((self._x.low[x], self._y.low[y], self._x.high[x], self._y.high[y]), 1)

    def nearest_box(self, anchor: Tensor, boxes: Tensor) -> Tensor:
        """Finds for each anchor (P,) the box (M, 4) of highest IoU, the first if equal."""
        nearest = torch.empty_like(anchor)
        chunk = max(_CHUNK // len(boxes), 1)
        for part, out in zip(anchor.split(chunk), nearest.split(chunk), strict=True):
            out[:] = _iou_matrix(self.boxes_of(part), boxes).max(dim=1).indices
        return nearest

    def pairs(self, boxes: Tensor, min_iou: float, include_best: bool) -> Pairs:
        """Yields the pairs of a box and an anchor whose IoU is at least ``min_iou`` (> 0).

        With ``include_best`` also each box's best anchors, unless their IoU is 0. A few pairs below
        may be included; none occurs twice.

        Args:
            boxes: (M, 4), XYXY in pixels.

        Yields:
            chunks of bounded size: box, anchor: (C,) int64; iou: (C,), equal to ``pairwise_iou``.
        """
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        # Other boxes are empty, or so large that their IoU rounds to 0.
        (valid,) = torch.where((area > 0) & (area < torch.inf) & (boxes[:, 2] > boxes[:, 0]))
        search = self._search if self._all is None else self._search_all
        for index in valid.split(max(_CHUNK // len(self._first), 1)):
            for box, anchor, iou in search(boxes[index], min_iou, include_best):
                yield index.index_select(0, box), anchor, iou

    def _search_all(self, boxes: Tensor, min_iou: float, include_best: bool) -> Pairs:
        assert self._all is not None
        if not len(boxes):
            return
        chunk = max(_CHUNK // len(boxes), 1)
        for start in range(0, self.num_anchors, chunk):
            iou = _iou_matrix(boxes, self._all[start : start + chunk])
            needed = iou.amax(1, keepdim=True).clamp(max=min_iou) if include_best else min_iou
            box, anchor = torch.where((iou >= needed) & (iou > 0))
            yield box, anchor + start, iou[box, anchor]

    def _search(self, boxes: Tensor, min_iou: float, include_best: bool) -> Pairs:
        x1, y1, x2, y2 = boxes[:, None].unbind(2)
        area = (x2 - x1) * (y2 - y1)
        needed = torch.full_like(area, min_iou, dtype=torch.float64)
        if include_best:
            # The highest IoU is at least that with the nearest anchor of any shape.
            column, row = self._x.nearest(x1, x2), self._y.nearest(y1, y2)
            inter = self._x.overlap(x1, x2, column) * self._y.overlap(y1, y2, row)
            iou = inter / (area + _pick(self._x.size, column) * _pick(self._y.size, row) - inter)
            best = iou.amax(1, keepdim=True).double()
            needed = torch.minimum(needed, best * (best > _MIN_IOU))
        # For each box and shape: the overlap it needs, and the largest that is possible.
        width, height = x2.double() - x1, y2.double() - y1
        areas = width * height + self._x.shape_size * self._y.shape_size
        overlap = (1 - _SLACK) * needed / (1 + needed) * areas
        width = torch.minimum(width, self._x.shape_size)
        height = torch.minimum(height, self._y.shape_size)
        box, shape = torch.where(width * height >= overlap)
        overlap, width = overlap[box, shape], width[box, shape]
        values = torch.cat((boxes, area), dim=1).T.index_select(1, box)
        row, rows = self._y.reaching(values[1], values[3], overlap / width, shape)
        windows = torch.stack((box, shape, row))
        for i, offset in _repeated(rows, _CHUNK // 4):
            box_i, shape_i, row_i = windows.index_select(1, i)
            overlap_i, values_i = overlap.index_select(0, i), values.index_select(1, i)
            yield from self._search_rows(box_i, shape_i, overlap_i, row_i + offset, values_i)

    def _search_rows(
        self, box: Tensor, shape: Tensor, overlap: Tensor, row: Tensor, values: Tensor
    ) -> Pairs:
        """Yields pairs of boxes and the anchors of one shape and row each.

        Args:
            box, shape, row: (L,) int64.
            overlap: (L,) float64, the overlap that is needed, in square pixels.
            values: (5, L), x1, y1, x2, y2 and area of each box.
        """
        x1, y1, x2, y2, area = values
        y = self._y.first.index_select(0, shape) + row
        overlap_y, size_y = self._y.overlap(y1, y2, y), self._y.size.index_select(0, y)
        column, columns = self._x.reaching(x1, x2, overlap / overlap_y.clamp(min=1e-30), shape)
        x = self._x.first.index_select(0, shape) + column
        step = self._column_step.index_select(0, shape)
        anchor = self._first.index_select(0, shape) + column * step
        anchor += self._row_step.index_select(0, shape) * row
        numbers = torch.stack((box, anchor, step, x))
        values = torch.stack((x1, x2, area, overlap_y, size_y))
        for i, offset in _repeated(columns, _CHUNK):
            box, anchor, step, x = numbers.index_select(1, i)
            x1, x2, area, overlap_y, size_y = values.index_select(1, i)
            x += offset
            inter = self._x.overlap(x1, x2, x) * overlap_y
            iou = inter / (area + self._x.size.index_select(0, x) * size_y - inter)
            yield box, anchor + offset * step, iou


class _Axis:
    """The intervals of anchors along x or y: those of a shape at evenly spaced positions.

    Args:
        edges: lower and upper edge of the anchors of each level, (positions, A, 2).
    """

    def __init__(self, edges: Sequence[Tensor]) -> None:
        by_shape = [x for level in edges for x in level.unbind(1)]
        self.count = torch.tensor([len(x) for x in by_shape])  # positions of each shape
        # Edges and sizes of all shapes one after another, and where those of each shape begin.
        self.low, self.high = torch.cat(by_shape).T.contiguous()
        self.size = self.high - self.low
        self.first = self.count.cumsum(0) - self.count
        # The even grid, in float64: first lower edge, size and step of each shape.
        self._start = self.low[self.first].double()
        self.shape_size = self.high[self.first].double() - self._start
        self._step = self.low[self.first + self.count - 1] - self._start
        self._step = torch.where(self.count > 1, self._step / (self.count - 1), 1.0)
        shape = torch.repeat_interleave(self.count)
        position = torch.arange(len(shape)) - self.first[shape]
        low = self._start[shape] + self._step[shape] * position
        off = (self.low - low).abs().maximum((self.high - low - self.shape_size[shape]).abs())
        tolerance = _TOLERANCE * torch.minimum(self.shape_size, self._step)
        self.is_even = bool((tolerance > 0).all() and (off <= tolerance[shape]).all())

    def nearest(self, low: Tensor, high: Tensor) -> Tensor:
        """Finds the anchor of each shape whose center is nearest to an interval's: (M, S)."""
        position = ((low.double() + high - self.shape_size) / 2 - self._start) / self._step
        return self.first + position.round().clamp(min=0).minimum(self.count - 1).long()

    def overlap(self, low: Tensor, high: Tensor, index: Tensor) -> Tensor:
        """Computes the overlap of intervals with the anchors at ``index``."""
        length = torch.minimum(high, _pick(self.high, index))
        return length.sub_(torch.maximum(low, _pick(self.low, index))).clamp_(min=0)

    def reaching(
        self, low: Tensor, high: Tensor, overlap: Tensor, shape: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Finds the first position, and how many, at which ``shape`` has at least that overlap."""
        start, step = self._start.index_select(0, shape), self._step.index_select(0, shape)
        first = (low + overlap - self.shape_size.index_select(0, shape) - start) / step - _SLACK
        last = (high - overlap - start) / step + _SLACK
        count = self.count.index_select(0, shape)
        first = first.ceil_().clamp_(min=0).minimum(count)
        last = last.floor_().clamp_(min=-1).minimum(count - 1)
        return first.long(), (last - first + 1).clamp_(min=0).long()


def _iou_matrix(boxes: Tensor, others: Tensor) -> Tensor:
    """Computes detectron2's ``pairwise_iou`` (M, R), but faster."""
    x1, y1, x2, y2 = boxes[:, None].unbind(2)
    a1, b1, a2, b2 = others.T.contiguous()
    inter = (torch.minimum(x2, a2) - torch.maximum(x1, a1)).clamp_(min=0)
    inter *= (torch.minimum(y2, b2) - torch.maximum(y1, b1)).clamp_(min=0)
    iou = inter / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inter)
    return torch.where(inter > 0, iou, 0)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Returns ``values[index]`` of a 1-D tensor, several times as fast on a CPU."""
    return values.index_select(0, index.view(-1)).view(index.shape)


def _repeated(counts: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Repeats i ``counts[i]`` times; yields about ``chunk`` at once: i, and which repetition."""
    end = counts.cumsum(0)
    start, done = 0, 0
    while start < len(counts):
        stop = max(int(torch.searchsorted(end, done + chunk, right=True)), start + 1)
        item = torch.repeat_interleave(counts[start:stop]) + start
        repetition = torch.arange(done, done + len(item)) - (end - counts).index_select(0, item)
        yield item, repetition
        start, done = stop, done + len(item)
