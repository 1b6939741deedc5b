"""Several processes on the CPU train as one with their batch, and stop together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import SMALL, metrics, train

from retinanet_plugin import UserError, utils
from retinanet_plugin.data import synthetic
from retinanet_plugin.engine import choose_workers, invoke, launch, parallel

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


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *args],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_same_weights(one: Path, other: Path) -> None:
    theirs = torch.load(other, weights_only=True)["model"]
    for key, ours in torch.load(one, weights_only=True)["model"].items():
        torch.testing.assert_close(ours, theirs[key], rtol=0, atol=1e-5, msg=key)


def last_values(folder: Path) -> dict[str, float]:
    return {key: value for line in metrics(folder) for key, value in line.items()}


@pytest.fixture(scope="module")
def torchrun(folder: Path) -> Path:
    """A run like the one alone, of two processes that torchrun has started."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    code = str(Path(__file__).with_name("two_processes.py"))
    job = start(folder, *launcher, *TRAIN, "--import", code, *ARGS, "OUTPUT_DIR", "torchrun")
    output, _ = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 0, output
    return folder / "torchrun"


def test_two_processes_train_as_one_with_their_batch(folder: Path, torchrun: Path) -> None:
    """The same images and augmentation, and the same gradients and metrics up to rounding."""
    assert_same_weights(folder / "alone/model_final.pth", torchrun / "model_final.pth")
    one, two = (last_values(folder / name) for name in ("alone", "torchrun"))
    for key in ("total_loss", "validation/total_loss", "bbox/AP"):
        assert two[key] == pytest.approx(one[key], rel=1e-4), key


def test_what_two_processes_agree_on(torchrun: Path) -> None:
    folder = torchrun.parent
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert [(x["skipped"], x["steps"]) for x in (first, second)] == [(1, 2)] * 2
    report = json.loads((folder / "not_finite" / "step_0000002.json").read_text())
    assert [x["image_id"] for x in report["images"]] == [0, 0, 1, 1]
    assert first["own"] != second["own"]
    assert first["own"] == first["shared"] == second["shared"]
    # Gradients are averaged over processes: each divides by half of all anchors, of at least one.
    average = 90 + 0.1 * (3 + 8) / 2
    expected = [(3 + 8) / 2, 1 / 2, average, 0.9 * average + 0.1]
    assert first["normalizers"] == second["normalizers"] == pytest.approx(expected)


def test_device_overrides_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(launch, "main", lambda args, _: seen.append(args.opts))
    invoke(["--device", "cpu", "SEED", "1"])
    assert seen == [["SEED", "1", "MODEL.DEVICE", "cpu"]]


def test_machines_stop_after_the_same_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A signal to the command of the second one ends both, with one checkpoint."""
    monkeypatch.chdir(folder)
    Path("stop.py").write_text(KILLER.format(action=STOP_COMMAND))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    args = ("--import", "stop.py", "--num-machines", "2", "--dist-url", url)
    keys = (*ARGS, "OUTPUT_DIR", "stopped")
    second = start(folder, *TRAIN, *args, "--machine-rank", "1", *keys)
    try:
        assert train(*args, "--machine-rank", "0", *keys) == 75
        output, _ = second.communicate(timeout=LIMIT_S)
    finally:
        second.kill()
    assert second.returncode == 75 and "stopped: " not in output, output
    assert "stopped: " in capfd.readouterr().err
    assert [x.name for x in Path("stopped").glob("*.pth")] == ["model_0000001.pth"]
    assert_same_weights(Path("alone/model_0000001.pth"), Path("stopped/model_0000001.pth"))


@pytest.mark.skipif(utils.cpu_count() < 2, reason="one core: one process")
def test_process_that_dies_ends_the_job_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    Path("die.py").write_text(KILLER.format(action=DIE))
    assert train("--import", "die.py", "--num-gpus", "2", *ARGS, "OUTPUT_DIR", "dead") == 2
    output = "".join(capfd.readouterr())
    assert "error: worker process 1" in output and "Traceback" not in output, output


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
