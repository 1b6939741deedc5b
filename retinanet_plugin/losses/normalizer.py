"""The mean of a count over the workers of a distributed training."""

import torch
from torch import Tensor


def mean_over_workers(count: int, device: torch.device) -> Tensor:
    """Returns what each worker divides its sum by, for a mean over the items of all workers.

    Gradients are averaged over the workers, so this is the average ``count``. It is at least 1
    divided by the number of workers, that is, at least one item over all of them.

    Returns:
        a scalar, float32.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    workers = torch.distributed.get_world_size() if distributed else 1
    # Filled, because copying a number from the CPU would wait for the device.
    mean = torch.full((), float(count), device=device)
    if workers > 1:
        torch.distributed.all_reduce(mean)
        mean /= workers
    return mean.clamp_(min=1 / workers)
