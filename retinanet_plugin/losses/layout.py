"""Where the logits of an anchor are in the outputs of a head, whatever their memory format.

Anchors are indexed as in :class:`~retinanet_plugin.losses.targets.SparseTargets`; a head with K
classes gives a tensor (N, A*K, H, W) per level, contiguous or channels-last.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits per chunk. On a CPU, per core: enough for torch to share the work, while the five buffers
# of 256 KB stay in the core's cache. Elsewhere: enough for a kernel to take longer than its launch
# (5 us), while its buffers (32 MB each) are few beside the network's.
_CHUNK_PER_CORE = 64 * 1024
_CHUNK = 8 * 1024 * 1024


def chunk_size(x: Tensor) -> int:
    """How many logits to process at a time on the device of ``x``."""
    return _CHUNK_PER_CORE * min(torch.get_num_threads(), 8) if x.is_cpu else _CHUNK


def is_dense(x: Tensor) -> bool:
    """Whether the elements (N, C, H, W) fill their memory, in either format."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def in_memory_order(dense: Tensor) -> Tensor:
    """All elements of a dense tensor as a flat view, in the order of memory."""
    return dense.as_strided((dense.numel(),), (1,))


def offsets_of(dense: Tensor, image: Tensor, cell: Tensor, channel: Tensor) -> Tensor:
    """Memory offsets of the given elements.

    Args:
        dense: (N, C, H, W), contiguous or channels-last.
        image, cell, channel: int64, of shapes that broadcast; ``cell`` is ``y * W + x``.

    Returns:
        int64: indices into :func:`in_memory_order` of ``dense``.
    """
    per_image, per_channel, per_row, per_column = dense.stride()
    width = dense.shape[3]
    row = torch.div(cell, width, rounding_mode="floor")
    column = cell - row * width
    return image * per_image + channel * per_channel + row * per_row + column * per_column


def by_level(
    logits: Sequence[Tensor], num_classes: int, image: Tensor, anchor: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Splits anchors by level.

    Args:
        logits: a tensor per level, (N, A*K, H, W).
        image, anchor: (P,) int64.

    Yields:
        per level: which of the P anchors are in it; and of each its image, cell (``y * W + x``)
        and index among the A anchors of that cell.
    """
    start = 0
    for x in logits:
        per_cell = x.shape[1] // num_classes
        stop = start + x[0, 0].numel() * per_cell
        (here,) = torch.where((anchor >= start) & (anchor < stop))
        index = anchor[here] - start
        cell = torch.div(index, per_cell, rounding_mode="floor")
        yield here, image[here], cell, index - cell * per_cell
        start = stop


def anchor_logits(
    logits: Sequence[Tensor], num_classes: int, image: Tensor, anchor: Tensor, label: Tensor
) -> tuple[Tensor, Tensor]:
    """Gathers the K logits of each of the given anchors, level by level.

    Args:
        logits: a tensor per level, (N, A*K, H, W), dense.
        image, anchor, label: (P,) int64, on the CPU; no anchor twice.

    Returns:
        on the device of the logits: (P, K), at least float32, differentiable once; and whether
        each class is the label of its anchor, (P, K), bool.
    """
    first, order = [], []
    for x, (here, image_i, cell, index) in zip(
        logits, by_level(logits, num_classes, image, anchor), strict=True
    ):
        first.append(offsets_of(x, image_i, cell, index * num_classes))
        order.append(here)
    device = logits[0].device
    *first, label = to_device([*first, label[torch.cat(order)]], device)
    classes = torch.arange(num_classes, device=device)
    rows = torch.cat(
        [
            _Gather.apply(x, index[:, None] + classes * x.stride(1))
            for x, index in zip(logits, first, strict=True)
        ]
    )
    return rows.to(torch.promote_types(rows.dtype, torch.float32)), label[:, None] == classes


class _Gather(torch.autograd.Function):
    """Elements at memory offsets, each at most once; the gradient is one dense tensor."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        ctx.geometry = dense.shape, dense.stride()
        return in_memory_order(dense)[offsets]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        grad = upstream.new_empty(0).new_empty_strided(*ctx.geometry).zero_()
        in_memory_order(grad)[offsets] = upstream
        return grad, None


def to_device(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Copies the tensors to a device in one transfer, which the CPU does not wait for."""
    joined = torch.cat(list(tensors))
    pin = device.type == "cuda" and joined.device.type == "cpu"
    if pin:
        joined = joined.pin_memory()
    return joined.to(device, non_blocking=pin).split([len(x) for x in tensors])
