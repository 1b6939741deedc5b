"""A training step in any precision, which takes no gradients that are not finite."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import AMPTrainer
from detectron2.utils import comm
from torch import Tensor, nn

from .amp import autocast
from .parallel import changing_buffers

FOLDER = "not_finite"  # in OUTPUT_DIR
_MOST_BOXES = 1000  # of a picture, in a report

logger = logging.getLogger(__name__)


class TrainingStep(AMPTrainer):
    """Losses and gradients under autocast, on any device: detectron2's ``AMPTrainer`` knows CUDA.

    A step whose loss or gradients are not finite, in any process, changes nothing: it is reported
    in a file, and then left out or ends training. With float16, gradients that overflow because the
    loss is scaled up are part of the game: the scaler leaves those steps out, and lowers the scale.

    Args:
        model, data_loader, optimizer: see detectron2's ``SimpleTrainer``.
        device_type: where the model is, "cpu" or "cuda".
        dtype: of convolutions and matrix products. float16, whose exponents are few, has its
            losses scaled; the others need none of that.
        output: folder of the run, for the reports.
        most_skipped: how many steps may be left out.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        device_type: str,
        dtype: torch.dtype = torch.float32,
        *,
        output: str | Path = ".",
        most_skipped: int = 0,
    ) -> None:
        scaler = torch.amp.GradScaler(device_type, enabled=dtype is torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype)
        self.device_type = device_type
        self._output = Path(output)
        self._most_skipped = most_skipped
        self._skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also of a run in another precision, whose checkpoint has no loss scaler."""
        scaler = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scaler})
        self._skipped = state_dict.get("skipped", 0)

    def run_step(self) -> None:
        """Loads, computes losses and gradients, and updates, in detectron2's order."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        # A forward pass with numbers that are not finite spoils the statistics of norms for good.
        kept = [(b, b.clone()) for b in changing_buffers(self.model)] if self._most_skipped else []
        with autocast(self.device_type, self.precision):
            losses = self.model(data)
        total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        if not self._is_finite(total):
            self._leave_out(data, losses)
            for buffer, before in kept:
                buffer.copy_(before)
            return
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _is_finite(self, total: Tensor) -> bool:
        """Whether the loss is in all processes, and the gradients, which are the same in all."""
        seen = [total.detach().float()]
        if self.grad_scaler.get_scale() <= 1:  # as without a scaler: no scale is to blame
            seen += gradient_norms(self.model).values()
        worst = torch.stack(seen).sum().isfinite().float()
        if comm.get_world_size() > 1:
            dist.all_reduce(worst, dist.ReduceOp.MIN)
        return bool(worst)

    def _leave_out(self, data: list[dict[str, Any]], losses: dict[str, Tensor]) -> None:
        """Reports the step.

        Raises:
            FloatingPointError: if no more steps may be left out; its text names the report.
        """
        scale = self.grad_scaler.get_scale()
        norms = gradient_norms(self.model)
        self.optimizer.zero_grad()
        pictures = [x for part in comm.gather([_described(p) for p in data]) for x in part]
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for name, norm in norms.items():
            parts[part_of(name)].append(norm)
        report = {
            "step": self.iter + 1,
            "losses": {name: str(loss.item()) for name, loss in losses.items()},
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norms": {
                part: str(torch.stack(found).norm().item() / scale) for part, found in parts.items()
            },
            "pictures": pictures,
        }
        where = self._written(report) if comm.is_main_process() else "the first process tells more"
        if self._skipped >= self._most_skipped:
            raise FloatingPointError(where)
        self._skipped += 1
        logger.warning(
            "step %d: the loss or its gradients are not finite; the step is left out (%d of "
            "SOLVER.SKIP_NOT_FINITE %d); %s",
            *(self.iter + 1, self._skipped, self._most_skipped, where),
        )

    def _written(self, report: dict[str, Any]) -> str:
        """Where the report is, in words."""
        file = self._output / FOLDER / f"step_{report['step']:07d}.json"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(report, indent=1), encoding="utf-8")
        except OSError as error:
            return f"{file}, which would tell its pictures, cannot be written ({error.strerror})"
        return f"its pictures and gradients are in {file}"


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """The L2 norm of each parameter's gradient, scalars on its device."""
    found = ((name, p.grad) for name, p in model.named_parameters())
    return {name: torch.linalg.vector_norm(grad) for name, grad in found if grad is not None}


def part_of(parameter: str) -> str:
    """The part of a detector that a parameter belongs to, such as backbone.bottom_up.res4."""
    names = [x for x in parameter.removeprefix("module.").split(".")[:-1] if not x.isdigit()]
    return ".".join(names[: 3 if "bottom_up" in names else 2]) or parameter


def _described(picture: dict[str, Any]) -> dict[str, Any]:
    instances = picture.get("instances")
    known = {key: picture.get(key) for key in ("image_id", "file_name")}
    if instances is None:
        return known
    return {
        **known,
        "size": list(picture["image"].shape[-2:]),  # as trained on, and so are the boxes
        "boxes": instances.gt_boxes.tensor[:_MOST_BOXES].tolist(),
        "classes": instances.gt_classes[:_MOST_BOXES].tolist(),
    }
