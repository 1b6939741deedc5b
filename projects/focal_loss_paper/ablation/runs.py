"""Runs rows in processes of their own: one after the other or several at once, stopped, resumed."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch

from retinanet_plugin.errors import UserError

from .plan import Run
from .results import (
    Result,
    State,
    changes,
    checkpoint_step,
    has_checkpoint,
    last_sentence,
    prepare_folder,
    read_result,
    result_of,
    set_aside,
    write_result,
    write_state,
)

_POLL = 0.2  # seconds
# Seconds after which a row that was asked to stop is asked by the next signal.
_SIGNALS = ((0.0, "SIGINT"), (10.0, "SIGTERM"), (15.0, "SIGKILL"))


class Command(Protocol):
    """Makes the command line of a run."""

    def __call__(self, run: Run, *, resume: bool) -> list[str]: ...


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def started(self, run: Run, from_step: int) -> None: ...

    def ended(self, run: Run, result: Result | None, sentence: str) -> None:
        """``result`` is None and ``sentence`` says why where the run failed."""

    def looked(self, running: Sequence["Running"], waiting: Sequence[Run]) -> None:
        """Called every :data:`_POLL` seconds."""


def train_command(num_gpus: int, imports: Sequence[str]) -> Command:
    """Runs a row by ``retinanet_plugin.tools.train.command``."""

    def command(run: Run, *, resume: bool) -> list[str]:
        words = [sys.executable, "-m", "retinanet_plugin.tools.train.command"]
        words += ["--config-file", str(run.config_file), "--num-gpus", str(num_gpus)]
        words += ["--dist-url", "auto", *(["--resume"] if resume else [])]
        return words + [word for name in imports for word in ("--import", name)]

    return command


def share_out(jobs: int, num_gpus: int, *, on_cpu: bool) -> list[dict[str, str]]:
    """The environment of each of ``jobs`` rows that run at once: its GPUs, or its CPU threads.

    ``OMP_NUM_THREADS``, if set, is a row's number of threads.

    Raises:
        UserError: for more than this machine has.
    """
    if on_cpu:
        cores = _cores()
        if jobs > cores:
            raise UserError(f"--jobs: {jobs} given for {cores} cores; give at most that.")
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(cores // jobs, 1))
        return [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = torch.cuda.device_count()
    names = visible.split(",")[:present] if visible else [str(i) for i in range(present)]
    if jobs * num_gpus > present:
        raise UserError(
            f"--jobs, --num-gpus: {jobs} rows at once of {num_gpus} each need {jobs * num_gpus} "
            f"GPUs, but this machine has {present}; give fewer."
        )
    parts = [names[i * num_gpus : (i + 1) * num_gpus] for i in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def check_unchanged(runs: Sequence[Run], *, again: bool) -> None:
    """Looks for runs that were begun with other settings; with ``again`` sets them aside.

    Raises:
        UserError: naming the first.
    """
    for run in runs:
        if differing := changes(run):
            if not again:
                more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
                raise UserError(
                    f"{run.folder}: was run with other settings ({'; '.join(differing[:3])}{more});"
                    " give another --output, or --again to run such rows anew (their folders are "
                    "kept under another name)."
                )
            set_aside(run)


@dataclass
class Running:
    """A row's process.

    Args:
        log_start, metrics_start: bytes that earlier attempts left.
        first_step: that it goes on at.
    """

    run: Run
    process: "subprocess.Popen[bytes]"
    slot: int
    state: State
    log_start: int
    metrics_start: int
    first_step: int
    began: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Runner:
    """Runs what has not ended yet.

    Args:
        output: folder that all runs lie in, where one with the same settings is looked for.
        command: of a run.
        environments: of the rows that run at once, one each.
        device: for the record.
        failed: takes the folder of each run that failed, and why it did.
        lock: of :func:`alone_in`, which the rows hold too.
    """

    def __init__(
        self,
        output: Path,
        command: Command,
        environments: Sequence[Mapping[str, str]],
        device: str,
        watcher: Watcher,
        failed: dict[str, str],
        lock: int | None = None,
    ) -> None:
        self.output, self.command, self.environments = output, command, environments
        self.device, self.watcher, self.lock = device, watcher, lock
        self.failed = failed
        self._running: list[Running] = []

    def __call__(self, runs: Sequence[Run]) -> None:
        """Returns when all have ended.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when all have stopped.
        """
        waiting = [run for run in _each_once(runs) if read_result(run.folder) is None]
        with _sigterm_as_ctrl_c():
            try:
                self._start(waiting)
                while waiting or self._running:
                    self.watcher.looked(self._running, waiting)
                    time.sleep(_POLL)
                    ended = [r for r in self._running if r.process.poll() is not None]
                    for r in ended:
                        self._end(r)
                    if ended:
                        self._start(waiting)
            except BaseException:
                self._stop()
                raise

    def _start(self, waiting: list[Run]) -> None:
        free = set(range(len(self.environments))) - {r.slot for r in self._running}
        digests = {r.run.digest for r in self._running}
        for run in list(waiting):
            if run.digest in digests:
                continue  # its result will be this one's
            if self._borrow(run):
                waiting.remove(run)
            elif free:
                waiting.remove(run)
                digests.add(run.digest)
                self._launch(run, free.pop())

    def _borrow(self, run: Run) -> bool:
        """Takes over the result of a run with the same settings, in another table perhaps."""
        for file in sorted(self.output.glob("*/*/seed_*/result.json")):
            result = read_result(file.parent)
            if result is not None and result.digest == run.digest and result.same_as is None:
                prepare_folder(run)
                result = replace(result, same_as=str(file.parent.relative_to(self.output)))
                write_result(run.folder, result)
                self.watcher.ended(run, result, "")
                return True
        return False

    def _launch(self, run: Run, slot: int) -> None:
        resume = has_checkpoint(run)
        state = prepare_folder(run)
        state.attempts += 1
        write_state(run, state)
        first = checkpoint_step(run)
        metrics = run.folder / "metrics.json"
        metrics_start = metrics.stat().st_size if metrics.exists() else 0
        environment = {**os.environ, **self.environments[slot], "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = _with_this_package(environment.get("PYTHONPATH"))
        with open(run.log, "ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                self.command(run, resume=resume),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=() if self.lock is None else (self.lock,),
                start_new_session=True,  # a terminal's Ctrl-C is passed on by us
            )
        now = time.monotonic()
        self._running.append(
            Running(run, process, slot, state, log_start, metrics_start, first, now)
        )
        self.watcher.started(run, first)

    def _end(self, ended: Running) -> None:
        self._running.remove(ended)
        run, state = ended.run, ended.state
        state.seconds += ended.seconds
        write_state(run, state)
        result = result_of(
            run,
            ended.process.returncode,
            ended.log_start,
            seconds=state.seconds,
            attempts=state.attempts,
            device=self.device,
        )
        sentence = ""
        if result is not None:
            write_result(run.folder, result)
        else:
            sentence = last_sentence(run.log, ended.log_start)
            if ended.process.returncode < 0:
                name = signal.Signals(-ended.process.returncode).name
                sentence = f"ended by {name}; before that: {sentence}"
            self.failed[str(run.folder)] = sentence
        self.watcher.ended(run, result, sentence)

    def _stop(self) -> None:
        """Asks all to stop, ever less kindly, and waits for them."""
        asked = time.monotonic()
        todo = list(_SIGNALS)
        while any(r.process.poll() is None for r in self._running):
            try:
                if todo and time.monotonic() - asked >= todo[0][0]:
                    name = todo.pop(0)[1]
                    for r in self._running:
                        _send(r.process, name)
                time.sleep(0.05)
            except KeyboardInterrupt:
                todo = [(0.0, "SIGKILL")]
        for r in self._running:
            r.state.seconds += r.seconds
            write_state(r.run, r.state)


def _each_once(runs: Sequence[Run]) -> list[Run]:
    """Rows that several tables share are the same run."""
    return list({str(run.folder): run for run in runs}.values())


def _send(process: "subprocess.Popen[bytes]", name: str) -> None:
    if process.poll() is not None:
        return
    try:
        if name == "SIGTERM" or not hasattr(os, "killpg"):
            process.terminate()  # its helpers follow it
        else:
            os.killpg(process.pid, getattr(signal, name))
    except ProcessLookupError:
        pass  # it has just ended


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {name: signal.signal(name, interrupt) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _with_this_package(path: str | None) -> str:
    """``PYTHONPATH`` by which a process finds this package, installed or not."""
    here = str(Path(__file__).resolve().parents[3])
    if here in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return path or ""
    return os.pathsep.join(filter(None, [here, path]))


@contextmanager
def alone_in(folder: Path) -> Iterator[int | None]:
    """Where no other process of this command runs rows in ``folder``, nor rows that one left.

    Gives the descriptor of the lock, which lasts as long as any process has it open.

    Raises:
        UserError: if one does.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield None
        return
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output: rows are being run in {folder} by another command, or were left by one "
                "that was killed; wait until they end, or give another folder."
            ) from None
        yield lock.fileno()
