"""Usual mistakes as sentences: each as PyTorch, numpy or the system really raises it."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from retinanet_plugin import UserError
from retinanet_plugin.errors import one_sentence, sentence_of

# Its older name goes with torch 2.4.
OutOfGpuMemory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


def sentence(mistake: Callable[[], object]) -> str:
    with pytest.raises(Exception) as raised:
        mistake()
    said = sentence_of(raised.value)
    assert said is not None and said.endswith(").") and "\n" not in said
    return said


class _KillsItsWorker(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def raises(error: BaseException) -> Callable[[], object]:
    def mistake() -> None:
        raise error

    return mistake


def test_memory() -> None:
    for ask in (lambda: torch.empty(2**60), lambda: np.empty(2**56), lambda: bytearray(2**60)):
        said = sentence(ask)
        assert said.startswith("memory is full") and "SOLVER.IMS_PER_BATCH" in said
    assert "1152921504606846976 bytes" in sentence(lambda: torch.empty(2**60, dtype=torch.uint8))


def test_memory_of_a_gpu() -> None:
    text = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB."
    said = sentence(raises(OutOfGpuMemory(text)))
    assert said.startswith("the GPU's memory is full") and "INPUT.MIN_SIZE_TRAIN" in said
    assert "SOLVER.AMP.ENABLED" in said
    assert said.endswith("(CUDA out of memory. Tried to allocate 2.50 GiB).")
    # As torch.multiprocessing sends it from another process
    wrapped = f"-- Process 1 terminated with the following error:\nTraceback (most recent):\n{text}"
    assert sentence(raises(RuntimeError(wrapped))) == said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is Linux's")
def test_full_disk() -> None:
    def write() -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    weights = {"model": torch.zeros(100_000)}
    for mistake in (write, lambda: torch.save(weights, "/dev/full")):
        assert sentence(mistake).startswith("the disk is full; make room")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_used_is_named(number: int) -> None:
    said = sentence(raises(OSError(number, os.strerror(number), "out/metrics.json")))
    assert said.endswith(f"({os.strerror(number)}: 'out/metrics.json').")


@pytest.mark.parametrize(
    "text",
    [
        "NCCL error: remote process exited or there was a network error, ncclRemoteError: x",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3) ran for 600000",
    ],
)
def test_a_peer_that_has_gone(text: str) -> None:
    assert sentence(raises(RuntimeError(text))).startswith("another process of the job ended")


def test_killed_loader() -> None:
    said = sentence(lambda: list(DataLoader(_KillsItsWorker(), num_workers=1)))
    assert "--shm-size" in said and "DATALOADER.NUM_WORKERS" in said
    shared = "unable to write to file </torch_1_2_3>: No space left on device (28)"
    assert "--shm-size" in sentence(raises(RuntimeError(shared)))


def test_too_many_files() -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.jpg")
    for mistake in (error, RuntimeError("received 0 items of ancdata")):
        assert "`ulimit -n 8192`" in sentence(raises(mistake))


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = sentence(lambda: torch.distributed.TCPStore("127.0.0.1", port, 1, True))
    assert "--dist-url" in said and str(port) in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    assert "MODEL.DEVICE cpu" in sentence(lambda: torch.zeros(1, device="cuda"))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: invalid device ordinal",
        "The NVIDIA driver on your system is too old (found version 11040). Please update.",
        "CUDA driver version is insufficient for CUDA runtime version",
    ],
)
def test_gpu_of_another_kind(text: str) -> None:
    assert "nvidia-smi" in sentence(raises(RuntimeError(text)))


def test_what_is_nobodys_mistake_keeps_its_traceback() -> None:
    for error in (ValueError("memory"), RuntimeError("The size of tensor a (3) must match")):
        assert sentence_of(error) is None
        with pytest.raises(type(error)), one_sentence():
            raise error
    assert sentence_of(UserError("out of memory? no.")) == "out of memory? no."


def test_what_is_said_when_stopped(capsys) -> None:
    for interrupt in (KeyboardInterrupt(), KeyboardInterrupt("half is kept")):
        with pytest.raises(SystemExit) as stop, one_sentence("all is kept"):
            raise interrupt
        assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped: all is kept.\nstopped: half is kept.\n"


def test_a_reader_that_goes_gets_no_traceback() -> None:
    """As ``head`` does after its lines."""
    script = """
from retinanet_plugin.errors import one_sentence
with one_sentence():
    print("a line\\n" * 100_000)
"""
    run = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stderr is not None
    assert run.stdout.readline() == "a line\n"
    run.stdout.close()
    assert (run.stderr.read(), run.wait()) == ("", 141)
    run.stderr.close()
