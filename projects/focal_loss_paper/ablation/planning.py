"""Makes the plans of tables: what each row trains on a given data set.

A row is what its configuration says beside the shipped ones at the top of ``configs/``: its loss,
its anchors, and so on. Everything else, the schedule included, is the data's configuration's.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import yaml
from detectron2.config import CfgNode

from retinanet_plugin.config import get_config
from retinanet_plugin.config_file import lay_over, load_yaml, shipped_configs
from retinanet_plugin.engine import import_code
from retinanet_plugin.engine.scaling import BATCH, SCHEDULE, scale_to_batch
from retinanet_plugin.errors import UserError, did_you_mean

from ..tables import CONFIGS, TABLES, Row, Table, find_config
from .plan import PAPER, Options, Plan, PlannedRow, Run
from .settings import leaves, settings_of, uses

_WEIGHTS = "MODEL.WEIGHTS"
_DEPTH = "MODEL.RESNETS.DEPTH"
_ANCHOR_SIZES = "MODEL.ANCHOR_GENERATOR.SIZES"
_SIZES = tuple(f"INPUT.{side}_SIZE_{use}" for side in ("MIN", "MAX") for use in ("TRAIN", "TEST"))
_OF_DATA = ("SOLVER.", "DATASETS.", "DATALOADER.", "INPUT.", "OUTPUT_DIR", "SEED", "VERSION")
_NEVER_A_ROWS = ("DATASETS.", "OUTPUT_DIR", "SEED", "VERSION")
_DEPTHS = (18, 34, 50, 101, 152)
_SEEDS = 2**32  # numpy's
_LARGEST = 800  # pixels, of the paper's pictures
_SMALLEST = 32  # pixels, of any that a network can learn from
_SMALLEST_ANCHOR = 4.0  # strides, of the paper's anchors


def make_plans(names: Sequence[str], options: Options) -> list[Plan]:
    """What to run of each table, checked as far as configurations can be.

    Raises:
        UserError: for an unknown table or row, and each mistake in a configuration.
    """
    for name in names:
        if name not in TABLES:
            raise UserError(
                f'TABLE: unknown name "{name}"{did_you_mean(name, TABLES)}; known: '
                f"{', '.join(TABLES)}; keys of the config come last, after --."
            )
    _check_options(options)
    tables = [_with_own_rows(TABLES[name], options.own_rows) for name in dict.fromkeys(names)]
    if not tables:
        raise UserError(f"TABLE: none given; give one or more of: {', '.join(TABLES)}.")
    known = list(dict.fromkeys(row.name for table in tables for row in table.rows))
    for name in options.rows:
        if name not in known:
            raise UserError(
                f'--rows: unknown name "{name}"{did_you_mean(name, known)}; known: '
                f"{', '.join(known)}."
            )
    makers = [_Maker(table, options) for table in tables]
    _check_depths(makers, options.depths or {})
    plans = [_plan(maker) for maker in makers]
    return [plan for plan in plans if plan.runs]


def _check_options(options: Options) -> None:
    if options.scale is not None and not 0 < options.scale < float("inf"):
        raise UserError(f"--scale: {options.scale} given; give a number above 0, such as 0.5.")
    if options.depths and options.data == PAPER:
        raise UserError("--depth: the paper's own rows have their depth; give --data too.")
    for seed in options.seeds:
        if seed >= _SEEDS:
            raise UserError(f"--seeds: {seed} given; give whole numbers below 2^32.")
    for key, option in (("OUTPUT_DIR", "--output"), ("SEED", "--seeds")):
        if key in options.overrides[::2]:
            raise UserError(f"{key}: each row has its own; give {option} instead.")
    if options.steps is not None and "SOLVER.MAX_ITER" in options.overrides[::2]:
        raise UserError("SOLVER.MAX_ITER: given beside --steps; give one of them.")


def data_config(name: str) -> Path:
    """The file of ``--data``: ``quickstart`` is quickstart.yaml too."""
    return find_config(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")


def run_folder(output: Path, table: Table, row: Row, seed: int) -> Path:
    """Of a run; a row that several tables have is run once, under its configuration's folder."""
    config = PurePosixPath(row.config)
    shared = not config.is_absolute() and len(config.parts) > 1
    return output / (config.parts[0] if shared else table.name) / row.name / f"seed_{seed}"


def _with_own_rows(table: Table, files: Iterable[Path]) -> Table:
    rows = {row.name: row for row in table.rows}
    for file in files:
        path = find_config(file).resolve()
        if path.stem in rows:
            raise UserError(
                f"--row: {file} has the name of another row of {table.name}, {path.stem}; rename "
                "the file."
            )
        rows[path.stem] = Row(path.stem, path.stem.replace("_", " "), str(path))
    return replace(table, rows=tuple(rows.values()))


