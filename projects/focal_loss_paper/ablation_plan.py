"""Plans what each row of a table trains on a given dataset.

A row is what its config says beyond the plugin's own configs: its loss, its anchors, and so on.
Everything else, the schedule included, comes from the config of the data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from retinanet_plugin.config import get_config
from retinanet_plugin.config_file import shipped_configs, yaml_layers
from retinanet_plugin.errors import UserError, did_you_mean
from retinanet_plugin.utils import flatten, shorten

from .common import CONFIGS, find_paper_config
from .tables import TABLES, Row, Table

PAPER = "coco"  # the data that the rows' own configs name
_OF_RUN = ("DATASETS.", "OUTPUT_DIR", "SEED", "VERSION")  # never a row's
_OF_DATA = (*_OF_RUN, "SOLVER.", "DATALOADER.", "INPUT.")  # a row's only if a user's file says so
_NO_EFFECT = ("OUTPUT_DIR", "VERSION", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")  # on the result
_ANCHOR_SIZES = "MODEL.ANCHOR_GENERATOR.SIZES"
_PAPER_ANCHOR_SCALE = 4.0  # strides, the paper's smallest anchor
_PAPER_SIZE = 800  # pixels, the short side of the paper's largest images
_DEPTHS = (18, 34, 50, 101, 152)


@dataclass(frozen=True)
class Options:
    """Which rows to train, and on what.

    Args:
        data: a config's path or shipped name; :data:`PAPER` leaves the rows as they are.
        output: folder of all results.
        steps: training steps; warmup, milestones and periods follow in proportion.
        seeds: default: that of the data's config, or 1.
        rows: names of those to train; empty: all.
        own_rows: configs of additional rows.
        overrides: key, value, key, value ..., for all rows.
    """

    data: str = PAPER
    output: Path = Path("output/ablations")
    steps: int | None = None
    seeds: Sequence[int] = ()
    rows: Sequence[str] = ()
    own_rows: Sequence[Path] = ()
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """One training run: a row with one seed.

    Args:
        name: row and seed, for people.
        folder: its ``OUTPUT_DIR``.
        cfg: its complete config.
    """

    name: str
    folder: Path
    cfg: CfgNode

    @property
    def config_file(self) -> Path:
        """The YAML file that the run is started with."""
        return self.folder / "row.yaml"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder / "run.log"

    def changes(self) -> list[str]:
        """Returns the settings in which an earlier run in this folder differs from this one."""
        if not self.config_file.is_file():
            return []
        old = dict(flatten(yaml.safe_load(self.config_file.read_text())))
        new = dict(flatten(yaml.safe_load(self.cfg.dump())))
        return [
            f"{key} {old[key]} -> {value}"
            for key, value in new.items()
            if key in old and old[key] != value and key not in _NO_EFFECT
        ]


@dataclass(frozen=True)
class Plan:
    """A table and the runs of its rows.

    Args:
        folder: where the table's results are written.
        runs: by row, one for each seed.
    """

    table: Table
    folder: Path
    runs: Mapping[Row, Sequence[Run]]
    options: Options

    @property
    def chosen(self) -> list[Run]:
        """The runs of the rows that were asked for."""
        names = self.options.rows
        return [run for row, runs in self.runs.items() for run in runs if row.name in names]


def make_plans(names: Sequence[str], options: Options) -> list[Plan]:
    """Plans the runs of tables.

    Raises:
        UserError: for an unknown table or row, and each mistake in a config.
    """
    if not names:
        raise UserError(f"TABLE: none given; choose from {', '.join(TABLES)}.")
    for name in names:
        _check_name(name, list(TABLES), "TABLE")
    for key, option in (("OUTPUT_DIR", "--output"), ("SEED", "--seeds")):
        if key in options.overrides[::2]:
            raise UserError(f"{key}: differs between runs; use {option} instead.")
    tables = [_with_own_rows(TABLES[name], options.own_rows) for name in dict.fromkeys(names)]
    known = list(dict.fromkeys(row.name for table in tables for row in table.rows))
    for name in options.rows:
        _check_name(name, known, "--rows")
    options = replace(options, rows=options.rows or known)
    plans = [_plan(table, options) for table in tables]
    return [plan for plan in plans if plan.chosen]


def check_unchanged(runs: Sequence[Run]) -> None:
    """Raises UserError if a folder holds a run with other settings."""
    for run in runs:
        if changes := run.changes():
            raise UserError(
                f"{run.folder}: holds a run with other settings ({shorten(changes)}); give another "
                "--output, or remove that folder."
            )


def _check_name(name: str, known: Sequence[str], option: str) -> None:
    if name not in known:
        near = did_you_mean(name, known)
        raise UserError(f'{option}: unknown name "{name}"{near}; choose from {", ".join(known)}.')


def _with_own_rows(table: Table, files: Sequence[Path]) -> Table:
    names = {row.name for row in table.rows}
    own = []
    for file in files:
        path = find_paper_config(file).resolve()
        if path.stem in names:
            raise UserError(
                f"--add-row: {table.name} already has a row {path.stem}; rename {file}."
            )
        own.append(Row(path.stem, path.stem.replace("_", " "), str(path)))
    return replace(table, rows=(*table.rows, *own))


def _plan(table: Table, options: Options) -> Plan:
    """Plans all rows of a table, also those not asked for: they may have a result already."""
    if options.data == PAPER:
        first = table.rows[0].path
        base = (first.parent / yaml.safe_load(first.read_text())["_BASE_"]).resolve()
    else:
        name = options.data
        base = find_paper_config(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    data = get_config(base, options.overrides)
    if not (data.DATASETS.TEST or data.DATASETS.OWN.TEST_JSON):
        raise UserError(f"DATASETS.TEST: empty in {base}, so there is no AP; name a dataset.")
    seeds = options.seeds or [data.SEED if data.SEED >= 0 else 1]
    runs: dict[Row, list[Run]] = {}
    for row in table.rows:
        is_own = row not in TABLES[table.name].rows
        config, lines = base, _row_lines(row, table, data, options)
        if options.data == PAPER and not is_own:
            config, lines = row.path, {}
        pairs: list[Any] = [x for pair in lines.items() for x in pair]
        cfg = get_config(config, [*pairs, *options.overrides])
        if options.steps is not None:
            _set_steps(cfg, options.steps)
        runs[row] = [_run(row, table, cfg.clone(), seed, options) for seed in seeds]
    return Plan(table, options.output / table.name, runs, options)


def _run(row: Row, table: Table, cfg: CfgNode, seed: int, options: Options) -> Run:
    """Returns a run. A row that several tables share lies under its config's folder."""
    config = Path(row.config)
    shared = not config.is_absolute() and len(config.parts) > 1
    group = config.parts[0] if shared else table.name
    folder = options.output / group / row.name / f"seed_{seed}"
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(folder)
    return Run(f"{row.label}, seed {seed}", folder, cfg)


