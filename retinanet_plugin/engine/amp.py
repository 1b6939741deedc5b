"""The precisions that a detector works in."""

import torch

HALF_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, **HALF_DTYPES}


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Convolutions and matrix products in ``dtype``; float32 leaves all as it is."""
    return torch.autocast(device_type, dtype, enabled=dtype is not torch.float32)
