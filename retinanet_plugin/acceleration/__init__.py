"""What only makes things faster: without it, results are the same up to rounding."""
