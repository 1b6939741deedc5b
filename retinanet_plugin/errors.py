"""The one exception that means "a person can mend this", and how it reaches that person.

Code that finds a mistake in a config, a data set, a checkpoint or a command line raises
:class:`UserError` with one sentence: where, what was found, what is allowed, what to do.
Usual troubles of the machine, such as a full disk, have their sentences in ``_USUAL``.
Commands run inside :func:`one_sentence`, which prints that sentence instead of a traceback, and one
for Ctrl-C.
"""

import difflib
import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from .starting import STOPPED, started
from .starting import TO_BE_RESUMED as TO_BE_RESUMED

EXIT_STATUS = 2  # as argparse's own, for a mistake in what was given
UNREAD = 141  # a shell's, for a command whose reader has gone (SIGPIPE)

_SMALLER = (
    "lower SOLVER.IMS_PER_BATCH or the size of the pictures (INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN; "
    "to detect: --batch-size, INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST)"
)
# What libraries say, also within the traceback that a worker process sends back -> what to do. The
# first that is found counts; the words found follow in brackets.
_USUAL = {
    r"DataLoader worker \(pid.*\) (?:exited unexpectedly|is killed by signal: (?:Bus error|Killed))"
    r"|unable to (?:mmap|write to file|open shared memory)": "a process that loads pictures was "
    "killed, as happens when memory or shared memory (/dev/shm) is full; lower "
    "DATALOADER.NUM_WORKERS (0: the training process loads them itself), or give a container more "
    "of it (docker run --shm-size=8g)",
    r"\w+ out of memory(?:\. Tried to allocate [\d.]+ \w+)?|CUDA error: out of memory"
    r"|CU\w+_STATUS_ALLOC_FAILED": f"the GPU's memory is full; {_SMALLER}, or "
    "work in half precision by SOLVER.AMP.ENABLED True and TEST.DTYPE bfloat16",
    r"DefaultCPUAllocator: .*tried to allocate \d+ bytes|Unable to allocate [\d.]+ \w+"
    r"|Cannot allocate memory|std::bad_alloc|MemoryError": f"memory is full; {_SMALLER}, or "
    "DATALOADER.NUM_WORKERS",
    r"(?:Read-only file system|Permission denied|Input/output error)(?:: '[^']*')?": "a file or "
    "folder cannot be read or written; mend that, or name one elsewhere, such as OUTPUT_DIR; "
    "training goes on from its last whole checkpoint by --resume",
    # The latter two are what torch.save says.
    r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing"
    r"|inline_container.*unexpected pos": "the disk is full; make room or name a folder elsewhere, "
    "such as OUTPUT_DIR; training goes on from its last whole checkpoint by --resume",
    r"Too many open files|received \d+ items of ancdata": "too many files are open; allow more by "
    "`ulimit -n 8192` before the command, or lower DATALOADER.NUM_WORKERS",
    r"(?:port: \d+.*)?EADDRINUSE|[Aa]ddress already in use": "the port of --dist-url is in use, "
    "perhaps by another run; give another, such as --dist-url tcp://127.0.0.1:50173",
    r"Connection (?:closed|reset) by peer|ncclRemoteError|NCCL.*[Tt]imeout|[Tt]imeout.*NCCL"
    r"|NCCL communicator was aborted": "another process of the job ended or hangs, and its own "
    "output says why; go on by the same command with --resume",
    r"Torch not compiled with CUDA enabled|Found no NVIDIA driver|no kernel image is available"
    r"|NVIDIA driver on your system is too old|CUDA driver \w+ (?:is insufficient|failed)"
    r"|invalid device ordinal|No CUDA GPUs are available": "this PyTorch cannot use that GPU; name "
    "one that nvidia-smi lists, install a PyTorch built for its driver and for that GPU, or take "
    "the CPU by MODEL.DEVICE cpu at the end of the command",
}


class UserError(Exception):
    """A mistake that the person who runs the command can mend; its text says how."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean "focal"?)`` where one of ``known`` is near ``word``, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def printable(text: str, most: int = 2000) -> str:
    """``text`` on one line, cut to ``most`` characters, what is not printable written as escapes.

    Names and messages that come from files could else break lines, recolour a terminal or fill it.
    """
    if len(text) > most:
        text = f"{text[: most * 3 // 4]}...{text[-(most // 4) :]}"
    text = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sentence_of(error: BaseException) -> str | None:
    """The sentence of a :class:`UserError` or a usual mistake, also where a worker has wrapped it.

    Data loader workers and spawned trainers send back their traceback as text: the sentence
    is what follows the exception's name on the last line that bears it.
    """
    text = str(error)
    wrapped = re.findall(r"^(?:[\w.]+\.)?UserError: (.*)$", text, flags=re.MULTILINE)
    if wrapped:
        return wrapped[-1]
    return text if isinstance(error, UserError) else _usual(f"{type(error).__name__}: {text}")


def _usual(text: str) -> str | None:
    for words, sentence in _USUAL.items():
        if found := re.search(words, text):
            return f"{sentence} ({found[0]})."
    return None


@contextmanager
def one_sentence(stopped: str = "nothing was written; run it again") -> Iterator[None]:
    """Turns what :func:`sentence_of` knows into ``error: sentence`` on stderr and exit status 2.

    Args:
        stopped: what Ctrl-C leaves behind, said with exit status 130; the text of a
            ``KeyboardInterrupt`` goes before it.
    """
    started()
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        _stop(str(interrupt) or stopped)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(UNREAD) from None
        sentence = sentence_of(error)
        if sentence is None and _followed_ctrl_c(error):
            _stop(stopped)
        if sentence is None:
            raise
        print(f"error: {printable(sentence)}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS) from None


def _nobody_reads() -> bool:
    """Whether what read the standard output has gone, as ``head`` does; it takes no more then."""
    if not hasattr(select, "poll"):  # Windows
        return False
    output = select.poll()
    output.register(sys.stdout, 0)  # errors are told without being asked for
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _stop(what_is_left: str) -> NoReturn:
    print(f"stopped: {what_is_left}.", file=sys.stderr, flush=True)
    raise SystemExit(STOPPED) from None


def _followed_ctrl_c(error: BaseException | None) -> bool:
    """Whether it arose from an interrupt, in a library that was not prepared for one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
