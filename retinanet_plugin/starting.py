"""Ctrl-C while a command of ours imports PyTorch, which takes seconds, ends it by a sentence.

Imported before all else, so it imports only what Python has loaded by itself, or nearly so.
"""

import os
import signal
import sys
from types import FrameType

STOPPED = 130  # a shell's, for a command that Ctrl-C ended


def stop(number: int, frame: FrameType | None) -> None:
    """Ends the process: an exception might be caught by whatever is being imported."""
    os.write(2, b"stopped: nothing was begun; run it again.\n")
    os._exit(STOPPED)


def started() -> None:
    """From now on Ctrl-C is a ``KeyboardInterrupt``, as usual."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Whether this import is the first of train_net.py or of ``-m retinanet_plugin.tools.NAME``."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        return False  # a worker, ended by whoever started it
    package = os.path.dirname(os.path.realpath(__file__))
    if sys.argv[:1] == ["-m"]:
        return any(f"{os.path.basename(package)}.tools." in word for word in sys.orig_argv)
    script = os.path.join(os.path.dirname(package), "train_net.py")
    return [os.path.realpath(word) for word in sys.argv[:1]] == [script]


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, stop)
