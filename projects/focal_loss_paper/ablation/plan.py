"""What a table's rows train on a given data set: one YAML a row and seed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..tables import Row, Table
from .settings import digest_of

PAPER = "coco"  # the data that the rows' configurations name themselves


@dataclass(frozen=True)
class Options:
    """What of the tables to run, and on what.

    Args:
        data: a configuration's file or shipped name; :data:`PAPER` leaves the rows as they are.
        output: folder of all results.
        steps: of training, in place of the data's; what else counts steps follows in proportion.
        scale: of the rows' picture sizes, or of the data's where the rows do not differ in size;
            default: where they do, 800 becomes the data's size in test.
        depths: of ResNets, from a row's to the one to use; a row's is the data's where the rows of
            its table do not differ in it.
        seeds: default: the data's own, or 1.
        rows: names of those to run; empty: all.
        own_rows: files of more rows.
        imports: code that every run imports, files and modules.
        overrides: key, value, key, value ..., of all rows.
    """

    data: str = PAPER
    output: Path = Path("output/ablations")
    steps: int | None = None
    scale: float | None = None
    depths: Mapping[int, int] | None = None
    seeds: Sequence[int] = ()
    rows: Sequence[str] = ()
    own_rows: Sequence[Path] = ()
    imports: Sequence[str] = ()
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """One training of one row.

    Args:
        name: of row and seed, for people.
        folder: of all that the run leaves behind, its ``OUTPUT_DIR``.
        cfg: its whole configuration, but for ``OUTPUT_DIR``.
        content: the YAML that it is run by, likewise.
        settings: everything that its result depends on, as JSON.
    """

    name: str
    folder: Path
    seed: int
    cfg: CfgNode
    content: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def max_iter(self) -> int:
        """Steps."""
        return int(self.cfg.SOLVER.MAX_ITER)

    @property
    def cost(self) -> float:
        """What the time of a step grows with: its pixels, and the depth of the network.

        By the root of the depth: a step of ResNet-101 takes 1.4 times one of ResNet-50, in
        detectron2's zoo and in the quick start.
        """
        size = max(self.cfg.INPUT.MIN_SIZE_TRAIN)
        return size * size * self.cfg.SOLVER.IMS_PER_BATCH * sqrt(self.cfg.MODEL.RESNETS.DEPTH)

    @property
    def config_file(self) -> Path:
        """The YAML, which can be run by hand."""
        return self.folder / "row.yaml"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder / "run.log"

    @property
    def digest(self) -> str:
        """Of the settings."""
        return digest_of(json.dumps(self.settings, sort_keys=True).encode())


@dataclass(frozen=True)
class PlannedRow:
    """A row of the table, or one of a person's own.

    Args:
        runs: one for each seed.
        chosen: whether to run it.
    """

    row: Row
    runs: tuple[Run, ...]
    chosen: bool


@dataclass(frozen=True)
class Plan:
    """A table, and what its rows train.

    Args:
        folder: of the table's results.
    """

    table: Table
    folder: Path
    rows: tuple[PlannedRow, ...]
    options: Options

    @property
    def runs(self) -> list[Run]:
        """Of the chosen rows."""
        return [run for row in self.rows if row.chosen for run in row.runs]
