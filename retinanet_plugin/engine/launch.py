"""The command that trains and evaluates: train_net.py, and ``tools.train`` where that is absent."""

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import STOPPED, one_sentence
from .imports import add_option, import_code
from .setup import choose_workers, prepare
from .stopping import stop_by_signal
from .trainer import Trainer

_PATIENCE = 15.0  # seconds


def parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """detectron2's options, and ours."""
    words: argparse.ArgumentParser = default_argument_parser(epilog)
    add_option(words)
    return words


def main(args: argparse.Namespace) -> Any:
    """Runs in each process: trains, or with ``--eval-only`` evaluates."""
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
    """Reads the command line and starts a process for each GPU."""
    args = parser(epilog).parse_args(words)
    with one_sentence():
        workers = choose_workers(args.num_gpus, args.num_machines)
    with one_sentence(), _stoppable(workers * args.num_machines):
        launch(
            main,
            workers,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


@contextmanager
def _stoppable(num_workers: int) -> Iterator[None]:
    """Where Ctrl-C and SIGTERM end the command by a sentence, and its worker processes with it."""

    def stop(number: int, frame: FrameType | None) -> None:
        for worker in processes():
            os.kill(worker.pid, signal.SIGINT)  # what a terminal's Ctrl-C sends to all
        raise KeyboardInterrupt

    def processes() -> list[Any]:
        return list(multiprocessing.active_children()) if num_workers > 1 else []

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        workers = processes()
        if not workers:
            print("stopped: checkpoints are as they were.", file=sys.stderr, flush=True)
        patient_until = time.monotonic() + _PATIENCE  # for the one that writes a checkpoint
        while workers and all(w.is_alive() for w in workers) and time.monotonic() < patient_until:
            time.sleep(0.1)
        for worker in workers:
            worker.terminate()
        raise SystemExit(STOPPED) from None
    except ProcessExitedException as error:
        if error.exit_code != STOPPED:
            raise
        raise SystemExit(STOPPED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
