"""A training step in any precision that applies only finite gradients."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import AMPTrainer
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import UserError
from ..utils import write_json
from .amp import autocast
from .parallel import changing_buffers

FOLDER = "not_finite"  # in OUTPUT_DIR

logger = logging.getLogger(__name__)


class TrainingStep(AMPTrainer):
    """detectron2's ``AMPTrainer`` on any device and in any precision.

    A step with a loss or gradients that are not finite, in any process, changes nothing. It is
    reported in a file and then skipped, or ends training. In float16, gradients that overflow
    because of the loss scale are normal: the scaler skips those steps and lowers the scale.

    Args:
        model, data_loader, optimizer: see detectron2's ``SimpleTrainer``.
        device_type: device of the model, "cpu" or "cuda".
        dtype: of convolutions and matrix products. Only float16 needs a loss scaler.
        output: folder of the run, for the reports.
        max_skipped: how many steps may be skipped.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        device_type: str,
        dtype: torch.dtype = torch.float32,
        *,
        output: str | Path,
        max_skipped: int = 0,
    ) -> None:
        scaler = torch.amp.GradScaler(device_type, enabled=dtype is torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype)
        self.device_type = device_type
        self._output = Path(output)
        self._max_skipped = max_skipped
        self._skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of any precision, or of detectron2."""
        scaler = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scaler})
        self._skipped = state_dict.get("skipped", 0)

    def run_step(self) -> None:
        """Loads a batch, computes losses and gradients, and updates the weights."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        # A forward pass with values that are not finite would ruin the statistics of norms.
        kept = [(b, b.clone()) for b in changing_buffers(self.model)] if self._max_skipped else []
        with autocast(self.device_type, self.precision):
            losses = self.model(data)
        total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        if not self._is_finite(total):
            self._skip(data, losses)
            for buffer, before in kept:
                buffer.copy_(before)
            return
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _is_finite(self, total: Tensor) -> bool:
        """Returns whether all processes have a finite loss and finite gradients."""
        values = [total.detach().float()]
        if self.grad_scaler.get_scale() <= 1:  # otherwise the loss scale may be the cause
            values += gradient_norms(self.model).values()
        finite = torch.stack(values).sum().isfinite().float()
        if comm.get_world_size() > 1:
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        return bool(finite)

    def _skip(self, data: list[dict[str, Any]], losses: dict[str, Tensor]) -> None:
        """Reports the step and skips it.

        Raises:
            UserError: if no more steps may be skipped.
        """
        scale = self.grad_scaler.get_scale()
        images = [{key: image.get(key) for key in ("image_id", "file_name")} for image in data]
        step, rate = self.iter + 1, self.optimizer.param_groups[0]["lr"]
        report = {
            "step": step,
            "losses": {name: str(loss.item()) for name, loss in losses.items()},
            "learning_rate": rate,
            "gradient_norms": {
                name: str(norm.item() / scale) for name, norm in gradient_norms(self.model).items()
            },
            "images": [image for part in comm.gather(images) for image in part],
        }
        self.optimizer.zero_grad()
        file = self._output / FOLDER / f"step_{step:07d}.json"
        if comm.is_main_process():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, report)
        self._skipped += 1
        if self._skipped > self._max_skipped:
            raise UserError(
                f"SOLVER.BASE_LR: training stopped at step {step}, where the loss or its gradients "
                f"are not finite (learning rate {rate:.3g}; images and gradients in {file}); lower "
                "it, lengthen SOLVER.WARMUP_ITERS, or set SOLVER.CLIP_GRADIENTS.ENABLED True."
            )
        logger.warning(
            f"Step {step} is skipped: its loss or gradients are not finite ({self._skipped} of "
            f"SOLVER.SKIP_NOT_FINITE {self._max_skipped}; images and gradients in {file})"
        )


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Returns the L2 norm of each parameter's gradient, scalars on its device."""
    grads = ((name, p.grad) for name, p in model.named_parameters())
    return {name: torch.linalg.vector_norm(grad) for name, grad in grads if grad is not None}
