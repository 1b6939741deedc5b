r"""Repeats the paper's tables: trains their rows and shows the results beside the paper's.

    python -m projects.focal_loss_paper ablate --list
    python -m projects.focal_loss_paper ablate b_gamma --num-gpus 8        # on COCO, as the paper
    python -m projects.focal_loss_paper ablate b_gamma --data quickstart --jobs 2
    python -m projects.focal_loss_paper ablate a_alpha b_gamma --data bccd_R18_FPN.yaml \
        --seeds 1,2,3 DATASETS.OWN.ROOT /data/bccd
    python -m projects.focal_loss_paper ablate b_gamma --data quickstart \
        --add-row my_row.yaml --import my_loss.py

Each row is a `retinanet train` of its own. Results are in OUTPUT/TABLE/results.md, .csv and .png,
which are updated after each row. After an interruption the same command continues: finished rows
are kept, and others resume from their checkpoint.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from retinanet_plugin.command_line import add_overrides, parse, positive_int, split_overrides
from retinanet_plugin.data import check_registered_datasets, register_own_datasets
from retinanet_plugin.errors import UserError
from retinanet_plugin.evaluation.timing import describe_machine
from retinanet_plugin.utils import cpu_count, output_files, write_text

from .ablation_plan import PAPER, Options, Run, check_unchanged, make_plans
from .ablation_report import last_line, read_result, write_report, write_result
from .common import paper_parser
from .tables import TABLES

_POLL = 0.2  # seconds


def _parser() -> argparse.ArgumentParser:
    usage = "TABLE [TABLE ...] [options] [KEY VALUE ...]"
    parser = paper_parser("ablate", __doc__, usage)
    parser.add_argument("--list", action="store_true", help="show all tables and rows")
    parser.add_argument(
        "--data",
        default=PAPER,
        help="a config whose data, network and schedule the rows are trained with: a file or a "
        "shipped name, such as quickstart; default: coco, the paper's own",
    )
    parser.add_argument("--output", type=Path, help="default: output/ablations/DATA")
    parser.add_argument("--rows", default="", metavar="NAME,...", help="only these rows")
    parser.add_argument(
        "--add-row",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.yaml",
        help="add a row of your own, named after its file; may be repeated",
    )
    parser.add_argument("--seeds", default="", metavar="N,...", help="train each row once per seed")
    parser.add_argument("--steps", type=positive_int, help="shorten training to this many steps")
    parser.add_argument(
        "--jobs", type=positive_int, default=1, help="rows trained in parallel; default: 1"
    )
    parser.add_argument("--num-gpus", type=positive_int, default=1, help="per row; default: 1")
    add_overrides(parser)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Trains the rows that have no result yet; returns the exit status."""
    parsed = parse(_parser(), args)
    if parsed.list:
        print(list_tables())
        return 0
    names, overrides = split_overrides(parsed.opts)
    options = Options(
        data=parsed.data,
        output=parsed.output or Path("output/ablations", Path(parsed.data).stem),
        steps=parsed.steps,
        seeds=_seeds(parsed.seeds),
        rows=[name for name in parsed.rows.split(",") if name],
        own_rows=parsed.add_row,
        overrides=overrides,
    )
    plans = make_plans(names, options)
    runs = list({run.folder: run for plan in plans for run in plan.chosen}.values())
    cfg = runs[0].cfg.clone()
    on_cpu = cfg.MODEL.DEVICE == "cpu" or not torch.cuda.is_available()
    slots = share_machine(parsed.jobs, parsed.num_gpus, on_cpu=on_cpu)
    output_files(options.output, [], overwrite=False)
    check_unchanged(runs)
    todo = [run for run in runs if read_result(run.folder) is None]
    if todo:  # once for all rows
        cfg.OUTPUT_DIR = str(options.output)
        register_own_datasets(cfg)
        check_registered_datasets(cfg)
    command = ["--num-gpus", str(parsed.num_gpus), "--dist-url", "auto"]
    for name in parsed.imports:
        command += ["--import", name]
    machine = describe_machine("cpu" if on_cpu else "cuda", torch.get_num_threads())
    failed: list[Run] = []

    def finish(run: Run, status: int) -> str:
        outcome = write_result(run, status, machine)
        if outcome is None:
            failed.append(run)
        for plan in plans:
            if run in plan.chosen:
                write_report(plan, failed)
        return outcome or f"FAILED: {last_line(run.log)} (log: {run.log})"

    train_all(todo, len(runs), slots, command, finish)
    for plan in plans:
        print(write_report(plan, failed))
        print(f"{plan.folder}: results.md, results.csv, results.png", file=sys.stderr)
    return 1 if failed else 0