def _check_depths(makers: Sequence["_Maker"], given: Mapping[int, int]) -> None:
    known = sorted({depth for make in makers for depth in make.row_depths})
    for depth, used in given.items():
        if used not in _DEPTHS:
            raise UserError(
                f"--depth: {depth}={used} given, but there is no ResNet of depth {used}; give one "
                f"of {', '.join(map(str, _DEPTHS))}."
            )
        if depth not in known:
            raise UserError(
                f"--depth: the rows of {', '.join(make.table.name for make in makers)} have "
                f"ResNets of depth {' and '.join(map(str, known))}, none of {depth}; give those."
            )


def _plan(make: "_Maker") -> Plan:
    table, options = make.table, make.options
    planned = [
        PlannedRow(
            row,
            make(row),
            chosen=not options.rows or row.name in options.rows,
        )
        for row in table.rows
    ]
    return Plan(table, options.output / table.name, tuple(planned), options)


class _Maker:
    """Makes the runs of a table."""

    def __init__(self, table: Table, options: Options) -> None:
        self.table, self.options = table, options
        self.on_paper = options.data == PAPER
        self.of_table = {row.name for row in TABLES[table.name].rows}
        self.resolved = {
            name: get_config(find_config(_row(table, name).config)) for name in self.of_table
        }
        first = find_config(TABLES[table.name].rows[0].config)
        self.base = _base_of(first) if self.on_paper else data_config(options.data).resolve()
        self.data = get_config(self.base, options.overrides)
        self.code = import_code(options.imports)
        self.seeds = list(dict.fromkeys(options.seeds)) or [
            self.data.SEED if self.data.SEED >= 0 else 1
        ]
        depths = {cfg.MODEL.RESNETS.DEPTH for cfg in self.resolved.values()}
        self.row_depths = sorted(depths) if len(depths) > 1 else [self.data.MODEL.RESNETS.DEPTH]
        self.depths = self._depths()

    def __call__(self, row: Row) -> tuple[Run, ...]:
        """One for each seed."""
        path, overrides = find_config(row.config).resolve(), self.options.overrides
        is_own = row.name not in self.of_table
        if is_own:
            get_config(path)  # its mistakes are named
        base, lines = self.base, self._lines(row, path)
        if self.on_paper and not is_own:
            base, lines = path, self._scaled_sizes(self.resolved[row.name])
        pairs = [word for pair in lines.items() for word in pair]
        given = [*pairs, *overrides]
        schedule = _scaled_schedule(base, given)
        scaled = [word for pair in schedule.items() for word in pair]
        schedule |= _schedule(get_config(base, [*given, *scaled]), self.options.steps)
        pairs += [word for pair in schedule.items() for word in pair]
        cfg = get_config(base, [*pairs, *overrides])
        named = [*lines, *schedule, *overrides[::2]]
        content = load_yaml(base)  # a row's file may lie where no _BASE_ may lead from
        lay_over(_nested({key: _get(cfg, key) for key in named}), content, str(path))
        # The table's rows stay what they are when one's own code joins them.
        code = self.code if is_own or uses(cfg, self.code) else []
        return tuple(self._run(row, cfg.clone(), content, code, seed) for seed in self.seeds)

    def _run(
        self, row: Row, cfg: CfgNode, content: dict[str, Any], code: list[ModuleType], seed: int
    ) -> Run:
        cfg.SEED = seed
        return Run(
            name=row.label if len(self.seeds) == 1 else f"{row.label}, seed {seed}",
            folder=run_folder(self.options.output, self.table, row, seed),
            seed=seed,
            cfg=cfg,
            content={**content, "SEED": seed},
            settings=settings_of(cfg, code),
        )

    def _lines(self, row: Row, path: Path) -> dict[str, Any]:
        """The keys that are the row's own, with their values."""
        own, of_person = dict(leaves(_own_lines(path))), dict(leaves(_lines_of_person(path)))
        of_data = _NEVER_A_ROWS if self.on_paper else _OF_DATA
        own = {
            k: v
            for k, v in own.items()
            if not k.startswith(_NEVER_A_ROWS if k in of_person else of_data)
        }
        # In pixels: as large beside the data's anchors as the paper's.
        if _ANCHOR_SIZES in own and _ANCHOR_SIZES not in of_person:
            ratio = self.data.MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE / _SMALLEST_ANCHOR
            own[_ANCHOR_SIZES] = [[x * ratio for x in level] for level in own[_ANCHOR_SIZES]]
        if row.name not in self.of_table:
            return self._lines_of_options() | own
        cfg = self.resolved[row.name]
        if self._varies(_DEPTH):
            own[_DEPTH] = depth = self.depths[cfg.MODEL.RESNETS.DEPTH]
            if self.data.MODEL.WEIGHTS and depth == cfg.MODEL.RESNETS.DEPTH:
                own[_WEIGHTS] = cfg.MODEL.WEIGHTS
        if self._varies("INPUT.MIN_SIZE_TEST"):
            own |= self._scaled_sizes(cfg)
        return own | self._lines_of_options()

    def _lines_of_options(self) -> dict[str, Any]:
        """A given depth and scale, of the data's own, where the table's rows do not differ."""
        lines: dict[str, Any] = {}
        depth, given = self.data.MODEL.RESNETS.DEPTH, self.options.depths or {}
        if depth in given and not self._varies(_DEPTH):
            lines[_DEPTH] = given[depth]
        if self.options.scale is not None and not self._varies("INPUT.MIN_SIZE_TEST"):
            lines |= self._scaled_sizes(self.data)
        return lines

    def _varies(self, key: str) -> bool:
        """Whether the rows of the paper's table differ in it."""
        return len({str(_get(cfg, key)) for cfg in self.resolved.values()}) > 1

    def _scaled_sizes(self, cfg: CfgNode) -> dict[str, Any]:
        scale = self.options.scale
        if scale is None:
            scale = 1.0 if self.on_paper else self.data.INPUT.MIN_SIZE_TEST / _LARGEST
        if scale == 1.0:
            return {} if self.on_paper else {key: _get(cfg, key) for key in _SIZES}
        sizes = {key: _get(cfg, key) for key in _SIZES}
        smallest = cfg.INPUT.MIN_SIZE_TEST
        if smallest and (pixels := round(smallest * scale)) < _SMALLEST:
            raise UserError(  # 0 would even be pictures as they are
                f"--scale: {scale:g} would make pictures of {smallest} pixels ones of {pixels}; "
                f"give at least {_SMALLEST / smallest:.3g}."
            )
        return {
            key: tuple(round(x * scale) for x in size)
            if isinstance(size, tuple)
            else round(size * scale)
            for key, size in sizes.items()
        }

    def _depths(self) -> dict[int, int]:
        """From the rows' depths to those used: the least becomes the data's own, and so on up."""
        depths, start = self.row_depths, self.data.MODEL.RESNETS.DEPTH
        mapped = dict(zip(depths, depths, strict=True))
        if not self.data.MODEL.WEIGHTS and start in _DEPTHS:
            larger = _DEPTHS[_DEPTHS.index(start) :]
            mapped.update(zip(depths, larger, strict=False))
        return {**mapped, **(self.options.depths or {})}


