"""What the commands' lines have in common."""

import argparse
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number of at least that: a ``type`` of argparse."""

    def read(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r} given; give a whole number from {least} up")
        return int(word)

    return read
