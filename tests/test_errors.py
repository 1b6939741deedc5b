"""Errors of users and of a full machine are one sentence; all others keep their traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from retinanet_plugin import UserError
from retinanet_plugin.errors import STOPPED, UNREAD, one_sentence, printable, sentence_of

GPU_MEMORY = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB."


class _KillsItsWorker(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "fill, key",
    [
        (lambda: torch.empty(2**60), "SOLVER.IMS_PER_BATCH"),
        (lambda: np.empty(2**56), "SOLVER.IMS_PER_BATCH"),
        (lambda: bytearray(2**60), "SOLVER.IMS_PER_BATCH"),
        (lambda: list(DataLoader(_KillsItsWorker(), num_workers=1)), "SOLVER.IMS_PER_BATCH"),
        (lambda: Path("/dev/full").write_text("x"), "OUTPUT_DIR"),
        (lambda: torch.save({"model": torch.zeros(100_000)}, "/dev/full"), "OUTPUT_DIR"),
    ],
)
def test_full_memory_or_disk(fill, key: str) -> None:
    with pytest.raises(Exception) as raised:
        fill()
    sentence = sentence_of(raised.value)
    assert sentence is not None and key in sentence and "\n" not in sentence


def test_memory_of_a_gpu() -> None:
    sentence = sentence_of(torch.OutOfMemoryError(GPU_MEMORY))
    assert sentence is not None and "SOLVER.AMP.ENABLED" in sentence and "2.50 GiB" in sentence
    # as torch.multiprocessing sends it from another process
    wrapped = (
        f"-- Process 1 terminated with the following error:\nTraceback (most recent):\n{GPU_MEMORY}"
    )
    assert sentence_of(RuntimeError(wrapped)) == sentence


def test_no_permission_names_the_file() -> None:
    assert "out/a.json" in (
        sentence_of(PermissionError(13, "Permission denied", "out/a.json")) or ""
    )


def test_other_errors_keep_their_traceback() -> None:
    for error in (ValueError("memory"), RuntimeError("The size of tensor a (3) must match")):
        assert sentence_of(error) is None
        with pytest.raises(type(error)), one_sentence():
            raise error


def test_user_errors_and_their_copies_from_workers(capsys) -> None:
    assert sentence_of(UserError("KEY: out of memory? no.")) == "KEY: out of memory? no."
    sent = RuntimeError("Traceback ...\nretinanet_plugin.errors.UserError: KEY: wrong.\n")
    assert sentence_of(sent) == "KEY: wrong."
    with pytest.raises(SystemExit) as ended, one_sentence():
        raise sent
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: KEY: wrong.\n"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), KeyboardInterrupt("half is kept")])
def test_ctrl_c(interrupt: KeyboardInterrupt, capsys) -> None:
    with pytest.raises(SystemExit) as stop, one_sentence("all is kept"):
        raise interrupt
    assert stop.value.code == STOPPED
    assert (str(interrupt) or "all is kept") in capsys.readouterr().err


def test_text_from_files_cannot_control_a_terminal() -> None:
    assert printable("a\x1b[31m\nb") == "a\\x1b[31m b"
    assert len(printable("x" * 10_000, 100)) < 110


def test_a_closed_pipe_ends_without_a_traceback() -> None:
    """As in ``retinanet ... | head``."""
    script = (
        "from retinanet_plugin.errors import one_sentence\n"
        "with one_sentence():\n    print('a line\\n' * 100_000)\n"
    )
    command, pipe = [sys.executable, "-W", "ignore", "-c", script], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "a line\n"
        run.stdout.close()
        assert (run.stderr.read(), run.wait()) == ("", UNREAD)
