"""Mixed precision on any device: detectron2's knows CUDA only."""

import time
from typing import Any

import torch
from detectron2.engine import AMPTrainer
from torch import nn
from torch.utils.data import DataLoader

HALF_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, **HALF_DTYPES}


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Convolutions and matrix products in ``dtype``; float32 leaves all as it is."""
    return torch.autocast(device_type, dtype, enabled=dtype is not torch.float32)


class AutocastTrainer(AMPTrainer):
    """A step of training under autocast; its state is that of detectron2's ``AMPTrainer``.

    Args:
        model, data_loader, optimizer: see detectron2's ``SimpleTrainer``.
        device_type: where the model is, "cpu" or "cuda".
        dtype: of convolutions and matrix products. float16, whose exponents are few, has its
            losses scaled; bfloat16 needs none of that.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        device_type: str,
        dtype: torch.dtype,
    ) -> None:
        scaler = torch.amp.GradScaler(device_type, enabled=dtype is torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype)
        self.device_type = device_type

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also of a run in another precision, whose checkpoint has no loss scaler."""
        scaler = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scaler})

    def run_step(self) -> None:
        """Loads, computes losses and gradients, and updates, in detectron2's order."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with autocast(self.device_type, self.precision):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
