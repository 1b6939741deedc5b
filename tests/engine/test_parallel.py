"""Several processes on the CPU train as one with their batch, and stop together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from small_training import SMALL, metrics, train
from torch import nn

from retinanet_plugin import UserError, utils
from retinanet_plugin.data import synthetic
from retinanet_plugin.engine import choose_workers, invoke, parallel
from retinanet_plugin.engine.parallel import share_statistics
from retinanet_plugin.engine.step import TrainingStep
from retinanet_plugin.evaluation.scores import highest_of_workers

ARGS = [
    *(*SMALL, "SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
    # Batch norm's statistics are a process's own.
    *("MODEL.RESNETS.NORM", "GN", "SOLVER.BASE_LR", "0.005", "SOLVER.WARMUP_ITERS", "2"),
]
SCRIPT = str(Path(__file__).parents[2] / "train_net.py")
TRAIN = (SCRIPT, "--config-file", "Base-Scratch-R18.yaml")
LIMIT_S = 300  # of a job that would otherwise hang
KILLER = """
import os, signal, time
from detectron2.utils import comm
from retinanet_plugin.engine import Trainer

run_step = Trainer.run_step

def run_step_and_kill(trainer):
    if trainer.iter == 1 and comm.get_rank() == 1:
        {action}
    run_step(trainer)

Trainer.run_step = run_step_and_kill
"""
DIE = "os.kill(os.getpid(), signal.SIGKILL)"
STOP_COMMAND = "os.kill(os.getppid(), signal.SIGTERM); time.sleep(1)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset in ``data`` and a run of one process in ``alone``."""
    folder = tmp_path_factory.mktemp("parallel")
    synthetic.draw_dataset(folder / "data", num_train=12, num_test=5, size=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(*ARGS, "OUTPUT_DIR", "alone") == 0
    return folder


def run(folder: Path, name: str, *commands: tuple[str, ...]) -> list[tuple[int, str]]:
    """Runs Python with each command's arguments at once; returns exit statuses and stderr."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *command, *ARGS, "OUTPUT_DIR", name],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        errors = [job.communicate(timeout=LIMIT_S)[1] for job in jobs]
        return [(job.returncode, error) for job, error in zip(jobs, errors, strict=True)]
    finally:
        for job in jobs:
            job.kill()


def assert_same_weights(one: Path, other: Path) -> None:
    theirs = torch.load(other, weights_only=True)["model"]
    for key, ours in torch.load(one, weights_only=True)["model"].items():
        torch.testing.assert_close(ours, theirs[key], rtol=0, atol=1e-5, msg=key)


def last_values(folder: Path) -> dict[str, float]:
    return {key: value for line in metrics(folder) for key, value in line.items()}


def test_torchrun_trains_as_one_process_with_the_batch(folder: Path) -> None:
    """The same images and augmentation, and the same gradients and metrics up to rounding."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    ((status, error),) = run(folder, "torchrun", (*launcher, *TRAIN))
    assert status == 0, error
    assert_same_weights(folder / "alone/model_final.pth", folder / "torchrun/model_final.pth")
    one, two = (last_values(folder / name) for name in ("alone", "torchrun"))
    for key in ("total_loss", "validation/total_loss", "bbox/AP"):
        assert two[key] == pytest.approx(one[key], rel=1e-4), key


def test_machines_stop_after_the_same_step(folder: Path) -> None:
    """A signal to the command of the second one ends both, with one checkpoint."""
    (folder / "stop.py").write_text(KILLER.format(action=STOP_COMMAND))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    args = (*TRAIN, "--import", "stop.py", "--num-machines", "2", "--dist-url", url)
    jobs = run(folder, "stopped", *((*args, "--machine-rank", rank) for rank in "01"))
    assert [status for status, _ in jobs] == [75, 75], jobs
    assert ["stopped: " in error for _, error in jobs] == [True, False]
    assert [x.name for x in (folder / "stopped").glob("*.pth")] == ["model_0000001.pth"]
    assert_same_weights(folder / "alone/model_0000001.pth", folder / "stopped/model_0000001.pth")


@pytest.mark.skipif(utils.cpu_count() < 2, reason="one core: one process")
def test_process_that_dies_ends_the_job_with_a_sentence(folder: Path) -> None:
    (folder / "die.py").write_text(KILLER.format(action=DIE))
    ((status, error),) = run(folder, "dead", (*TRAIN, "--import", "die.py", "--num-gpus", "2"))
    assert status == 2 and "error: worker process 1" in error
    assert "Traceback" not in error, error


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


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"loss": self.norm(torch.stack([x["image"] for x in batch])).square().sum()}


def work(rank: int, folder: str) -> None:
    """Three steps, the second not finite in the second process only."""
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    comm.create_local_process_group(2)
    model = Normed()
    values = [[1.0, 2.0], [1.0, float("nan") if rank else 3.0], [4.0 + rank, 6.0]]
    batches = [[{"image": torch.tensor([x]), "image_id": rank} for x in v] for v in values]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    step = TrainingStep(model, batches, optimizer, "cpu", output=folder, max_skipped=1)
    with EventStorage():
        for step.iter in range(3):
            step.run_step()
    results = {
        "skipped": step.state_dict()["skipped"],
        "steps": model.norm.num_batches_tracked.item(),
        "highest": highest_of_workers([None, 0.25][rank]),
        "own": model.norm.running_mean.item(),
    }
    share_statistics(model)
    results["shared"] = model.norm.running_mean.item()
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_what_two_processes_agree_on(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert [(x["skipped"], x["steps"]) for x in (first, second)] == [(1, 2)] * 2
    report = json.loads((tmp_path / "not_finite" / "step_0000002.json").read_text())
    assert [x["image_id"] for x in report["images"]] == [0, 0, 1, 1]
    assert first["highest"] == 0.25
    assert first["own"] != second["own"]
    assert first["own"] == first["shared"] == second["shared"]
