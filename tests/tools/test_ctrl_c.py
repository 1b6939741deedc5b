"""A signal while a command imports PyTorch, which takes seconds, ends it by a sentence."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from retinanet_plugin.starting import STOPPED

from retinanet_plugin.errors import TO_BE_RESUMED, one_sentence

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        (["-m", "projects.focal_loss_paper", "loss-curves"], signal.SIGINT, STOPPED),
        (["-m", "projects.focal_loss_paper", "loss-curves"], signal.SIGTERM, -signal.SIGTERM),
        (["train_net.py"], signal.SIGINT, STOPPED),
        (["train_net.py"], signal.SIGUSR1, TO_BE_RESUMED),
        (["-m", "retinanet_plugin.tools.train.command"], signal.SIGTERM, TO_BE_RESUMED),
    ],
)
def test_a_signal_during_imports_ends_by_a_sentence(
    command: list[str], number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # one ignored is inherited
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    for line in process.stderr:  # a line a module, as soon as it is imported
        if line.split()[-1] == "retinanet_plugin.starting":
            process.send_signal(number)
            break
    out, err = process.communicate()
    assert process.returncode == status
    assert out == ""
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert said == (["stopped: nothing was begun; run it again."] if status > 0 else [])


def test_what_a_library_makes_of_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_sentence("all is kept"):
        try:
            try:
                raise KeyboardInterrupt
            finally:
                cast(Any, None).tidy_up()
        except AttributeError as error:
            raise ValueError("some key") from error
    assert ended.value.code == STOPPED
    assert capsys.readouterr().err == "stopped: all is kept.\n"
