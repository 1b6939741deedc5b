"""Kills training at random moments, resumes it, and compares the end with an uninterrupted run.

    python tests/kill_and_resume.py --kills 50
    python tests/kill_and_resume.py --kills 50 --loader-workers 2
    python tests/kill_and_resume.py --kills 10 --processes 2

Each run is killed once by SIGKILL: at any moment, while a checkpoint is being written, or during an
evaluation, in turn. Then ``--resume`` takes it to its end. Weights, momenta, schedule and the state
of hooks must equal those of an uninterrupted run to the last bit. Needs Linux or macOS.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also makes it safe to fork

import torch
from tqdm import tqdm

from retinanet_plugin import cli
from retinanet_plugin.data import synthetic

STEPS = 12
ARGS = [
    *("--config-file", "quickstart.yaml"),
    *("DATASETS.OWN.TRAIN_JSON", "annotations/train.json", "DATASETS.OWN.TRAIN_IMAGES", "train"),
    *("DATASETS.OWN.TEST_JSON", "annotations/test.json", "DATASETS.OWN.TEST_IMAGES", "test"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,80,96)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_BATCH_SIZE", "0", "SOLVER.MAX_ITER", str(STEPS)),
    *("SOLVER.WARMUP_ITERS", "3", "SOLVER.BASE_LR", "0.01", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("TEST.EVAL_PERIOD", "4", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("TEST.DRAW_PICTURES", "1", "TEST.REPORT", "False", "MODEL.DEVICE", "cpu"),
]
LIMIT_S = 600  # of one run
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")  # differ from run to run


class Run:
    """An output folder, and the processes that train into it."""

    def __init__(self, folder: Path, data: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self._args = [
            *("--num-gpus", str(options.processes), *ARGS, "DATASETS.OWN.ROOT", str(data)),
            *("DATALOADER.NUM_WORKERS", str(options.loader_workers), "OUTPUT_DIR", str(folder)),
        ]

    def start(self, *, resume: bool = False) -> int:
        """Trains in a forked process; returns its id."""
        self.folder.mkdir(exist_ok=True)
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.setpgid(0, 0)  # a group with its workers, which are killed with it
            output = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            cli.main(["train", *(["--resume"] if resume else []), *self._args])
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def finish(self, child: int) -> None:
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"{self.folder}: ended with status {status}; see its output.txt")

    def kill_when(self, child: int, moment: Callable[[], bool]) -> bool:
        """Returns whether the run was killed; it may end before the moment comes."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                return False
            if moment():
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return True
            time.sleep(0.0005)
        raise SystemExit(f"{self.folder}: no such moment within {LIMIT_S} seconds")

    def partial_files(self) -> list[Path]:
        return list(self.folder.glob(".*.part*"))

    def log(self) -> str:
        file = self.folder / "log.txt"
        return file.read_text(encoding="utf-8") if file.exists() else ""


def moments(run: Run, whole_s: float, rng: random.Random) -> dict[str, Callable[[], bool]]:
    """Returns functions that tell whether now is the moment to kill."""
    at = time.monotonic() + rng.uniform(0.0, whole_s)
    number = rng.randint(1, STEPS // 2)  # of the checkpoint
    evaluation = rng.randint(1, STEPS // 4)
    seen: set[int] = set()

    def writing() -> bool:
        seen.update(p.stat().st_ino for p in run.partial_files() if p.exists())
        return len(seen) >= number

    def evaluating() -> bool:
        if run.log().count("Start inference") < evaluation:
            return False
        time.sleep(rng.uniform(0.0, 0.3))
        return True

    return {
        "at any time": lambda: time.monotonic() >= at,
        "writing a checkpoint": writing,
        "evaluating": evaluating,
    }


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yields the names of what differs between two checkpoints."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if str(key) not in TIMES:
                yield from differences(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        for i, pair in enumerate(itertools.zip_longest(one, other)):
            yield from differences(*pair, f"{where}/{i}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if not torch.equal(one, other):
            yield where
    elif one != other and not (one != one and other != other):  # NaN equals NaN here
        yield where


def compare(folder: Path, whole: Path) -> list[str]:
    different = []
    for name in ("model_final.pth", "model_best.pth"):
        if (whole / name).exists() or (folder / name).exists():
            ours, theirs = (torch.load(x / name, weights_only=True) for x in (folder, whole))
            different += [f"{name}:{x}" for x in differences(ours, theirs)]
    ours, theirs = (_last_ap(x) for x in (folder, whole))
    return different + (["metrics.json: bbox/AP"] if ours != theirs else [])


def _last_ap(folder: Path) -> str:
    lines = (folder / "metrics.json").read_text().splitlines()
    return str([x["bbox/AP"] for x in map(json.loads, lines) if "bbox/AP" in x][-1:])


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--loader-workers", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in; default: a temporary one")
    options = parser.parse_args(args)
    rng = random.Random(options.seed)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    synthetic.draw_dataset(folder / "data", num_train=24, num_test=8, size=96)
    whole = Run(folder / "whole", folder / "data", options)
    started = time.monotonic()
    whole.finish(whole.start())
    whole_s = time.monotonic() - started
    equal, kinds = 0, Counter[str]()
    with tqdm(total=options.kills, unit="kill") as bar:
        for number in range(10 * options.kills):
            if bar.n == options.kills:
                break
            run = Run(folder / f"killed_{number}", folder / "data", options)
            choices = moments(run, whole_s, rng)
            kind = list(choices)[number % len(choices)]
            if not run.kill_when(run.start(), choices[kind]):
                shutil.rmtree(run.folder)  # it had ended; try another one
                continue
            kinds[kind] += 1
            run.finish(run.start(resume=True))
            if different := compare(run.folder, whole.folder):
                print(f"{run.folder} ({kind}) differs: {different[:5]}", file=sys.stderr)
            else:
                equal += 1
                shutil.rmtree(run.folder)
            bar.update()
    print(f"{equal} of {bar.n} killed runs ended like the uninterrupted one ({dict(kinds)})")
    if equal == bar.n and options.folder is None:
        shutil.rmtree(folder)
    return 0 if equal == bar.n else 1


if __name__ == "__main__":
    raise SystemExit(main())
