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

STEPS = 8
ARGS = [
    *("--config-file", "quickstart.yaml"),
    *("DATASETS.OWN.TRAIN_JSON", "annotations/train.json", "DATASETS.OWN.TRAIN_IMAGES", "train"),
    *("DATASETS.OWN.TEST_JSON", "annotations/test.json", "DATASETS.OWN.TEST_IMAGES", "test"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,80,96)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_BATCH_SIZE", "0", "SOLVER.MAX_ITER", str(STEPS)),
    *("SOLVER.WARMUP_ITERS", "3", "SOLVER.BASE_LR", "0.01", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("TEST.EVAL_PERIOD", "4", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("TEST.DRAW_IMAGES", "1", "TEST.REPORT", "False", "MODEL.DEVICE", "cpu"),
]
LIMIT_S = 600  # of one run
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")  # differ from run to run


def start(folder: Path, args: list[str], *, resume: bool = False) -> int:
    """Trains into ``folder`` in a forked process; returns its id."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setpgid(0, 0)  # a group with its workers, which are killed with it
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        cli.main(["train", *(["--resume"] if resume else []), *args, "OUTPUT_DIR", str(folder)])
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(folder: Path, child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{folder}: ended with status {status}; see its output.txt")


def kill_when(child: int, moment: Callable[[], bool]) -> bool:
    """Returns whether the process was killed; it may end before the moment comes."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        if moment():
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.0005)
    raise SystemExit(f"no such moment within {LIMIT_S} seconds")


def moments(folder: Path, whole_s: float, rng: random.Random) -> dict[str, Callable[[], bool]]:
    """Returns functions that tell whether now is the moment to kill the run in ``folder``."""
    at = time.monotonic() + rng.uniform(0.0, whole_s)
    checkpoint, evaluation = rng.randint(1, STEPS // 2), rng.randint(1, STEPS // 4)
    log, seen = folder / "log.txt", set[str]()

    def writing() -> bool:
        seen.update(path.name for path in folder.glob(".*.part"))
        return len(seen) >= checkpoint

    def evaluating() -> bool:
        if not log.exists() or log.read_text().count("Start inference") < evaluation:
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--loader-workers", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    synthetic.draw_dataset(folder / "data", num_train=24, num_test=8, size=96)
    args = [
        *("--num-gpus", str(options.processes), *ARGS, "DATASETS.OWN.ROOT", str(folder / "data")),
        *("DATALOADER.NUM_WORKERS", str(options.loader_workers)),
    ]
    whole = folder / "whole"
    started = time.monotonic()
    finish(whole, start(whole, args))
    whole_s = time.monotonic() - started
    equal, kinds = 0, Counter[str]()
    with tqdm(total=options.kills, unit="kill") as bar:
        for number in range(10 * options.kills):
            if bar.n == options.kills:
                break
            run = folder / f"killed_{number}"
            choices = moments(run, whole_s, rng)
            kind = list(choices)[number % len(choices)]
            if not kill_when(start(run, args), choices[kind]):
                shutil.rmtree(run)  # it had ended; try another one
                continue
            kinds[kind] += 1
            finish(run, start(run, args, resume=True))
            if different := compare(run, whole):
                print(f"{run} ({kind}) differs: {different[:5]}", file=sys.stderr)
            else:
                equal += 1
                shutil.rmtree(run)
            bar.update()
    print(f"{equal} of {bar.n} killed runs ended like the uninterrupted one ({dict(kinds)})")
    if equal == bar.n:
        shutil.rmtree(folder)
    return 0 if equal == bar.n else 1


if __name__ == "__main__":
    raise SystemExit(main())
