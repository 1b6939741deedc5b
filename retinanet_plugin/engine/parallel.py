"""Several processes, on GPUs with NCCL or on CPUs with gloo.

detectron2's ``launch`` starts them for ``--num-gpus`` and ``--num-machines``; torchrun starts its
own.
"""

import os

import torch
import torch.distributed as dist
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..utils import cpu_count


def choose_workers(num_gpus: int, num_machines: int = 1) -> int:
    """Returns how many processes to start on this machine for ``--num-gpus``.

    Without a GPU they run on the CPU, at most one per core.

    Raises:
        UserError: if there are fewer GPUs.
    """
    if num_gpus < 1:
        raise UserError(f"--num-gpus: {num_gpus}; give at least 1, or MODEL.DEVICE cpu.")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available == 0:
        # The machines of a job must agree on the number, and may differ in their cores.
        workers = num_gpus if num_machines > 1 else min(num_gpus, cpu_count())
        print(f"No GPU found: running on the CPU, number of processes: {workers}.", flush=True)
        return workers
    if num_gpus > available:
        raise UserError(f"--num-gpus: {num_gpus}, but this machine has {available}; give fewer.")
    return num_gpus


def started_by_torchrun() -> bool:
    """Returns whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def join_torchrun() -> None:
    """Joins detectron2's process groups in a process that torchrun started."""
    rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun --nproc-per-node: more processes than the {torch.cuda.device_count()} "
                "GPUs of this machine; give fewer."
            )
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def share_cores() -> None:
    """Gives each of several processes on a CPU its share of the cores.

    Otherwise each would start a thread per core, and they would wait for each other.
    """
    local = comm.get_local_size()
    if local > 1 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cpu_count() // local))


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wraps the model in DistributedDataParallel if there are several processes.

    detectron2's ``create_ddp_model`` passes ``device_ids``, which a model on a CPU must not have.
    """
    if comm.get_world_size() == 1:
        return model
    device_ids = None if device.type == "cpu" else [comm.get_local_rank()]
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


def changing_buffers(model: nn.Module) -> list[Tensor]:
    """Returns the buffers that a training step may change, such as the statistics of norms."""
    modules = (m for m in model.modules() if m.training and not isinstance(m, FrozenBatchNorm2d))
    return [buffer for module in modules for buffer in module.buffers(recurse=False)]


def share_statistics(model: nn.Module) -> None:
    """Copies the first process's norm statistics, which checkpoints hold, to all processes."""
    if comm.get_world_size() > 1:
        for buffer in changing_buffers(model):
            dist.broadcast(buffer, 0)
