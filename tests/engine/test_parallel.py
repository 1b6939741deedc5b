"""Several processes on the CPU: they train as one process with their batch."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_training import SMALL, metrics

from retinanet_plugin import UserError, utils
from retinanet_plugin.data import synthetic
from retinanet_plugin.engine import choose_workers, invoke, parallel

ROOT = Path(__file__).parents[2]
ARGS = [
    *("--config-file", "Base-Scratch-R18.yaml", *SMALL, "SOLVER.IMS_PER_BATCH", "4"),
    # Batch norm's statistics are a process's own.
    *("MODEL.RESNETS.NORM", "GN", "SOLVER.BASE_LR", "0.005", "SOLVER.WARMUP_ITERS", "2"),
]
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
LIMIT_S = 300  # of a job that would otherwise hang
PYTHON = (sys.executable, "-W", "ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    synthetic.draw_dataset(folder / "data", num_train=12, num_test=5, size=96)
    return folder


def train(folder: Path, name: str, *commands: tuple[str, ...]) -> None:
    """Runs one command per machine: what precedes the script, ``--``, and what follows it."""
    jobs = []
    for args in commands:
        at = args.index("--")
        command = [*args[:at], str(ROOT / "train_net.py"), *args[at + 1 :], *ARGS]
        with open(folder / f"{name}_{len(jobs)}.txt", "w") as log:
            jobs.append(
                subprocess.Popen(
                    [*command, "OUTPUT_DIR", name],
                    cwd=folder,
                    env=ENVIRONMENT,
                    stdout=log,
                    stderr=log,
                )
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


def last_values(folder: Path) -> dict[str, float]:
    return {key: value for line in metrics(folder) for key, value in line.items()}


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    train(folder, "alone", (*PYTHON, "--"))
    return folder / "alone"


@pytest.mark.parametrize("name", ["machines", "torchrun"])
def test_two_processes_train_as_one_with_their_batch(folder: Path, alone: Path, name: str) -> None:
    """The same images and augmentation, and the same gradients up to rounding."""
    if name == "torchrun":
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
        train(folder, name, (*PYTHON, *launcher, "--"))
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        args = (*PYTHON, "--", "--num-machines", "2", "--dist-url", url, "--machine-rank")
        train(folder, name, (*args, "0"), (*args, "1"))
    theirs = weights(folder / name)
    for key, ours in weights(alone).items():
        torch.testing.assert_close(ours, theirs[key], rtol=0, atol=1e-5, msg=key)
    one, two = last_values(alone), last_values(folder / name)
    for key in ("total_loss", "validation/total_loss", "bbox/AP"):
        assert two[key] == pytest.approx(one[key], rel=1e-4), key


@pytest.mark.skipif(utils.cpu_count() < 2, reason="one core: one process")
def test_workers_that_stop_and_a_worker_that_dies(folder: Path) -> None:
    """A signal to the command stops all workers after a step; the death of one ends the job."""
    command = [*PYTHON, str(ROOT / "train_net.py"), "--num-gpus", "2", "--resume", *ARGS]
    command += ["SOLVER.MAX_ITER", "100000", "OUTPUT_DIR", "two"]
    for ending in ("stop", "death"):
        log = folder / "two" / "log.txt"
        log.unlink(missing_ok=True)
        job = subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + LIMIT_S
            while "Starting training" not in (log.read_text() if log.exists() else ""):
                assert job.poll() is None and time.monotonic() < until
                time.sleep(0.2)
            time.sleep(0.5)
            if ending == "stop":
                job.send_signal(signal.SIGTERM)
            else:
                os.kill(workers_of(job.pid)[1], signal.SIGKILL)
            _, err = job.communicate(timeout=LIMIT_S)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
        if ending == "stop":
            assert job.returncode == 75, err
            assert len(re.findall("^stopped: .*--resume", err, flags=re.MULTILINE)) == 1, err
            assert len(list((folder / "two").glob("model_*.pth"))) == 1
        else:
            assert job.returncode != 0
            # The other worker may be the first to end, for lack of this one.
            assert re.search("error: worker process|Connection closed by peer", err), err


def workers_of(pid: int) -> list[int]:
    children = subprocess.run(
        ["ps", "-ww", "-o", "pid,args", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout
    workers = [int(x.split()[0]) for x in children.splitlines() if "multiprocessing.spawn" in x]
    assert len(workers) == 2, children
    return workers


def test_several_machines_need_an_address() -> None:
    with pytest.raises(UserError, match="--dist-url"):
        invoke(["--num-machines", "2", "--machine-rank", "1"])


def test_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parallel, "cpu_count", lambda: 4)
    assert choose_workers(1) == 1
    assert choose_workers(8) == 4
    assert choose_workers(8, num_machines=2) == 8
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_workers(2) == 2
    for wrong in (0, 3):
        with pytest.raises(UserError, match=f"--num-gpus: {wrong}"):
            choose_workers(wrong)
