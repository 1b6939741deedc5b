"""Precisions for training and evaluation."""

import torch

HALF_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, **HALF_DTYPES}


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Returns an autocast to ``dtype``, disabled for float32."""
    return torch.autocast(device_type, dtype, enabled=dtype is not torch.float32)
