"""Starts the processes that train or evaluate: ``retinanet train`` and ``train_net.py``."""

import argparse
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import EXIT_STATUS, STOPPED, TO_BE_RESUMED, UserError, sentence_of
from .parallel import choose_workers, join_torchrun, share_cores, started_by_torchrun
from .setup import prepare
from .stopping import handled_by, status_of, stop_by_signal
from .trainer import Trainer
from .user_code import add_import_option, import_code

# By then another process that has died is noticed; its loader workers outlive it by up to 5 s.
_NOTICED_S = 10
AfterTraining = Callable[[str], Any]

logger = logging.getLogger("retinanet_plugin")


# Options of detectron2's whose help differs: theirs also speaks of LazyConfig and of CUDA only.
_HELP = {
    "config_file": "a YAML file, or the name of a shipped one",
    "resume": "continue the run in OUTPUT_DIR from its newest checkpoint, if it has one",
    "eval_only": "evaluate MODEL.WEIGHTS on DATASETS.TEST, without training",
    "num_gpus": "GPUs per machine; without a GPU, processes per machine; default: 1",
    "opts": "overrides of config keys, after all options",
}


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of detectron2's training options, ``--device`` and ``--import``."""
    result: argparse.ArgumentParser = default_argument_parser()
    result.prog, result.description, result.epilog = "retinanet train", description, None
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    for action in result._actions:
        action.help = _HELP.get(action.dest, action.help)
        if action.dest == "opts":
            action.metavar = "KEY VALUE"
    result.set_defaults(dist_url="auto")
    result.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:0, ...; default: a GPU")
    add_import_option(result)
    return result


def main(args: argparse.Namespace, after_training: AfterTraining | None = None) -> Any:
    """Trains, or evaluates with ``--eval-only``; each process runs this."""
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
        results = trainer.train()
    if after_training is not None and cfg.TEST.REPORT and comm.is_main_process():
        try:
            after_training(cfg.OUTPUT_DIR)
        except Exception as error:
            reason = sentence_of(error) or f"{type(error).__name__}: {error}"
            logger.warning(f"The report (TEST.REPORT) was not written: {reason}")
    return results


def invoke(
    args: Sequence[str] | None = None,
    description: str | None = None,
    after_training: AfterTraining | None = None,
) -> None:
    """Parses the command line and runs :func:`main` in each process.

    Args:
        args: command line; None: ``sys.argv``.
        description: first part of the help text.
        after_training: called with ``OUTPUT_DIR`` by the main process when training has succeeded,
            if ``TEST.REPORT``; a module-level function, as other processes must be able to import
            it. If it fails, a warning is logged.
    """
    options = parser(description).parse_args(args)
    if options.device:
        options.opts = [*options.opts, "MODEL.DEVICE", options.device]
    if started_by_torchrun():
        # After a failure torchrun restarts all processes with the same command.
        options.resume |= int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        join_torchrun()
        _work(options, after_training)
        return
    if options.num_machines > 1 and options.dist_url == "auto":
        raise UserError(
            "--dist-url: not given for several machines; give the address of the first and a free "
            "port there, such as tcp://HOST:29500."
        )
    workers = choose_workers(options.num_gpus, options.num_machines)
    if workers * options.num_machines == 1:
        main(options, after_training)
        return
    with _signals_to_workers():
        launch(
            _work,
            workers,
            num_machines=options.num_machines,
            machine_rank=options.machine_rank,
            dist_url=options.dist_url,
            args=(options, after_training),
        )


def _work(args: argparse.Namespace, after_training: AfterTraining | None) -> None:
    """Runs :func:`main` in one of several processes.

    If another process dies, communication with it fails with an error of gloo or NCCL. This one
    then waits, so that the other is the first to end, whose end the job reports.
    """
    try:
        main(args, after_training)
    except Exception as error:
        if sentence_of(error) is None:
            time.sleep(_NOTICED_S)
        raise
    dist.destroy_process_group()


@contextmanager
def _signals_to_workers() -> Iterator[None]:
    """Passes signals on to the worker processes, and ends with their exit status."""
    received = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        for worker in multiprocessing.active_children():
            if worker.pid is not None:
                os.kill(worker.pid, number)

    with handled_by(pass_on):
        try:
            yield
        except ProcessExitedException as error:
            if error.exit_code in (STOPPED, TO_BE_RESUMED, EXIT_STATUS):
                raise SystemExit(error.exit_code) from None  # the worker has printed why
            if received:  # before the worker was prepared for it
                raise SystemExit(status_of(received)) from None
            raise UserError(
                f"worker process {error.error_index} ended ({error}): if it printed no reason, the "
                "system may have killed it for lack of memory; continue with --resume."
            ) from None
