"""Runs each detector in a process of its own, so that none affects another's memory and caches."""

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
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

# Threads of the side that ran before busy-wait for more work for some milliseconds.
_OTHERS_SLEEP = 0.02


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
        result, count = multiplications(run.network, lambda: run.run(run.prepare()))
        observed = run.observe(result)
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
    """A :class:`Side` in another process: ours set up as train_net.py does, the others not at all.

    A worker whose process was killed, such as for lack of memory, is not ``alive`` any more.
    """

    def __init__(
        self, name: str, setting: Setting, threads: int, imports: Sequence[str] = ()
    ) -> None:
        self.alive = True
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, name, setting, threads, imports)
        )
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: this process ends it
        with patch.dict(os.environ, PYTHONWARNINGS="ignore"):  # those of imports were shown before
            self.process.start()
        signal.signal(signal.SIGINT, handler)
        theirs.close()

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the side.

        Raises:
            RuntimeError: if there is no such detector, or not enough memory, or no compiler.
        """
        try:
            self._connection.send((method, args))
            result = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            self.alive = False
            raise RuntimeError("its process was killed") from None
        if isinstance(result, RuntimeError):
            raise result
        return result

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self.alive = False
        self.process.kill()
        self.process.join()


def _serve(
    connection: Connection, name: str, setting: Setting, threads: int, imports: Sequence[str]
) -> None:
    import_code(imports)
    if name == "ours":
        keep_freed_memory(setting.cfg())
    os.dup2(2, 1)  # stdout is for the tables
    torch.set_num_threads(threads)
    side = Side(name)
    with suppress(EOFError, ConnectionError):  # until the main process ends
        while True:
            method, args = connection.recv()
            try:
                result = getattr(side, method)(*args)
            except (UserError, RuntimeError, MemoryError) as error:
                result = RuntimeError(str(error).strip() or type(error).__name__)
            # Not by connection.send, which would share tensors' memory instead of copying it.
            connection.send_bytes(pickle.dumps(result))
