"""The whole command: plan, check, run, report."""

import sys
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from retinanet_plugin.data import check_datasets, register_own_datasets
from retinanet_plugin.engine.parallel import choose_workers
from retinanet_plugin.engine.setup import check_names, check_weights, choose_device
from retinanet_plugin.errors import STOPPED, UserError
from retinanet_plugin.modeling.cls_losses import build_cls_loss
from retinanet_plugin.utils import output_files

from ..tables import TABLES
from .plan import PAPER, Options, Run
from .planning import data_config, make_plans
from .progress import Terminal, minutes
from .report import markdown, write_report
from .results import checkpoint_step, has_checkpoint, read_result
from .runs import Runner, alone_in, check_unchanged, share_out, train_command

# A step of the quick start of 1,400 steps, in seconds on the two cores of docs/checks.md; the rest
# of a row: imports and evaluation.
_QUICKSTART_STEP, _AROUND = 0.125, 20.0


def default_output(data: str) -> Path:
    """The folder of the results on ``data``."""
    return Path("output/ablations") / Path(data).stem


def list_tables() -> str:
    """Every table with its rows and the paper's AP."""
    lines = []
    for table in TABLES.values():
        lines.append(f"{table.name}: {table.title}")
        width = max(len(row.name) for row in table.rows)
        for row in table.rows:
            ap = "" if row.ap is None else f"   AP {row.ap} in the paper"
            lines.append(f"    {row.name:<{width}}   {row.label}{ap}")
    return "\n".join(lines)


def ablate(names: Sequence[str], options: Options, *, jobs: int, num_gpus: int, again: bool) -> int:
    """Runs what has not ended yet of the tables; returns the exit status.

    Raises:
        UserError: for each mistake in what is asked for, before anything is run.
    """
    plans = make_plans(names, options)
    runs = list({str(run.folder): run for plan in plans for run in plan.runs}.values())
    cfg = runs[0].cfg.clone()
    choose_device(cfg)
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    if not on_cpu:
        choose_workers(num_gpus, 1)
    environments = share_out(jobs, num_gpus, on_cpu=on_cpu)
    for run in runs:
        check_names(run.cfg)
        if run.cfg.SOLVER.IMS_PER_BATCH % num_gpus:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH: {run.cfg.SOLVER.IMS_PER_BATCH} given for --num-gpus "
                f"{num_gpus} (row {run.name}); give a multiple of their number."
            )
        build_cls_loss(run.cfg)
    output_files(options.output, [], overwrite=False, option="--output")
    failed: dict[str, str] = {}

    def report(run: Run) -> None:
        for plan in plans:
            if run in plan.runs:
                write_report(plan, failed)

    with alone_in(options.output) as lock:
        check_unchanged(runs, again=again)
        todo = [run for run in runs if read_result(run.folder) is None]
        if todo:
            for run in {run.cfg.MODEL.WEIGHTS: run for run in todo}.values():
                check_weights(run.cfg, training=True, resume=False)
            _look_at_data(todo[0])
        _say(_what_is_done(runs, todo, options.data, environments))
        terminal = Terminal(runs, jobs, report)
        command = train_command(num_gpus, options.imports)
        device = "cpu" if on_cpu else torch.cuda.get_device_name()
        runner = Runner(options.output, command, environments, device, terminal, failed, lock)
        try:
            runner(runs)
        except KeyboardInterrupt:
            _say(_what_is_left(runs))
            return STOPPED
        for plan in plans:
            write_report(plan, failed)
    for plan in plans:
        print(markdown(plan, failed), flush=True)
        _say(f"in {plan.folder}: results.md, results.csv, results.png")
    for folder, sentence in failed.items():
        _say(f"FAILED: {folder}: {sentence}")
    return 1 if failed else 0


def _look_at_data(run: Run) -> None:
    """Once for all rows: mistakes are named, what is made or fetched on demand is."""
    cfg = run.cfg.clone()
    cfg.OUTPUT_DIR = str(run.folder)
    register_own_datasets(cfg)
    check_datasets(cfg)
    if not cfg.DATASETS.TEST:
        raise UserError(
            "DATASETS.TEST: names no data set, so there is no AP to compare; name a registered one "
            "or a COCO JSON of your own in DATASETS.OWN.TEST_JSON."
        )
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if MetadataCatalog.get(name).get("drawn_on_demand"):
            DatasetCatalog.get(name)


def _what_is_done(
    runs: Sequence[Run], todo: Sequence[Run], data: str, environments: Sequence[Mapping[str, str]]
) -> str:
    """What lies ahead, in a sentence."""
    begun = sum(has_checkpoint(run) for run in todo)
    parts = [f"{len(runs)} rows"]
    if len(todo) < len(runs):
        parts.append(f"{len(runs) - len(todo)} have their result already")
    if begun:
        parts.append(f"{begun} go on from a checkpoint")
    where = ", ".join(f"{k} {v}" for k, v in environments[0].items())
    parts.append(f"{len(environments)} at once ({where})")
    if data != PAPER and data_config(data).name == "quickstart.yaml":
        unit = 128**2 * 8 * sqrt(50)
        seconds = sum(run.max_iter * run.cost / unit * _QUICKSTART_STEP + _AROUND for run in todo)
        parts.append(f"{minutes(seconds)} on two cores as in docs/checks.md")
    return "; ".join(parts)


def _what_is_left(runs: Sequence[Run]) -> str:
    ended = sum(read_result(run.folder) is not None for run in runs)
    kept = [
        f"{run.name} at step {checkpoint_step(run):,}"
        for run in runs
        if read_result(run.folder) is None and has_checkpoint(run)
    ]
    checkpoints = f"; checkpoints are kept of {', '.join(kept)}" if kept else ""
    return (
        f"stopped: {ended} of {len(runs)} rows have their result{checkpoints}; the same command "
        "goes on."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
