"""Keeps freed memory for the next step, as CUDA's caching allocator does, on a CPU.

The C library returns large blocks to the system as soon as they are freed, and the system clears
new ones page by page: up to a fifth of a training step.
"""

import ctypes
import logging
import platform

import torch
from detectron2.config import CfgNode

# Options of glibc's mallopt(3): how much free memory at the end of the heap is returned, and how
# many blocks may be outside the heap.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory(cfg: CfgNode) -> bool:
    """Makes this process keep freed memory, if ``MODEL.ACCELERATION.KEEP_FREED_MEMORY`` is set.

    Returns:
        whether it does, which needs the GNU C library (Linux) and a model on the CPU.
    """
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    wanted = cfg.MODEL.ACCELERATION.KEEP_FREED_MEMORY and on_cpu
    if not wanted or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
    logging.getLogger(__name__).info(
        "Freed memory is kept for the next step (MODEL.ACCELERATION.KEEP_FREED_MEMORY)"
    )
    return kept
