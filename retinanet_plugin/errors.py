"""The one exception that means "a person can mend this", and how it reaches that person.

Code that finds a mistake in a config, a data set, a checkpoint or a command line raises
:class:`UserError` with one sentence: where, what was found, what is allowed, what to do.
Commands run inside :func:`one_sentence`, which prints that sentence instead of a traceback, and one
for Ctrl-C. Importing PyTorch takes seconds before that, so Ctrl-C is looked after from here on.
"""

import difflib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_STATUS = 2  # as argparse's own, for a mistake in what was given
STOPPED = 130  # a shell's, for a command that Ctrl-C ended


class UserError(Exception):
    """A mistake that the person who runs the command can mend; its text says how."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean "focal"?)`` where one of ``known`` is near ``word``, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def sentence_of(error: BaseException) -> str | None:
    """The sentence of a :class:`UserError`, also where a worker process has wrapped it.

    Data loader workers and spawned trainers send back their traceback as text: the sentence
    is what follows the exception's name on the last line that bears it.
    """
    text = str(error)
    wrapped = re.findall(r"^(?:[\w.]+\.)?UserError: (.*)$", text, flags=re.MULTILINE)
    if wrapped:
        return wrapped[-1]
    return text if isinstance(error, UserError) else None


@contextmanager
def one_sentence(stopped: str = "nothing was written") -> Iterator[None]:
    """Turns a :class:`UserError` into ``error: sentence`` on stderr and exit status 2.

    Args:
        stopped: what Ctrl-C leaves behind, said with exit status 130.
    """
    if signal.getsignal(signal.SIGINT) is _stop_import:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped: {stopped}.", file=sys.stderr, flush=True)
        raise SystemExit(STOPPED) from None
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS) from None


def _stop_import(number: int, frame: FrameType | None) -> None:
    """Ends the process: an exception might be caught by whatever is being imported."""
    os.write(2, b"stopped: nothing was begun.\n")
    os._exit(STOPPED)


def _is_starting_a_command() -> bool:
    """Whether this import is the first of train_net.py or of ``-m retinanet_plugin.tools.NAME``."""
    if multiprocessing.parent_process() is not None:
        return False  # a worker, ended by whoever started it
    package = Path(__file__).resolve().parent
    if sys.argv[:1] == ["-m"]:
        return any(f"{package.name}.tools." in word for word in sys.orig_argv)
    return [Path(word).resolve() for word in sys.argv[:1]] == [package.parent / "train_net.py"]


if _is_starting_a_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop_import)
