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
from detectron2.utils import comm
from torch.utils.data import DataLoader

from retinanet_plugin.data.training_loader import TrainingLoader, ignore_signals, seeded_random
from retinanet_plugin.errors import UserError

WIDTHS = [1, 2, 2, 1, 2, 1, 1, 2, 2, 1, 2]
ENTRIES = [{"id": i, "width": width, "height": 1} for i, width in enumerate(WIDTHS)]


def numbers():
    return random.random(), np.random.rand(), float(torch.rand(()))


def read(entry):
    """A mapper whose augmentation uses all three generators; some entries are unreadable."""
    if entry.get("bad"):
        raise UserError(f"{entry['id']}.png: bad")
    return {"id": entry["id"], "random": numbers()}


def loader(seed=9, entries=ENTRIES, first_batch=0, batch_size=4, **options):
    result = TrainingLoader(entries, read, seed, batch_size=batch_size, **options)
    result.first_batch = first_batch
    return result


def first(iterable, count):
    return list(islice(iter(iterable), count))


def test_each_pass_takes_every_image_once_in_another_order():
    samples = [sample for (sample,) in first(loader(batch_size=1).batches(), 33)]
    assert [sample.position for sample in samples] == list(range(33))
    passes = [[sample.image for sample in samples[i : i + 11]] for i in (0, 11, 22)]
    assert all(sorted(p) == list(range(11)) for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_images_are_grouped_as_detectron2_groups_them():
    one_by_one = first(loader(batch_size=1).batches(), 200)
    images = (ENTRIES[sample.image] | {"sample": sample} for (sample,) in one_by_one)
    theirs = [[x["sample"] for x in batch] for batch in AspectRatioGroupedDataset(images, 4)]
    assert first(loader(group_by_shape=True).batches(), len(theirs)) == theirs


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one_process(world_size, monkeypatch):
    whole = first(loader(batch_size=8), 9)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    shares = []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(first(loader(batch_size=8), 9))
    for i, batch in enumerate(whole):
        assert all(batch[rank::world_size] == share[i] for rank, share in enumerate(shares))


def test_repeats_are_kept_on_average():
    repeats = torch.tensor([1.0, 2.5, 1.0, 1.25])
    batches = first(loader(1, ENTRIES[:4], repeats=repeats).batches(), 5_000)
    counts = np.bincount([sample.image for batch in batches for sample in batch], minlength=4)
    np.testing.assert_allclose(counts / counts[0], repeats.numpy(), rtol=0.03)


def test_augmentation_depends_on_seed_and_position_not_on_the_worker():
    here = first(loader(), 8)
    random.seed(77), np.random.seed(77), torch.manual_seed(77)
    assert first(loader(num_workers=2), 8) == here
    assert first(loader(first_batch=5), 3) == here[5:]
    assert first(loader(seed=8), 8) != here
    drawn = [number for batch in here for x in batch for number in x["random"]]
    assert len(set(drawn)) == len(drawn)


def test_loading_does_not_disturb_the_random_numbers_of_the_process():
    def seed_all():
        random.seed(4), np.random.seed(4), torch.manual_seed(4)

    seed_all()
    expected = numbers()
    seed_all()
    with seeded_random(8):
        numbers()
    assert numbers() == expected


def test_unreadable_images_are_replaced_up_to_a_limit():
    bad = [{"id": i, "bad": True} for i in range(20, 23)]
    entries = [*bad[:1], *ENTRIES]
    with pytest.raises(UserError, match=r"20\.png"):
        first(loader(entries=entries), 3)
    replaced = first(loader(entries=entries, max_unreadable=1), 9)
    assert all(len(batch) == 4 for batch in replaced)
    assert all(x["id"] < 20 and "unreadable" not in x for batch in replaced for x in batch)
    assert first(loader(entries=entries, max_unreadable=1, num_workers=2), 9) == replaced
    with pytest.raises(UserError, match=r"2\d\.png.*DATALOADER\.SKIP_UNREADABLE allows 2"):
        first(loader(entries=bad + ENTRIES, max_unreadable=2), 20)
    with pytest.raises(UserError, match=r"20\.png.* 10 images"):
        first(loader(entries=bad[:1], max_unreadable=2), 1)


def interrupted(entry):
    """A mapper during which a terminal sends Ctrl-C to all processes."""
    os.kill(os.getpid(), signal.SIGINT)
    return entry


def test_workers_leave_ctrl_c_to_the_training_process():
    loader = TrainingLoader(ENTRIES, interrupted, 0, batch_size=2, num_workers=1)
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