def list_tables() -> str:
    """Returns every table with its rows and the paper's AP."""
    lines = []
    for table in TABLES.values():
        lines.append(f"{table.name}: {table.title}")
        width = max(len(row.name) for row in table.rows)
        for row in table.rows:
            ap = "" if row.ap is None else f"   AP {row.ap} in the paper"
            lines.append(f"    {row.name:<{width}}   {row.label}{ap}")
    return "\n".join(lines)


def _seeds(text: str) -> list[int]:
    seeds = text.split(",") if text else []
    if not all(seed.isdecimal() and int(seed) < 2**32 for seed in seeds):
        raise UserError(f'--seeds: "{text}"; give integers from 0 to 2^32 - 1, such as 1,2,3.')
    return list(dict.fromkeys(map(int, seeds)))


def share_machine(jobs: int, num_gpus: int, *, on_cpu: bool) -> list[dict[str, str]]:
    """Returns the environment of each of ``jobs`` simultaneous rows: its GPUs or CPU threads.

    Raises:
        UserError: for more than this machine has.
    """
    if on_cpu:
        cores = cpu_count()
        if jobs > cores:
            raise UserError(f"--jobs: {jobs}, but this machine has {cores} cores.")
        return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores // jobs))}] * jobs
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    if jobs * num_gpus > count:
        raise UserError(
            f"--jobs, --num-gpus: {jobs} rows on {num_gpus} GPUs each, but this machine has "
            f"{count} GPUs."
        )
    groups = [gpus[i * num_gpus : (i + 1) * num_gpus] for i in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def train_all(
    todo: Sequence[Run],
    total: int,
    slots: Sequence[dict[str, str]],
    options: Sequence[str],
    finish: Callable[[Run, int], str],
) -> None:
    """Runs ``retinanet train --resume`` for each run, as many at a time as there are slots.

    Args:
        total: how many runs there are, with those that have finished before.
        slots: environment variables of each simultaneous run.
        options: of ``retinanet train``.
        finish: called with each run and its exit status; returns what is printed about it.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all runs have stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    waiting, free = list(todo), list(slots)
    running: list[tuple[Run, subprocess.Popen[bytes], dict[str, str]]] = []
    with tqdm(total=total, initial=total - len(todo), desc="rows", unit="row") as bar:
        say = partial(bar.write, file=sys.stderr)
        try:
            while waiting or running:
                while waiting and free:
                    slot, run = free.pop(0), waiting.pop(0)
                    running.append((run, _start(run, slot, options), slot))
                    say(f"{run.name}: {run.cfg.SOLVER.MAX_ITER:,} steps; log: {run.log}")
                time.sleep(_POLL)
                for item in [item for item in running if item[1].poll() is not None]:
                    run, process, slot = item
                    running.remove(item)
                    free.append(slot)
                    bar.update()
                    say(f"{run.name}: {finish(run, process.returncode)}")
        except KeyboardInterrupt:
            for _, process, _ in running:
                process.terminate()  # saves a checkpoint
            for _, process, _ in running:
                process.wait()
            raise KeyboardInterrupt(
                f"{bar.n} of {total} rows are finished; the same command continues"
            ) from None


def _start(run: Run, slot: dict[str, str], options: Sequence[str]) -> "subprocess.Popen[bytes]":
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, run.cfg.dump())
    command = [sys.executable, "-m", "retinanet_plugin", "train", "--resume"]
    with open(run.log, "wb") as log:
        return subprocess.Popen(
            [*command, "--config-file", str(run.config_file), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot},
            start_new_session=True,  # Ctrl-C in a terminal reaches this process only
        )
