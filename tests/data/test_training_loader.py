"""The training loader against detectron2's grouping, and against itself resumed and shared."""

import os
import random
import signal
import subprocess
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset
from torch.utils.data import DataLoader, Dataset

from retinanet_plugin.data.training_loader import (
    BatchedSampler,
    Sample,
    SeededDataset,
    TrainingLoader,
    ignore_signals,
    seeded_random,
)
from retinanet_plugin.errors import UserError

GROUPS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1])
ONE_GROUP = torch.zeros(11, dtype=torch.int64)


def batches(sampler, size, count):
    samples = iter(sampler)
    return [list(islice(samples, size)) for _ in range(count)]


def test_each_pass_takes_every_image_once_in_another_order():
    samples = list(islice(iter(BatchedSampler(ONE_GROUP, 1, seed=3)), 33))
    assert [sample.position for sample in samples] == list(range(33))
    passes = [[sample.image for sample in samples[i : i + 11]] for i in (0, 11, 22)]
    assert all(sorted(p) == list(range(11)) for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_images_are_grouped_as_detectron2_groups_them():
    one_by_one = BatchedSampler(ONE_GROUP, 1, seed=3)
    images = (
        {"width": 1 + int(GROUPS[sample.image]), "height": 1, "sample": sample}
        for sample in islice(iter(one_by_one), 200)
    )
    theirs = [[x["sample"] for x in b] for b in AspectRatioGroupedDataset(images, 4)]
    assert batches(BatchedSampler(GROUPS, 4, seed=3), 4, len(theirs)) == theirs


def test_resuming_continues_the_sequence():
    whole = batches(BatchedSampler(GROUPS, 4, seed=5), 4, 20)
    later = BatchedSampler(GROUPS, 4, seed=5)
    later.first_batch = 7
    assert batches(later, 4, 13) == whole[7:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one_process(world_size):
    whole = batches(BatchedSampler(GROUPS, 8, seed=5), 8, 9)
    samplers = [
        BatchedSampler(GROUPS, 8, seed=5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [batches(sampler, 8 // world_size, 9) for sampler in samplers]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert sorted(batch) == sorted(sample for part in parts for sample in part)


def test_repeats_are_kept_on_average():
    repeats = torch.tensor([1.0, 2.5, 1.0, 1.25])
    sampler = BatchedSampler(torch.zeros(4, dtype=torch.int64), 1, seed=1, repeats=repeats)
    counts = np.bincount([sample.image for sample in islice(iter(sampler), 20_000)], minlength=4)
    np.testing.assert_allclose(counts / counts[0], repeats.numpy(), rtol=0.03)


def test_another_seed_is_another_order():
    a, b = (BatchedSampler(GROUPS, 4, seed) for seed in (5, 6))
    assert batches(a, 4, 3) != batches(b, 4, 3)


def read(entry):
    """A mapper whose augmentation uses all three generators; some entries are unreadable."""
    if entry.get("bad") or entry["id"] == 3:
        raise UserError(f"{entry['id']}.png: bad")
    return {
        "id": entry["id"],
        "random": (random.random(), np.random.rand(), float(torch.rand(()))),
    }


ALL = [{"id": i} for i in range(11)]
READABLE = [entry for entry in ALL if entry["id"] != 3]


def loader(num_workers, entries=READABLE, *, max_unreadable=0, first_batch=0):
    sampler = BatchedSampler(torch.zeros(len(entries), dtype=torch.int64), 4, seed=9)
    dataset = SeededDataset(entries, read, 9, replace_unreadable=max_unreadable > 0)
    result = TrainingLoader(dataset, sampler, 4, num_workers, max_unreadable)
    result.first_batch = first_batch
    return result


def test_augmentation_depends_on_the_position_not_on_the_worker():
    here = list(islice(iter(loader(0)), 8))
    random.seed(77), np.random.seed(77), torch.manual_seed(77)
    assert list(islice(iter(loader(2)), 8)) == here
    assert list(islice(iter(loader(0, first_batch=5)), 3)) == here[5:]
    numbers = [number for batch in here for x in batch for number in x["random"]]
    assert len(set(numbers)) == len(numbers)


def test_loading_does_not_disturb_the_random_numbers_of_the_process():
    def seed_all():
        random.seed(4), np.random.seed(4), torch.manual_seed(4)

    def numbers():
        return random.random(), np.random.rand(), float(torch.rand(()))

    seed_all()
    expected = numbers()
    seed_all()
    with seeded_random(8):
        numbers()
    assert numbers() == expected


def test_unreadable_images_are_replaced_up_to_a_limit():
    with pytest.raises(UserError, match=r"3\.png"):
        list(islice(iter(loader(0, ALL)), 3))
    replaced = list(islice(iter(loader(0, ALL, max_unreadable=1)), 9))
    assert all(len(batch) == 4 for batch in replaced)
    assert all(x["id"] != 3 and "unreadable" not in x for batch in replaced for x in batch)
    assert list(islice(iter(loader(2, ALL, max_unreadable=1)), 9)) == replaced
    bad = [{"id": i, "bad": True} for i in range(20, 23)]
    with pytest.raises(UserError, match=r"2\d\.png.*DATALOADER\.SKIP_UNREADABLE allows 2"):
        list(islice(iter(loader(0, bad + READABLE, max_unreadable=2)), 20))


def test_a_dataset_without_readable_images_ends():
    dataset = SeededDataset([{"id": 3}] * 5, read, 9, replace_unreadable=True)
    with pytest.raises(UserError, match=r"3\.png.* 10 images"):
        dataset[Sample(0, 0)]


class Interrupted(Dataset):
    """A dataset during whose loading a terminal sends Ctrl-C to all of its processes."""

    def __getitem__(self, sample: Sample) -> dict[str, int]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"image": sample.image}


def test_workers_leave_ctrl_c_to_the_training_process() -> None:
    sampler = BatchedSampler(torch.zeros(4, dtype=torch.int64), 2, seed=0)
    loader = TrainingLoader(Interrupted(), sampler, 2, num_workers=1)  # type: ignore[arg-type]
    assert len(next(iter(loader))) == 2


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="only Linux tells the sender")
def test_only_the_parents_sigterm_ends_a_worker():
    """A scheduler sends it to all processes of a job, and the last step needs the workers."""
    loader = DataLoader(range(10), None, num_workers=1, worker_init_fn=ignore_signals)
    iterator = iter(loader)
    next(iterator)
    (worker,) = iterator._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert list(iterator) == list(range(1, 10))
    iterator = iter(loader)
    next(iterator)
    (worker,) = iterator._workers
    iterator._shutdown = True  # else it would report the death of its worker
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(30)
    assert worker.exitcode == 0
