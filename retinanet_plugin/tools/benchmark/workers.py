"""A process for each detector, so that what one does to memory and caches stays its own."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ...acceleration.memory import keep_freed_memory
from ...errors import UserError
from .measure import Run, multiplications, release, seconds
from .models import Bench, Setting
from .parts import PARTS

# What a side may fail by without ending the run: no such detector, no memory, no compiler.
CANNOT = (UserError, RuntimeError, MemoryError)

# The threads of the side that ran before wait for more work in a loop, for some milliseconds.
OTHERS_SLEEP = 0.02
_LAST_WORDS = 2.0  # seconds to end by itself, and tidily


def prepare_process(side: str, setting: Setting) -> None:
    """Ours runs as train_net.py starts it, the others as they come. Before all else."""
    if side == "ours":
        keep_freed_memory(setting.cfg())


class Side:
    """One detector's side of the parts, in this process.

    Args:
        name: of the detector.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._bench: Bench | None = None
        self._run: Run | None = None

    def start(self, part: str, setting: Setting, weights: Path) -> tuple[Any, int]:
        """Builds and warms a part; a GPU runs twice more. Parts of a setting share detectors.

        Args:
            weights: folder through which the processes share the detectors' weights.

        Returns:
            what the first run gave, and its multiplications.
        """
        if self._bench is None or self._bench.setting != setting:
            self._bench = None  # first, so that memory holds the detectors of one setting
            self._bench = Bench(setting, weights)
        run = self._run = PARTS[part].sides[self._name](self._bench)
        seen: Any = None

        def first() -> None:
            nonlocal seen
            seen = run.observe(run.run(run.prepare()))

        count = 0 if run.network is None else multiplications(run.network, first)
        if run.network is None:
            first()
        for _ in range(2 if self._bench.device.type == "cuda" else 0):
            run.run(run.prepare())
        return seen, count

    def seconds(self) -> float:
        """The time of one run."""
        assert self._run is not None and self._bench is not None
        time.sleep(OTHERS_SLEEP)
        return seconds(self._run, self._bench.device)

    def finish(self) -> None:
        """Frees what the part held."""
        self._run = None
        release()


class Worker:
    """A :class:`Side` in a process of its own, which ends with this one.

    Its methods raise RuntimeError for what the side cannot do, and where its process has ended.
    """

    def __init__(self, name: str, setting: Setting, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, setting, threads), daemon=True
        )
        # It inherits that it ignores Ctrl-C, which reaches all processes: this one ends it. And
        # what its imports warn of, this one's have said.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with patch.dict(os.environ, PYTHONWARNINGS="ignore"):
                self._process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def start(self, part: str, setting: Setting, weights: Path) -> tuple[Any, int]:
        seen, count = self._ask("start", part, setting, weights)
        return seen, count

    def seconds(self) -> float:
        return float(self._ask("seconds"))

    def finish(self) -> None:
        self._ask("finish")

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._pipe.close()
        self._process.join(_LAST_WORDS)
        self._process.kill()
        self._process.join()

    def _ask(self, method: str, *args: Any) -> Any:
        try:
            self._pipe.send_bytes(pickle.dumps((method, args)))
            good, value = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join()
            status = self._process.exitcode
            raise RuntimeError(f"its process ended, status {status}") from None
        if not good:
            raise RuntimeError(value)
        return value


def _serve(pipe: Connection, name: str, setting: Setting, threads: int) -> None:
    """Does what :class:`Worker` asks, until it is gone."""
    prepare_process(name, setting)
    os.dup2(2, 1)  # the standard output is for the tables
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    side = Side(name)
    while True:
        try:
            method, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            reply = True, getattr(side, method)(*args)
        except CANNOT as error:
            reply = False, reason(error)
        # By value: torch's own way through a pipe would share memory.
        pipe.send_bytes(pickle.dumps(reply))


def _end_with_parent() -> None:
    """Also in the middle of a run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def reason(error: BaseException) -> str:
    """Why, in a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
