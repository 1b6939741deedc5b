"""Where the logits of an anchor are in the outputs of a head, whatever their memory format.

Anchors are indexed as in :class:`~retinanet_plugin.losses.targets.SparseTargets`; a head with K
classes gives a tensor (N, A*K, H, W) per level, contiguous or channels-last.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Logits per chunk. On a CPU, per core: enough for torch to share the work, while the five buffers
# of 256 KB stay in the core's cache. Elsewhere: enough for a kernel to take longer than its launch
# (5 us), while its buffers (32 MB each) are few beside the network's.
_CHUNK_PER_CORE = 64 * 1024
_CHUNK = 8 * 1024 * 1024


def chunk_size(x: Tensor) -> int:
    """Returns how many logits to process at a time on the device of ``x``."""
    return _CHUNK_PER_CORE * min(torch.get_num_threads(), 8) if x.is_cpu else _CHUNK


def is_dense(x: Tensor) -> bool:
    """Returns whether the elements (N, C, H, W) fill their memory, in either format."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def in_memory_order(dense: Tensor) -> Tensor:
    """Returns all elements of a dense tensor as a flat view, in the order of memory."""
    return dense.as_strided((dense.numel(),), (1,))


def offsets_of(dense: Tensor, image: Tensor, cell: Tensor, channel: Tensor) -> Tensor:
    """Computes the memory offsets of the given elements.

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
        logits: a tensor per level, (N, A*K, H, W).
        image, anchor, label: (P,) int64, on the CPU.

    Returns:
        on the device of the logits: (P, K), at least float32; and whether each class is the label
        of its anchor, (P, K), bool.
    """
    device = logits[0].device
    rows, order = [], []
    for x, (here, *index) in zip(logits, by_level(logits, num_classes, image, anchor), strict=True):
        rows.append(gather(x, num_classes, *to_device(index, device)))
        order.append(here)
    joined = torch.cat(rows)
    (label,) = to_device([label[torch.cat(order)]], device)
    classes = torch.arange(num_classes, device=device)
    return joined.to(torch.promote_types(joined.dtype, torch.float32)), label[:, None] == classes


def gather(x: Tensor, size: int, image: Tensor, cell: Tensor, group: Tensor) -> Tensor:
    """Gathers groups of ``size`` channels of (N, C, H, W): (P, size), differentiable.

    Args:
        image, cell, group: (P,) int64; ``cell`` is ``y * W + x``.
    """
    return x.unflatten(1, (-1, size)).flatten(3)[image, group, :, cell]


def to_device(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Copies the tensors to a device in one transfer, which the CPU does not wait for."""
    joined = torch.cat(list(tensors))
    pin = device.type == "cuda" and joined.device.type == "cpu"
    if pin:
        joined = joined.pin_memory()
    return joined.to(device, non_blocking=pin).split([len(x) for x in tensors])
