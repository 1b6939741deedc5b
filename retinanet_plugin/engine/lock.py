"""A lock that lets one process at a time train into an output folder."""

from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError

# A killed run's loader workers notice within 5 s; until then they may still hold its lock.
_PATIENCE_S = 6.0
_lock: FileLock | None = None


def lock_folder(folder: str) -> None:
    """Locks ``folder`` for as long as this process lives or until it locks another.

    Raises:
        UserError: if another process holds the lock.
    """
    global _lock
    if _lock is not None:
        _lock.release()
    _lock = FileLock(Path(folder) / ".lock", timeout=_PATIENCE_S)
    try:
        _lock.acquire()
    except Timeout:
        _lock = None
        raise UserError(
            f"OUTPUT_DIR: another process is training into {folder}; wait until it ends, or give "
            "another OUTPUT_DIR."
        ) from None
