"""Memory that a step frees, kept for the next one: on a CPU what CUDA's caching allocator is there.

The C library gives large blocks back to the system as soon as they are freed, and what the system
hands out anew it clears first, page by page: up to a fifth of a step.
"""

import ctypes
import logging
import platform

import torch
from detectron2.config import CfgNode

# glibc's mallopt(3): how much free memory at the end of the heap is too much, and how many blocks
# may lie outside the heap.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory(cfg: CfgNode) -> bool:
    """From now on this process keeps its memory, if ``MODEL.ACCELERATION.KEEP_FREED_MEMORY`` says so.

    It has no effect on memory that is in use, nor on other devices than a CPU.

    Returns:
        whether it does: it needs the GNU C library (so Linux) and a model on the CPU.
    """
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    if not (
        cfg.MODEL.ACCELERATION.KEEP_FREED_MEMORY and on_cpu and platform.libc_ver()[0] == "glibc"
    ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
    logging.getLogger(__name__).info(
        "Freed memory is kept for the next step (MODEL.ACCELERATION.KEEP_FREED_MEMORY)"
    )
    return kept