def _row_lines(row: Row, table: Table, data: CfgNode, options: Options) -> dict[str, Any]:
    """Returns the keys that a row sets on top of the data's config, with their values."""
    plugin = shipped_configs().resolve()
    get_config(row.path)  # names the mistakes in a user's file
    lines: dict[str, Any] = {}
    users: set[str] = set()
    for file, content in yaml_layers(row.path):
        folders = file.resolve().parents
        if plugin not in folders:
            lines |= dict(flatten(content))
        if plugin not in folders and CONFIGS not in folders:
            users |= dict(flatten(content)).keys()

    def is_rows(key: str) -> bool:
        of_row = key in users or options.data == PAPER
        return not key.startswith(_OF_RUN if of_row else _OF_DATA)

    lines = {key: value for key, value in lines.items() if is_rows(key)}
    if _ANCHOR_SIZES in lines and _ANCHOR_SIZES not in users:
        # In pixels: as large beside the data's anchors as beside the paper's.
        ratio = data.MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE / _PAPER_ANCHOR_SCALE
        lines[_ANCHOR_SIZES] = [[x * ratio for x in level] for level in lines[_ANCHOR_SIZES]]
    if table.name == "e_speed" and row in TABLES["e_speed"].rows:
        lines |= _depth_and_sizes(get_config(row.path), data)
    return lines


def _depth_and_sizes(row: CfgNode, data: CfgNode) -> dict[str, Any]:
    """Returns what table 1e varies: 800 pixels becomes the data's size, ResNet-50 its depth.

    ResNet-101 becomes the next deeper network. With trained weights both depths, and the weights,
    stay the paper's.
    """
    scale = data.INPUT.MIN_SIZE_TEST / _PAPER_SIZE
    lines: dict[str, Any] = {
        "INPUT.MIN_SIZE_TRAIN": tuple(round(x * scale) for x in row.INPUT.MIN_SIZE_TRAIN),
        **{
            f"INPUT.{key}": round(row.INPUT[key] * scale)
            for key in ("MIN_SIZE_TEST", "MAX_SIZE_TRAIN", "MAX_SIZE_TEST")
        },
        "MODEL.RESNETS.DEPTH": row.MODEL.RESNETS.DEPTH,
    }
    smallest = data.MODEL.RESNETS.DEPTH
    if data.MODEL.WEIGHTS:
        lines["MODEL.WEIGHTS"] = row.MODEL.WEIGHTS
    elif smallest in _DEPTHS[:-1]:
        deeper = row.MODEL.RESNETS.DEPTH > 50
        lines["MODEL.RESNETS.DEPTH"] = _DEPTHS[_DEPTHS.index(smallest) + deeper]
    return lines


def _set_steps(cfg: CfgNode, steps: int) -> None:
    """Sets the length of training; whatever counts steps follows in proportion."""
    solver = cfg.SOLVER
    if solver.BASE_BATCH_SIZE:  # scaled here, so that training does not change the steps again
        ratio = solver.IMS_PER_BATCH / solver.BASE_BATCH_SIZE
        solver.BASE_LR *= ratio
        solver.BASE_LR_END *= ratio
        solver.BASE_BATCH_SIZE = 0
    ratio = steps / solver.MAX_ITER

    def scaled(count: int) -> int:
        return max(round(count * ratio), 1) if count else 0

    # Of few steps, milestones may coincide with each other or the end, which no schedule allows.
    milestones = sorted({scaled(x) for x in solver.STEPS if x < solver.MAX_ITER})
    solver.STEPS = tuple(x for x in milestones if x < steps)
    solver.WARMUP_ITERS = scaled(solver.WARMUP_ITERS)
    solver.CHECKPOINT_PERIOD = scaled(solver.CHECKPOINT_PERIOD)
    cfg.TEST.EVAL_PERIOD = scaled(cfg.TEST.EVAL_PERIOD)
    solver.MAX_ITER = steps
