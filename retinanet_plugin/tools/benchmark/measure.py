"""Measures time, memory, and the limits of the machine."""

import ctypes
import gc
import re
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

_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS_PER_PART = 3, 15, 12.0
_REPEATS = 7  # runs, of which the fastest gives a rate of the machine


@dataclass(frozen=True)
class Run:
    """What one detector does in a comparison.

    Args:
        run: is timed; called with what ``prepare`` returned.
        prepare: called before each run, not timed.
        observe: extracts what is compared from the result of ``run``; not timed.
        network: contains the convolutions whose multiplications are counted.
    """

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    observe: Callable[[Any], Any] = lambda result: result
    network: nn.Module | None = None


def seconds(run: Run, device: torch.device) -> float:
    """Returns the time of one run."""
    prepared = run.prepare()
    return timing.seconds(lambda: run.run(prepared), device)


def alternate(
    sides: Mapping[str, Callable[[], float | None]], rounds: int | None = None
) -> dict[str, list[float]]:
    """Times the sides in turn, so that other load on the machine affects all of them.

    Args:
        sides: each returns the time of one warm run; None if it failed, which ends its turns.
        rounds: how often; None: 3 to 15 times, as many as fit into 12 seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    start = time.perf_counter()
    for done in range(rounds or _MAX_ROUNDS):
        after_next = (time.perf_counter() - start) * (done + 1) / max(done, 1)
        if rounds is None and done >= _MIN_ROUNDS and after_next > _SECONDS_PER_PART:
            break
        for name in list(times):
            taken = sides[name]()
            if taken is None:
                del times[name]
            else:
                times[name].append(taken)
    return times


def summary(times: list[float]) -> dict[str, Any]:
    """Returns the median of some times, and their spread."""
    return {"median": median(times), "min": min(times), "max": max(times), "all": times}


# ---------------------------------------------------------------- memory


def peak_memory(build: Callable[[], Run], device: torch.device, *, warm: bool) -> dict[str, int]:
    """Returns the bytes held before building, before running, and at the peak of a run.

    To be called in a fresh process. On a GPU they are the allocator's, otherwise resident memory.

    Args:
        warm: run once beforehand, so that what remains loaded or compiled does not count.
    """
    cuda = device.type == "cuda"

    def held() -> int:
        return torch.cuda.memory_allocated(device) if cuda else _resident("VmRSS")

    before_build = held()
    run = build()
    if warm:
        run.run(run.prepare())
    prepared = run.prepare()
    release()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before_run = held()
    run.run(prepared)
    if cuda:
        torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) if cuda else _resident("VmHWM")
    return {"before_build": before_build, "before_run": before_run, "peak": peak}


def release() -> None:
    """Returns freed memory to the system, if the C library can, and to the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _resident(key: str) -> int:
    """Returns VmRSS, the resident memory of this process, or VmHWM, its peak, in bytes."""
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{key}:\s+(\d+) kB", status, flags=re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


# ---------------------------------------------------------------- limits of the machine


@dataclass(frozen=True)
class Rates:
    """What the machine can do per second."""

    float32: float  # multiply-adds, in the faster of two kinds of product
    bfloat16: float
    copy: float  # bytes of a large tensor copied, each read and written once
    compare: float  # float32 numbers compared with a constant


def better(a: Rates, b: Rates) -> Rates:
    """Returns the higher of two measurements: other load only ever lowers them."""
    return Rates(*map(max, astuple(a), astuple(b)))


def measure_rates(device: torch.device) -> Rates:
    """Measures the machine's rates: the best of a few runs each."""
    numbers = torch.randn(16_000_000, device=device)
    copied, above = torch.empty_like(numbers), torch.empty_like(numbers, dtype=torch.bool)
    copy = _best(lambda: copied.copy_(numbers), device)
    compare = _best(lambda: torch.gt(numbers, 3.0, out=above), device)
    return Rates(
        float32=_product_rate(torch.float32, device),
        bfloat16=_product_rate(torch.bfloat16, device),
        copy=numbers.nbytes / copy,
        compare=numbers.numel() / compare,
    )


@torch.no_grad()
def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Returns the higher rate of a matrix product and of the head's convolution at 800 x 1216."""
    size, batch = (8192, 16) if device.type == "cuda" else (2048, 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = size**3 / _best(lambda: a @ b, device)
    x = torch.randn(batch, 256, 100, 152, device=device, dtype=dtype)
    w = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    locations = batch * 100 * 152
    seconds_conv = _best(lambda: F.conv2d(x, w, padding=1), device)
    return max(product, locations * 256 * 256 * 9 / seconds_conv)


def _best(function: Callable[[], Any], device: torch.device) -> float:
    timing.seconds(function, device)
    return min(timing.seconds(function, device) for _ in range(_REPEATS))


def multiplications(network: nn.Module | None, run: Callable[[], Any]) -> tuple[Any, int]:
    """Counts the multiply-adds of the network's convolutions in ``run`` and in its backward pass.

    A convolution costs the same again for the gradient of its weights, and of its input, if they
    are needed.

    Returns:
        what ``run`` returns, and the count: 0 without a network.
    """
    total = 0

    def count(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        passes = 1
        if torch.is_grad_enabled():
            passes += conv.weight.requires_grad + inputs[0].requires_grad
        total += passes * output.numel() * conv.weight[0].numel()

    modules = network.modules() if network is not None else ()
    hooks = [m.register_forward_hook(count) for m in modules if isinstance(m, nn.Conv2d)]
    result = run()
    for hook in hooks:
        hook.remove()
    return result, total
