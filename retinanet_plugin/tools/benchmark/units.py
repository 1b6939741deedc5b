"""Formats durations and sizes."""


def duration(seconds: float, *others: float) -> str:
    """Formats seconds or milliseconds with three digits; ``others`` follow in the same unit."""
    factor, unit = (1, "s") if seconds >= 1 else (1000, "ms")
    spread = " to ".join(_three_digits(x * factor) for x in others)
    return f"{_three_digits(seconds * factor)} {unit}" + (f" ({spread})" if spread else "")


def _three_digits(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:,.0f}"


def size(num_bytes: float) -> str:
    """Formats megabytes or gigabytes."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
