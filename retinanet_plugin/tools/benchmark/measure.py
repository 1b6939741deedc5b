"""Time, memory, and what the machine itself can do."""

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...evaluation import timing

_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS_A_PART = 3, 15, 12.0


@dataclass(frozen=True)
class Run:
    """One side of a comparison.

    Args:
        run: what is timed, given what ``prepare`` returned.
        prepare: what is done before each run, and not timed.
        observe: what the sides are compared by, from what ``run`` returned; not timed.
        network: what the run spends its multiplications in.
    """

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    observe: Callable[[Any], Any] = lambda result: result
    network: nn.Module | None = None


def seconds(run: Run, device: torch.device) -> float:
    """The time of one run; on a GPU by events, between two moments at which it has no work."""
    given = run.prepare()
    return timing.seconds(lambda: run.run(given), device)


def alternate(
    sides: Mapping[str, Callable[[], float | None]], rounds: int | None = None
) -> dict[str, list[float]]:
    """Times the sides in turn, so that what else the machine does meets all of them.

    Args:
        sides: each gives the time of one run, and is already warm; None: it failed, and is left
            out.
        rounds: how often; None: 3 to 15 times, as long as they fit into 12 seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    start = time.perf_counter()
    for done in range(rounds or _MAX_ROUNDS):
        after_one_more = (time.perf_counter() - start) * (done + 1) / max(done, 1)
        if rounds is None and done >= _MIN_ROUNDS and after_one_more > _SECONDS_A_PART:
            break
        for name in list(times):
            time_of_one = sides[name]()
            if time_of_one is None:
                del times[name]
            else:
                times[name].append(time_of_one)
    return times


def summary(times: list[float]) -> dict[str, Any]:
    """The median of some times in seconds, and how they spread."""
    return {"median": median(times), "min": min(times), "max": max(times), "all": times}


def peak_memory(build: Callable[[], Run], device: torch.device, *, warm: bool) -> dict[str, int]:
    """Bytes held before building, before running, and at the peak of a run.

    For a process of its own. On a GPU the allocator's, else what is resident in memory.

    Args:
        warm: run once beforehand, so that what stays loaded or compiled does not count.
    """
    before_build = _held(device)
    run = build()
    if warm:
        run.run(run.prepare())
    given = run.prepare()
    release()
    _reset_peak(device)
    before_run = _held(device)
    run.run(given)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {"before_build": before_build, "before_run": before_run, "peak": _peak(device)}


def release() -> None:
    """Gives freed memory back to the system, where the C library can, and to the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = _status("VmRSS")
    return _highest_ever() if status is None else status


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = _status("VmHWM")
    return _highest_ever() if status is None else status


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int | None:
    """A size in bytes from Linux's account of this process."""
    if sys.platform != "linux":
        return None
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _highest_ever() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Rates:
    """What the machine can do."""

    float32: float  # multiplications with addition a second, in the better of two products
    bfloat16: float
    copy: float  # bytes a second, of a large copy: each is read and written
    compare: float  # float32 numbers a second, each compared with one number


def better(a: Rates, b: Rates) -> Rates:
    """The higher of two measurements each: what else ran only ever makes them lower."""
    return Rates(*map(max, astuple(a), astuple(b)))


def measure_rates(device: torch.device) -> Rates:
    """The rates of the machine: the best of a few runs each."""
    numbers = torch.randn(16_000_000, device=device)
    copied, above = torch.empty_like(numbers), torch.empty_like(numbers, dtype=torch.bool)
    copy = _best(lambda: copied.copy_(numbers), device)
    compare = _best(lambda: torch.gt(numbers, 3.0, out=above), device)
    return Rates(
        float32=_matrix_rate(torch.float32, device),
        bfloat16=_matrix_rate(torch.bfloat16, device),
        copy=numbers.nbytes / copy,
        compare=numbers.numel() / compare,
    )


@torch.no_grad()
def _matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """The better of a matrix product and the head's convolution at 800 x 1216."""
    size, batch = (8192, 16) if device.type == "cuda" else (2048, 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = size**3 / _best(lambda: a @ b, device)
    x = torch.randn(batch, 256, 100, 152, device=device, dtype=dtype)
    w = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    places = batch * 100 * 152
    return max(product, places * 256 * 256 * 9 / _best(lambda: F.conv2d(x, w, padding=1), device))


def _best(function: Callable[[], Any], device: torch.device, repeats: int = 7) -> float:
    run = Run(lambda _: function())
    seconds(run, device)
    return min(seconds(run, device) for _ in range(repeats))


def multiplications(network: nn.Module, run: Callable[[], Any]) -> int:
    """Multiplications with addition of the network's convolutions in ``run`` and its gradients.

    A convolution costs as much again for the gradient of its weights, and of its input, where
    they are wanted.
    """
    total = 0

    def count(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        passes = 1
        if torch.is_grad_enabled():
            passes += conv.weight.requires_grad + inputs[0].requires_grad
        total += passes * output.numel() * conv.weight[0].numel()

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(count) for m in convolutions]
    run()
    for hook in hooks:
        hook.remove()
    return total
