"""Several processes on the CPU: one step of theirs against one process with the same batch."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import train_net
from retinanet_plugin import UserError
from retinanet_plugin.data import synthetic
from retinanet_plugin.engine import choose_workers, parallel

ROOT = Path(train_net.__file__).parent
WORDS = [
    *("--config-file", "Base-Scratch-R18.yaml", "DATASETS.OWN.ROOT", "data"),
    *("DATASETS.OWN.TRAIN_JSON", "annotations/train.json", "DATASETS.OWN.TRAIN_IMAGES", "train"),
    *("DATASETS.OWN.TEST_JSON", "annotations/test.json", "DATASETS.OWN.TEST_IMAGES", "test"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    # Batch norm's statistics are a process's own.
    *("MODEL.RESNETS.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.005", "SOLVER.WARMUP_ITERS", "2"),
    *("SOLVER.STEPS", "()", "SEED", "3", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("TEST.REPORT", "False", "TEST.DRAW_PICTURES", "0", "MODEL.DEVICE", "cpu"),
]
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
LIMIT_S = 300  # of what would else be waited for without end
PYTHON = (sys.executable, "-W", "ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    synthetic.draw_dataset(folder / "data", num_train=12, num_test=5, size=96)
    return folder


def train(folder: Path, name: str, *commands: tuple[str, ...]) -> None:
    """By commands, one a machine: what goes before the script, ``--``, and what goes after."""
    jobs = []
    for words in commands:
        at = words.index("--")
        command = [*words[:at], str(ROOT / "train_net.py"), *words[at + 1 :], *WORDS]
        command += ["SOLVER.MAX_ITER", "3", "OUTPUT_DIR", name]
        with open(folder / f"{name}_{len(jobs)}.txt", "w") as said:
            jobs.append(
                subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=said, stderr=said)
            )
    try:
        for number, job in enumerate(jobs):
            status = job.wait(timeout=LIMIT_S)
            assert status == 0, (folder / f"{name}_{number}.txt").read_text()[-3000:]
    finally:
        for job in jobs:
            job.kill()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        found |= json.loads(line)
    return found


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    train(folder, "alone", (*PYTHON, "--"))
    return folder / "alone"


@pytest.mark.parametrize("name", ["machines", "torchrun"])
def test_two_processes_train_as_one_with_their_batch(folder, alone, name):
    """The same pictures, cut the same way, and the same gradient but for the order of sums."""
    if name == "torchrun":
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
        train(folder, name, (*PYTHON, *launcher, "--"))
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        words = (*PYTHON, "--", "--num-machines", "2", "--dist-url", url, "--machine-rank")
        train(folder, name, (*words, "0"), (*words, "1"))
    theirs = weights(folder / name)
    for key, ours in weights(alone).items():
        torch.testing.assert_close(ours, theirs[key], rtol=0, atol=1e-5, msg=key)
    one, two = metrics(alone), metrics(folder / name)
    for key in ("total_loss", "validation/total_loss", "bbox/AP"):
        assert two[key] == pytest.approx(one[key], rel=1e-4), key


def test_a_worker_that_dies_ends_the_job_with_its_cause(folder: Path) -> None:
    if parallel._cores() < 2:
        pytest.skip("one core: one process")
    command = [*PYTHON, str(ROOT / "train_net.py"), "--num-gpus", "2", *WORDS]
    job = subprocess.Popen(
        [*command, "SOLVER.MAX_ITER", "100000", "OUTPUT_DIR", "dies"],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        log = folder / "dies" / "log.txt"
        until = time.monotonic() + LIMIT_S
        while "Starting training" not in (log.read_text() if log.exists() else ""):
            assert job.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        children = subprocess.run(
            ["ps", "-ww", "-o", "pid,args", "--ppid", str(job.pid)], capture_output=True, text=True
        ).stdout
        workers = [int(x.split()[0]) for x in children.splitlines() if "multiprocessing.spawn" in x]
        assert len(workers) == 2, children
        os.kill(workers[1], signal.SIGKILL)
        _, said = job.communicate(timeout=LIMIT_S)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 2
    (error,) = re.findall("^error: .*", said, flags=re.MULTILINE)
    # The other worker may be the first to end, for lack of this one.
    assert re.search("worker process|another process of the job", error) and "--resume" in error


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((1, 0), "--num-machines: 0 given"),
        ((1, 2, 2, "tcp://10.0.0.1:29500"), "--machine-rank: 2 given .* from 0 to 1"),
        ((1, 2, -1, "tcp://10.0.0.1:29500"), "--machine-rank: -1 given"),
        ((1, 2, 1), "--dist-url: none given for --num-machines 2"),
    ],
)
def test_machines_that_cannot_come_together(words, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        choose_workers(*words)


def test_processes_that_are_started_again_meet_in_a_part_of_the_store_of_their_own() -> None:
    store = torch.distributed.HashStore()
    store.set("hello/1", "one that ended")
    for _ in range(2):  # a start, and a restart
        with ThreadPoolExecutor() as pool:
            jobs = [pool.submit(parallel.unused_part, store, rank, 3) for rank in range(3)]
            parts = [job.result(timeout=30) for job in jobs]
        parts[0].set("address", "new")
        assert all(part.get("address") == b"new" for part in parts)
        again = parallel.unused_part(store, 0, 1)
        assert not again.check(["address"])


def test_how_many_workers_without_a_gpu(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parallel, "_cores", lambda: 4)
    assert choose_workers(1, 1) == 1
    assert choose_workers(8, 1) == 4
    assert (
        choose_workers(8, 2, 1, "tcp://127.0.0.1:29500") == 8
    )  # of a machine; another's cores are not known
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "No GPU found (--num-gpus 1): running on the CPU, in one process."
    assert said[1].endswith("in 4 processes.")
