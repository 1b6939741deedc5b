"""What two processes agree on; test_parallel.py has them import this file before they train."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from retinanet_plugin import FocalRetinaNet
from retinanet_plugin.engine.parallel import share_statistics
from retinanet_plugin.engine.step import TrainingStep


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"loss": self.norm(torch.stack([x["image"] for x in batch])).square().sum()}


def three_steps() -> dict[str, Any]:
    """Takes three steps, of which the second is not finite in the second process only."""
    rank, model = comm.get_rank(), Normed()
    values = [[1.0, 2.0], [1.0, float("nan") if rank else 3.0], [4.0 + rank, 6.0]]
    batches = [[{"image": torch.tensor([x]), "image_id": rank} for x in v] for v in values]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    step = TrainingStep(model, batches, optimizer, "cpu", output=Path.cwd(), max_skipped=1)
    with EventStorage():
        for step.iter in range(3):
            step.run_step()
    own = model.norm.running_mean.item()
    share_statistics(model)
    return {
        "skipped": step.state_dict()["skipped"],
        "steps": model.norm.num_batches_tracked.item(),
        "own": own,
        "shared": model.norm.running_mean.item(),
    }


def normalizers() -> list[float]:
    """For 3 and 8 positive anchors, then for none: the number itself, then its moving average."""
    values, average = [], torch.tensor(100.0)
    for normalize_by in ("positives", "ema"):
        model = SimpleNamespace(
            normalize_by=normalize_by, device=torch.device("cpu"), loss_normalizer=average
        )
        for counts in ((3, 8), (0, 0)):
            targets = SimpleNamespace(num_positives=counts[comm.get_rank()])
            values.append(FocalRetinaNet._update_normalizer(model, targets, 1).item())
    return values


results = three_steps() | {"normalizers": normalizers()}
Path(f"{comm.get_rank()}.json").write_text(json.dumps(results))
