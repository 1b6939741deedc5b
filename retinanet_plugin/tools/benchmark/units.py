"""Numbers for people."""


def duration(seconds: float, *others: float) -> str:
    """Three digits, in seconds or milliseconds; ``others`` after it, in the same unit."""
    factor, unit = (1, "s") if seconds >= 1 else (1000, "ms")
    spread = " to ".join(f"{x * factor:.3g}" for x in others)
    return f"{seconds * factor:.3g} {unit}" + (f" ({spread})" if spread else "")


def size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
