"""Runs each detector in a process of its own, so that none affects another's memory and caches."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ...acceleration.memory import keep_freed_memory
from ...engine.user_code import import_code
from ...errors import UserError
from .measure import Run, multiplications, peak_memory, release, seconds
from .models import Bench, Setting
from .parts import PARTS

# How a side may fail without ending the benchmark: no such detector, memory or compiler.
FAILURES = (UserError, RuntimeError, MemoryError)

# Threads of the side that ran before busy-wait for more work for some milliseconds.
_OTHERS_SLEEP = 0.02

_side: "Side"  # of a worker process


def prepare_process(side: str, setting: Setting) -> None:
    """Sets this process up: ours as train_net.py does, the others not at all."""
    if side == "ours":
        keep_freed_memory(setting.cfg())


class Side:
    """One detector's side of the parts, in this process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bench: Bench | None = None
        self._run: Run | None = None

    def start(self, part: str, setting: Setting, weights: Path) -> tuple[Any, int]:
        """Builds a part and warms it up; parts of one setting share the detector.

        Args:
            weights: a folder through which processes share the detectors' weights.

        Returns:
            what the first run gave, and its multiplications.
        """
        if self._bench is None or self._bench.setting != setting:
            self._bench = None  # first, so that memory holds the detectors of one setting only
            self._bench = Bench(setting, weights)
        run = self._run = PARTS[part].sides[self._name](self._bench)
        observed: Any = None

        def first() -> None:
            nonlocal observed
            observed = run.observe(run.run(run.prepare()))

        count = 0
        if run.network is None:
            first()
        else:
            count = multiplications(run.network, first)
        for _ in range(2 if self._bench.device.type == "cuda" else 0):
            run.run(run.prepare())
        return observed, count

    def seconds(self) -> float:
        """Returns the time of one run."""
        assert self._run is not None and self._bench is not None
        time.sleep(_OTHERS_SLEEP)
        return seconds(self._run, self._bench.device)

    def finish(self) -> None:
        """Frees what the part held."""
        self._run = None
        release()

    def peak_memory(self, part: str, setting: Setting, weights: Path) -> dict[str, int]:
        """Measures memory; for a fresh process."""
        bench = Bench(setting, weights)
        build = PARTS[part].sides[self._name]
        return peak_memory(lambda: build(bench), bench.device, warm=not PARTS[part].whole)


class Worker:
    """A :class:`Side` in another process; its methods raise one of :data:`FAILURES`.

    A worker whose process was killed, such as for lack of memory, is not ``alive`` any more.
    """

    def __init__(
        self, name: str, setting: Setting, threads: int, imports: Sequence[str] = ()
    ) -> None:
        self.alive = True
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _initialize, (name, setting, threads, imports)
        )
        with patch.dict(os.environ, PYTHONWARNINGS="ignore"):  # those of imports were shown before
            self._pid = self._pool.submit(os.getpid).result()

    def start(self, part: str, setting: Setting, weights: Path) -> tuple[Any, int]:
        observed, count = self._call("start", part, setting, weights)
        return observed, count

    def seconds(self) -> float:
        return float(self._call("seconds"))

    def finish(self) -> None:
        self._call("finish")

    def peak_memory(self, part: str, setting: Setting, weights: Path) -> dict[str, int]:
        sizes: dict[str, int] = self._call("peak_memory", part, setting, weights)
        return sizes

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        if self.alive:
            self.alive = False
            os.kill(self._pid, signal.SIGKILL)
        self._pool.shutdown()

    def _call(self, method: str, *args: Any) -> Any:
        try:
            return pickle.loads(self._pool.submit(_call, method, args).result())
        except BrokenProcessPool:
            self.alive = False
            raise RuntimeError("its process was killed") from None


def _initialize(name: str, setting: Setting, threads: int, imports: Sequence[str]) -> None:
    global _side
    import_code(imports)
    prepare_process(name, setting)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # stdout is for the tables
    torch.set_num_threads(threads)
    _side = Side(name)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(method: str, args: tuple[Any, ...]) -> bytes:
    # Pickled here, because multiprocessing would share tensors' memory instead of copying it.
    return pickle.dumps(getattr(_side, method)(*args))