def _row(table: Table, name: str) -> Row:
    return next(row for row in table.rows if row.name == name)


def _base_of(path: Path) -> Path:
    """The ``_BASE_`` of a shipped row."""
    return (path.parent / yaml.safe_load(path.read_text())["_BASE_"]).resolve()


def _own_lines(path: Path) -> dict[str, Any]:
    """A file and its bases, leaving out the shipped ones at the top of ``configs/``."""
    top = shipped_configs().resolve()
    return load_yaml(path, leave_out=lambda file: file.resolve().parent == top)


def _lines_of_person(path: Path) -> dict[str, Any]:
    """A file and its bases, leaving out all shipped ones."""
    shipped = {shipped_configs().resolve(), CONFIGS}
    return load_yaml(path, leave_out=lambda file: not shipped.isdisjoint(file.resolve().parents))


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Full names as nested mappings, in what YAML's safe writer knows."""
    content: dict[str, Any] = {}
    for key, value in values.items():
        *groups, last = key.split(".")
        node = content
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = json.loads(json.dumps(value))
    return content


def _scaled_schedule(base: Path, given: Sequence[Any]) -> dict[str, Any]:
    """The keys that training would scale to the batch, beside it: so it takes them as they are."""
    plain, scaled = get_config(base, given), get_config(base, given)
    scale_to_batch(scaled, base, given)
    changed = [key for key in SCHEDULE if _get(scaled, key) != _get(plain, key)]
    return {key: _get(scaled, key) for key in ([BATCH, *changed] if changed else [])}


def _schedule(cfg: CfgNode, steps: int | None) -> dict[str, Any]:
    """The keys that count steps, in proportion to ``steps``."""
    if steps is None:
        return {}
    ratio = steps / cfg.SOLVER.MAX_ITER

    def scaled(count: int) -> int:
        return max(round(count * ratio), 1) if count else 0

    # Of few steps, milestones may fall together or on the end, which no schedule allows.
    milestones = sorted({scaled(x) for x in cfg.SOLVER.STEPS if x < cfg.SOLVER.MAX_ITER})
    schedule = {
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": tuple(x for x in milestones if x < steps),
        "SOLVER.WARMUP_ITERS": scaled(cfg.SOLVER.WARMUP_ITERS),
        "SOLVER.CHECKPOINT_PERIOD": scaled(cfg.SOLVER.CHECKPOINT_PERIOD),
        "TEST.EVAL_PERIOD": scaled(cfg.TEST.EVAL_PERIOD),
    }
    return {key: value for key, value in schedule.items() if value != _get(cfg, key)}
