"""The normalizer over two worker processes."""

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
    average = torch.tensor(100.0)
    normalizers = []
    for normalize_by in ("positives", "ema"):
        model = SimpleNamespace(
            normalize_by=normalize_by, device=torch.device("cpu"), loss_normalizer=average
        )
        for counts in (POSITIVES, (0, 0)):
            targets = SimpleNamespace(num_positives=counts[rank])
            normalizers.append(FocalRetinaNet._update_normalizer(model, targets, 1))
    torch.save(torch.stack(normalizers), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_workers_divide_by_the_anchors_of_both(tmp_path: Path) -> None:
    """Gradients are averaged over the workers, so each divides by half of the total."""
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        mean, none, *averages = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert mean.item() == sum(POSITIVES) / 2
        assert none.item() == 0.5  # at least one anchor over both
        expected = [90 + 0.1 * mean.item(), 0.9 * (90 + 0.1 * mean.item()) + 0.1]
        torch.testing.assert_close(torch.stack(averages), torch.tensor(expected))
