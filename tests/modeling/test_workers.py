"""The normalizer over several workers: two processes that talk over gloo."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.multiprocessing as mp

from retinanet_plugin import FocalRetinaNet

POSITIVES = (3, 8)


def worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = SimpleNamespace(normalize_by="positives", device=torch.device("cpu"))
    found = []
    for counts in (POSITIVES, (0, 0)):
        targets = SimpleNamespace(num_positives=counts[rank])
        found.append(FocalRetinaNet._normalizer(model, targets, 1))
    torch.save(torch.stack(found), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_workers_divide_by_the_anchors_of_both(tmp_path: Path) -> None:
    """Gradients are averaged over workers: the mean of sums over (total / 2) is sum over total."""
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        mean, none = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert mean.item() == sum(POSITIVES) / 2
        assert none.item() == 0.5  # at least one anchor over both
