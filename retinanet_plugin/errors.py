"""The exception for a mistake of the user, and how commands report it.

Code that finds a mistake in a config, dataset, checkpoint or command line raises
:class:`UserError` with one sentence: where, what was found, what is allowed, what to do.
Commands run inside :func:`one_sentence`, which prints that sentence instead of a traceback.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

EXIT_STATUS = 2  # argparse's own, for wrong arguments
STOPPED = 130  # a shell's, for a command that Ctrl-C ended
UNREAD = 141  # a shell's, for a command whose reader, such as `head`, has gone
TO_BE_RESUMED = 75  # EX_TEMPFAIL of sysexits.h: SIGTERM or SIGUSR1 ended training

# What libraries say when memory or disk is full -> what to do; the match follows in parentheses.
_KNOWN_CAUSES = {
    r"CUDA out of memory(?:\. Tried to allocate [\d.]+ \w+)?|CUDA error: out of memory": "the GPU "
    "is out of memory; lower SOLVER.IMS_PER_BATCH or the image size (INPUT.MIN_SIZE_TRAIN, "
    "MAX_SIZE_TRAIN; for detection --batch-size, MIN_SIZE_TEST, MAX_SIZE_TEST), or use half "
    "precision (SOLVER.AMP.ENABLED True, TEST.DTYPE bfloat16)",
    r"DefaultCPUAllocator: .*tried to allocate \d+ bytes|Unable to allocate [\d.]+ \w+"
    r"|Cannot allocate memory|std::bad_alloc|MemoryError"
    r"|DataLoader worker \(pid.*\) (?:is killed by signal|exited unexpectedly)": "out of memory; "
    "lower SOLVER.IMS_PER_BATCH, the image size (INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN) or "
    "DATALOADER.NUM_WORKERS, or give a container more shared memory (docker run --shm-size=8g)",
    # The last two are what torch.save says.
    r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing"
    r"|inline_container.*unexpected pos": "the disk is full; make room and continue with "
    "--resume, or name a folder on another disk, such as OUTPUT_DIR",
}


class UserError(Exception):
    """A mistake that the user can correct; the message says how."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean "focal"?)`` if one of ``known`` is close to ``word``, else ""."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def one_of(value: str, known: Iterable[str], key: str) -> str:
    """Returns ``value``, the value of the config key ``key``, if it is one of ``known``.

    Raises:
        UserError: naming the key and the known values.
    """
    known = list(known)
    near = did_you_mean(value, known)
    check(value in known, key, f'"{value}"{near}', f"one of {', '.join(known)}")
    return value


def check(valid: bool, key: str, value: object, allowed: str) -> None:
    """Raises UserError, naming the config key, its value and what is allowed, unless ``valid``."""
    if not valid:
        raise UserError(f"{key}: must be {allowed}, got {value}.")


def printable(text: str, most: int = 2000) -> str:
    """Returns ``text`` on one line, cut to ``most`` characters, with control characters escaped.

    Names from files could otherwise break lines, recolor a terminal or flood it.
    """
    if len(text) > most:
        text = f"{text[: most * 3 // 4]}...{text[-(most // 4) :]}"
    text = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sentence_of(error: BaseException) -> str | None:
    """Returns the sentence to show for an error, or None if only a traceback can explain it.

    Data loader workers and spawned trainers send their traceback as text: the sentence is what
    follows the exception's name on the last line that has it.
    """
    text = str(error)
    wrapped = re.findall(r"^(?:[\w.]+\.)?UserError: (.*)$", text, flags=re.MULTILINE)
    if wrapped:
        return wrapped[-1]
    if isinstance(error, UserError):
        return text
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: {error.strerror}; change its permissions, or name another path."
    for pattern, sentence in _KNOWN_CAUSES.items():
        if match := re.search(pattern, f"{type(error).__name__}: {text}"):
            return f"{sentence} ({match[0]})."
    return None


@contextmanager
def one_sentence(stopped: str = "nothing was written; run it again") -> Iterator[None]:
    """Reports what :func:`sentence_of` knows as ``error: ...`` on stderr and exits with status 2.

    Args:
        stopped: what Ctrl-C leaves behind, printed with exit status 130; the message of the
            ``KeyboardInterrupt``, if any, replaces it.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print(f"stopped: {str(interrupt) or stopped}.", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is left
        raise SystemExit(UNREAD) from None
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f"error: {printable(sentence)}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS) from None
