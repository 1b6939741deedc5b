"""Ctrl-C while a command of ours imports PyTorch, which takes seconds, ends it by a sentence.

So do a scheduler's signals the one that trains, with the status by which it is begun again.

Imported before all else, so it imports only what Python has loaded by itself, or nearly so.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

STOPPED = 130  # a shell's, for a command that Ctrl-C ended
TO_BE_RESUMED = 75  # EX_TEMPFAIL of sysexits.h: SIGTERM or SIGUSR1 ended training, --resume goes on
_USUAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
for _name in ("SIGTERM", "SIGUSR1"):  # Windows has no SIGUSR1
    if hasattr(signal, _name):
        _USUAL[getattr(signal, _name)] = signal.SIG_DFL


def stop(number: int, frame: FrameType | None) -> None:
    """Ends the process: an exception might be caught by whatever is being imported."""
    os.write(2, b"stopped: nothing was begun; run it again.\n")
    os._exit(STOPPED if number == signal.SIGINT else TO_BE_RESUMED)


def started() -> None:
    """From now on Ctrl-C is a ``KeyboardInterrupt``, as usual, and so are other signals."""
    for number, usual in _USUAL.items():
        if signal.getsignal(number) is stop:
            signal.signal(number, usual)


def _signals() -> list[signal.Signals]:
    """Those to end by: none unless this import is the first of a command of ours."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.current_process().name != "MainProcess":
        return []  # a worker, ended by whoever started it
    package = os.path.dirname(os.path.realpath(__file__))
    if sys.argv[:1] == ["-m"]:
        tools = f"{os.path.basename(package)}.tools."
        names = [word.partition(tools)[2] for word in sys.orig_argv if tools in word]
        return [] if not names else list(_USUAL) if names[0] == "train" else [signal.SIGINT]
    script = os.path.join(os.path.dirname(package), "train_net.py")
    return list(_USUAL) if [os.path.realpath(word) for word in sys.argv[:1]] == [script] else []


for _number in _signals():
    if signal.getsignal(_number) is _USUAL[_number]:
        signal.signal(_number, stop)
