"""What two processes agree on, over gloo."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from retinanet_plugin.engine.parallel import share_statistics
from retinanet_plugin.engine.step import TrainingStep
from retinanet_plugin.evaluation.scores import highest_of_workers


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"loss": self.norm(torch.stack([x["image"] for x in batch])).square().sum()}


def worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    comm.create_local_process_group(2)
    model = Normed()
    values = [[1.0, 2.0], [1.0, float("nan") if rank else 3.0], [4.0 + rank, 6.0]]
    batches = [[{"image": torch.tensor([x]), "image_id": rank} for x in v] for v in values]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    step = TrainingStep(model, batches, optimizer, "cpu", output=folder, max_skipped=1)
    with EventStorage():
        for step.iter in range(3):
            step.run_step()
    known = highest_of_workers([None, 0.25][rank]), highest_of_workers(None)
    own = model.norm.running_mean.clone()
    share_statistics(model)
    results = {
        "skipped": step.state_dict()["skipped"],
        "highest": known,
        "own": own.item(),
        "shared": model.norm.running_mean.item(),
        "steps": model.norm.num_batches_tracked.item(),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_step_that_is_not_finite_in_one_is_skipped_in_both(found) -> None:
    folder, workers = found
    assert [x["skipped"] for x in workers] == [1, 1]
    assert [x["steps"] for x in workers] == [2, 2]
    report = json.loads((folder / "not_finite" / "step_0000002.json").read_text())
    assert [x["image_id"] for x in report["images"]] == [0, 0, 1, 1]


def test_both_are_evaluated_with_the_statistics_of_the_first(found) -> None:
    first, second = found[1]
    assert first["own"] != second["own"]
    assert first["own"] == first["shared"] == second["shared"]


def test_the_highest_score_is_that_of_both(found) -> None:
    assert found[1][0]["highest"] == [0.25, None]
