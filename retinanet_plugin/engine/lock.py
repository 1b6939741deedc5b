"""One training at a time into a folder: two would write each other's checkpoints and metrics."""

import errno
import os
import socket

from ..errors import UserError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"  # in OUTPUT_DIR
_held: int | None = None  # its descriptor; a process trains one run at a time


def hold(folder: str) -> None:
    """Keeps other processes from training into ``folder`` as long as this one lives.

    The system itself ends a lock with its process, however that dies, and processes forked from it
    have no part in it. Where the file system knows no locks nothing happens.

    Raises:
        UserError: if another process holds it.
    """
    global _held
    if fcntl is None:
        return
    if _held is not None:
        os.close(_held)  # before: to close a file ends all locks that this process has on it
        _held = None
    path = os.path.join(folder, FILE)
    try:
        # A link in a folder from elsewhere must not lead to a file that is then written to.
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError:
        return
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _held = opened
        os.ftruncate(opened, 0)
        os.write(opened, f"process {os.getpid()} of {socket.gethostname()}".encode())
    except OSError as error:
        if _held is not None:
            return  # held, but on a disk that is full
        holder = printable(os.read(opened, 200).decode(errors="replace")) or "another process"
        os.close(opened)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"OUTPUT_DIR: {folder} is being trained into by {holder}; wait for its end or stop "
                "it, or give another OUTPUT_DIR."
            ) from None
