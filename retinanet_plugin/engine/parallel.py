"""Several processes, on GPUs by NCCL or on CPUs by gloo: who starts them, and what they share.

detectron2's ``launch`` starts those of ``--num-gpus`` and ``--num-machines``; torchrun its own, one
command each, and says by environment variables which is which.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError

_PATIENCE = 600.0  # seconds in which all processes of a job are to come


def choose_workers(
    num_gpus: int, num_machines: int, machine_rank: int = 0, dist_url: str | None = None
) -> int:
    """How many processes to start on this machine, given how many GPUs were asked for.

    Without a GPU it is that number too, but for one CPU core each at least.

    Args:
        dist_url: where all machines meet; None: not given, which leaves a port of this one.

    Raises:
        UserError: if there are fewer GPUs, or the machines cannot come together.
    """
    if num_machines < 1:
        raise UserError(f"--num-machines: {num_machines} given; give at least 1.")
    if not 0 <= machine_rank < num_machines:
        raise UserError(
            f"--machine-rank: {machine_rank} given for --num-machines {num_machines}; give each "
            f"machine its own number from 0 to {num_machines - 1}."
        )
    if num_machines > 1 and dist_url is None:
        raise UserError(
            f"--dist-url: none given for --num-machines {num_machines}; give all of them the "
            "address of the first and a free port there, such as --dist-url tcp://HOST:29500."
        )
    if num_gpus < 1:
        raise UserError(
            f"--num-gpus: {num_gpus} given; give at least 1, or MODEL.DEVICE cpu at the end of the "
            "command to leave the GPU alone."
        )
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if present == 0:
        workers = num_gpus if num_machines > 1 else min(num_gpus, _cores())
        print(
            f"No GPU found (--num-gpus {num_gpus}): running on the CPU, in "
            f"{'one process' if workers == 1 else f'{workers} processes'}.",
            flush=True,
        )
        return workers
    if num_gpus > present:
        raise UserError(
            f"--num-gpus: {num_gpus} asked for, but this machine has {present}; give at most that."
        )
    return num_gpus


def started_by_torchrun() -> bool:
    """Whether this process is one of torchrun's."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def torchrun_group() -> Iterator[None]:
    """Where the processes that torchrun started form detectron2's groups."""
    rank = int(os.environ["LOCAL_RANK"])
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        if rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun --nproc-per-node: more processes than the {torch.cuda.device_count()} "
                "GPUs of this machine; give at most that."
            )
        torch.cuda.set_device(rank)
    store, number, workers = next(rendezvous("env://"))
    dist.init_process_group(
        "nccl" if has_gpu else "gloo",
        store=unused_part(store, number, workers),
        rank=number,
        world_size=workers,
    )
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        yield
    finally:
        dist.destroy_process_group()


def unused_part(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A part of torchrun's store that no earlier start of the processes has written to.

    torchrun keeps one store over restarts, in which new processes would look for those that ended
    (pytorch/pytorch#135712). Each says hello by a name of its own, and the first answers all that
    did, also before the restart, until all have seen the name of the part.

    Raises:
        TimeoutError: if some do not come.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", own)
        part = store.get(f"answer/{own}").decode()  # waits for it
        store.set(f"{part}/seen/{rank}", "")
        return dist.PrefixStore(part, store)
    absent = set(range(1, world_size))
    until = time.monotonic() + _PATIENCE
    while absent:
        for other in list(absent):
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", own)
            if store.check([f"{own}/seen/{other}"]):
                absent.remove(other)
        if time.monotonic() > until:
            raise TimeoutError(f"{len(absent)} of {world_size} processes have not come")
        time.sleep(0.05)
    return dist.PrefixStore(own, store)


def share_cores() -> None:
    """On CPUs, gives each process of this machine its part of the cores.

    All of them in each process would make every operation wait for threads without a core.
    """
    local = comm.get_local_size()
    if local > 1 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _cores() // local))


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as one of several that average their gradients; alone it stays as it is.

    detectron2's ``create_ddp_model`` names a GPU, also where the model is on a CPU.
    """
    if comm.get_world_size() == 1:
        return model
    devices = None if device.type == "cpu" else [comm.get_local_rank()]
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def changing_buffers(model: nn.Module) -> list[Tensor]:
    """Those that a step in training may change, such as the statistics of norms."""
    modules = (m for m in model.modules() if m.training and not isinstance(m, FrozenBatchNorm2d))
    return [buffer for module in modules for buffer in module.buffers(recurse=False)]


def share_statistics(model: nn.Module) -> None:
    """Gives all processes the first one's statistics of norms, which checkpoints hold.

    Norms that train see the pictures of their process alone.
    """
    if comm.get_world_size() > 1:
        for buffer in changing_buffers(model):
            dist.broadcast(buffer, 0)


def _cores() -> int:
    """Those that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
