"""The command that trains and evaluates: train_net.py, and ``tools.train`` where that is absent."""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import EXIT_STATUS, STOPPED, TO_BE_RESUMED, UserError, one_sentence
from .parallel import choose_workers, share_cores, started_by_torchrun, torchrun_group
from .setup import prepare
from .stopping import handled_by, status_of, stop_by_signal
from .trainer import Trainer
from .user_code import add_option, import_code

_KEPT = "checkpoints are as they were; run it again, with --resume to go on from the last"


def parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """detectron2's options, and ours."""
    words: argparse.ArgumentParser = default_argument_parser(epilog)
    add_option(words)
    return words


def main(args: argparse.Namespace) -> Any:
    """Runs in each process: trains, or with ``--eval-only`` evaluates."""
    share_cores()
    import_code(args.imports)
    cfg = prepare(args)
    if args.eval_only:
        results = Trainer.evaluate(cfg, resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    with stop_by_signal(trainer):
        return trainer.train()


def invoke(words: Sequence[str] | None = None, epilog: str | None = None) -> None:
    """Reads the command line and starts the processes, unless torchrun has."""
    known = parser(epilog)
    args = known.parse_args(words)
    with one_sentence(_KEPT):
        if started_by_torchrun():
            # After a failure it starts all processes anew, by the same command.
            args.resume |= int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
            with torchrun_group(), _stoppable():
                main(args)
            return
        is_given = args.dist_url != known.get_default("dist_url")
        dist_url = args.dist_url if is_given else None
        workers = choose_workers(args.num_gpus, args.num_machines, args.machine_rank, dist_url)
        if workers * args.num_machines > 1:
            _start_tracker()
        with _stoppable() if workers * args.num_machines == 1 else _workers_stoppable():
            launch(
                main,
                workers,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )


def _start_tracker() -> None:
    """Starts the process by which Python tidies up after others, so that SIGUSR1 leaves it alone.

    A scheduler sends that to all processes; without it the others print a traceback a lock.
    """
    if hasattr(signal, "SIGUSR1"):
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which a new process inherits
        resource_tracker.ensure_running()
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Where a signal ends the command by a sentence."""
    received = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal.Signals(number)
        raise KeyboardInterrupt

    with handled_by(stop):
        try:
            yield
        except KeyboardInterrupt:
            print(f"stopped: {_KEPT}.", file=sys.stderr, flush=True)
            raise SystemExit(status_of(received)) from None


@contextmanager
def _workers_stoppable() -> Iterator[None]:
    """Where signals go to the worker processes, of which the first stops as it sees fit."""
    received: signal.Signals | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal.Signals(number)
        if number == signal.SIGTERM:  # by which launch ends workers at once
            number = getattr(signal, "SIGUSR1", number)
        for worker in multiprocessing.active_children():
            if worker.pid is not None:
                os.kill(worker.pid, number)

    with handled_by(pass_on):
        try:
            yield
        except ProcessExitedException as error:
            if error.exit_code in (STOPPED, TO_BE_RESUMED, EXIT_STATUS):
                raise SystemExit(error.exit_code) from None  # it has said why
            if received is not None:  # before the first worker was prepared for it
                print(f"stopped: {_KEPT}.", file=sys.stderr, flush=True)
                raise SystemExit(status_of(received)) from None
            raise UserError(
                f"worker process {error.error_index} ended by itself ({error}): if nothing else is "
                "said above, the system has killed it, mostly for lack of memory; go on by the "
                "same command with --resume"
            ) from None
