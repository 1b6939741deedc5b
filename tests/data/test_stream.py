"""The training stream against detectron2's grouping, and against itself cut short and shared."""

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

from retinanet_plugin.data.stream import (
    Draw,
    PictureStream,
    SeededPictures,
    TrainingLoader,
    leave_signals,
    random_numbers_of,
)
from retinanet_plugin.errors import UserError

GROUPS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1])


def batches(stream, size, count):
    draws = iter(stream)
    return [list(islice(draws, size)) for _ in range(count)]


def test_each_pass_draws_every_picture_once_in_another_order():
    stream = PictureStream(torch.zeros(11, dtype=torch.int64), 1, seed=3)
    draws = list(islice(iter(stream), 33))
    assert [d.position for d in draws] == list(range(33))
    passes = [[d.picture for d in draws[i : i + 11]] for i in (0, 11, 22)]
    assert all(sorted(p) == list(range(11)) for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_pictures_are_grouped_as_detectron2_groups_them():
    one_by_one = PictureStream(torch.zeros(11, dtype=torch.int64), 1, seed=3)
    pictures = (
        {"width": 1 + int(GROUPS[draw.picture]), "height": 1, "draw": draw}
        for draw in islice(iter(one_by_one), 200)
    )
    theirs = [[x["draw"] for x in b] for b in AspectRatioGroupedDataset(pictures, 4)]
    assert batches(PictureStream(GROUPS, 4, seed=3), 4, len(theirs)) == theirs


def test_a_stream_that_begins_later_goes_on_as_the_whole_one():
    whole = batches(PictureStream(GROUPS, 4, seed=5), 4, 20)
    later = PictureStream(GROUPS, 4, seed=5)
    later.first_batch = 7
    assert batches(later, 4, 13) == whole[7:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_each_batch_of_the_one_process(world_size):
    whole = batches(PictureStream(GROUPS, 8, seed=5), 8, 9)
    shares = [
        batches(
            PictureStream(GROUPS, 8, seed=5, rank=rank, world_size=world_size), 8 // world_size, 9
        )
        for rank in range(world_size)
    ]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert sorted(batch) == sorted(draw for part in parts for draw in part)


def test_repeats_are_kept_on_average():
    repeats = torch.tensor([1.0, 2.5, 1.0, 1.25])
    stream = PictureStream(torch.zeros(4, dtype=torch.int64), 1, seed=1, repeats=repeats)
    drawn = np.bincount([d.picture for d in islice(iter(stream), 20_000)], minlength=4)
    np.testing.assert_allclose(drawn / drawn[0], repeats.numpy(), rtol=0.03)


def test_another_seed_is_another_order():
    assert batches(PictureStream(GROUPS, 4, 5), 4, 3) != batches(PictureStream(GROUPS, 4, 6), 4, 3)


class Noise:
    """A mapper whose augmentation draws from all three generators; picture 3 cannot be read."""

    def __call__(self, entry):
        if entry["id"] == 3:
            raise UserError("3.png: cannot be read")
        return {
            "id": entry["id"],
            "drawn": (random.random(), np.random.rand(), float(torch.rand(()))),
        }


ENTRIES = [{"id": i} for i in range(11) if i != 3]


def loader(num_workers, *, entries=ENTRIES, allowed=0, first_batch=0):
    stream = PictureStream(torch.zeros(len(entries), dtype=torch.int64), 4, seed=9)
    stream.first_batch = first_batch
    pictures = SeededPictures(entries, Noise(), 9, replace_unreadable=allowed > 0)
    return TrainingLoader(pictures, stream, 4, num_workers, allowed)


def test_augmentation_follows_the_place_whoever_loads_it():
    here = list(islice(iter(loader(0)), 8))
    random.seed(77), np.random.seed(77), torch.manual_seed(77)
    assert list(islice(iter(loader(2)), 8)) == here
    assert list(islice(iter(loader(0, first_batch=5)), 3)) == here[5:]
    drawn = [number for batch in here for x in batch for number in x["drawn"]]
    assert len(set(drawn)) == len(drawn)


def test_loading_leaves_the_random_numbers_of_the_process_alone():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(4)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(4)
    with random_numbers_of(8):
        random.random(), np.random.rand(), torch.rand(3)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


def test_unreadable_pictures_are_replaced_up_to_a_number_of_them():
    everyone = [{"id": i} for i in range(11)]
    with pytest.raises(UserError, match=r"3\.png: cannot be read"):
        list(islice(iter(loader(0, entries=everyone)), 3))
    replaced = list(islice(iter(loader(0, entries=everyone, allowed=1)), 9))
    assert all(len(batch) == 4 for batch in replaced)
    assert all(x["id"] != 3 and "unreadable" not in x for batch in replaced for x in batch)
    again = list(islice(iter(loader(2, entries=everyone, allowed=1)), 9))
    assert again == replaced


def test_one_unreadable_picture_too_many_ends_it():
    everyone = [{"id": 3, "name": i} for i in range(3)] + ENTRIES
    mapper = lambda entry: Noise()(entry) if "name" not in entry else fail(entry)  # noqa: E731
    stream = PictureStream(torch.zeros(len(everyone), dtype=torch.int64), 4, seed=9)
    pictures = SeededPictures(everyone, mapper, 9, replace_unreadable=True)
    with pytest.raises(UserError, match=r"\.png: bad \(and 2 others before it"):
        list(islice(iter(TrainingLoader(pictures, stream, 4, 0, 2)), 20))


def fail(entry):
    raise UserError(f"{entry['name']}.png: bad")


def test_a_data_set_that_cannot_be_read_at_all_ends():
    pictures = SeededPictures([{"id": 3}] * 5, Noise(), 9, replace_unreadable=True)
    with pytest.raises(UserError, match="10 pictures in a row"):
        pictures[Draw(0, 0)]


class Interrupted(Dataset):
    """Entries during whose loading a terminal sends Ctrl-C to all of its processes."""

    def __getitem__(self, draw: Draw) -> dict[str, int]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"picture": draw.picture}


def test_loader_workers_leave_ctrl_c_to_the_training_process() -> None:
    stream = PictureStream(torch.zeros(4, dtype=torch.int64), 2, seed=0)
    loader = TrainingLoader(Interrupted(), stream, 2, num_workers=1)  # type: ignore[arg-type]
    assert len(next(iter(loader))) == 2


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="Linux tells who has sent a signal")
def test_only_its_parents_sigterm_ends_a_loader_worker():
    """A scheduler sends it to all processes of a job, and the last step needs them."""
    loader = DataLoader(range(10), num_workers=1, worker_init_fn=leave_signals)  # type: ignore
    iterator = iter(loader)
    next(iterator)
    (worker,) = iterator._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert [int(x) for x in iterator] == list(range(1, 10))
    iterator = iter(loader)
    next(iterator)
    (worker,) = iterator._workers
    iterator._shutdown = True  # it is not to wonder
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(30)
    assert worker.exitcode == 0
