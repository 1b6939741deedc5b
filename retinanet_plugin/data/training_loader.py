"""A training loader whose batches are a function of the seed: batch ``i`` is the same in any run.

detectron2's loaders start over when a run is resumed, and the augmentation of an image depends on
the worker that loads it. Here both follow from the seed and the position in the sequence only: a
resumed run, another number of workers, and a batch shared by several processes all see the same
images with the same augmentation.
"""

import logging
import multiprocessing
import os
import random
import signal
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError
from ..modeling.registry import one_of

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
_SUBSET_SEED = 0
_TRIES = 10  # images tried in place of an unreadable one
_ORDER, _IMAGE, _STEP = range(3)  # what a generator is seeded for

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One element of the sampler's sequence."""

    position: int  # in the sequence, from 0
    image: int  # its index in the dataset


class BatchedSampler(Sampler[Sample]):
    """An endless sequence of samples, batch by batch; each pass over the dataset is shuffled.

    Args:
        groups: (num_images,) int64; only images of the same group share a batch.
        batch_size: of all processes together.
        seed: the same in all processes.
        repeats: (num_images,), how often a pass takes each image on average; None: once.
        rank, world_size: this process takes every ``world_size``-th sample of a batch, starting
            at the ``rank``-th.

    Attributes:
        first_batch: where an iteration starts; earlier batches are skipped.
    """

    def __init__(
        self,
        groups: torch.Tensor,
        batch_size: int,
        seed: int,
        *,
        repeats: torch.Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._groups = groups.tolist()
        self._repeats = repeats
        self._batch_size = batch_size
        self._rank, self._world_size = rank, world_size
        self.seed = seed
        self.first_batch = 0

    def __iter__(self) -> Iterator[Sample]:
        for number, batch in enumerate(self._batches()):
            if number >= self.first_batch:
                yield from batch[self._rank :: self._world_size]

    def _batches(self) -> Iterator[list[Sample]]:
        incomplete: dict[int, list[Sample]] = {}
        for position, index in enumerate(self._indices()):
            batch = incomplete.setdefault(self._groups[index], [])
            batch.append(Sample(position, index))
            if len(batch) == self._batch_size:
                yield batch
                del incomplete[self._groups[index]]

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, _ORDER))
        all_images = torch.arange(len(self._groups))
        while True:
            indices = all_images
            if self._repeats is not None:
                whole = self._repeats.floor()
                more = torch.rand(len(all_images), generator=generator) < self._repeats - whole
                indices = all_images.repeat_interleave(whole.long() + more.long())
            yield from indices[torch.randperm(len(indices), generator=generator)].tolist()


class SeededDataset(Dataset[dict[str, Any]]):
    """Loads the image of a :class:`Sample`, with augmentation seeded by its position.

    Args:
        entries: detectron2's dataset dicts.
        mapper: makes a model's input of one entry.
        seed: that of the sampler.
        replace_unreadable: whether to load another image in place of an unreadable one; inputs
            list the errors under ``"unreadable"``.
    """

    def __init__(
        self, entries: Any, mapper: DatasetMapper, seed: int, *, replace_unreadable: bool = False
    ) -> None:
        self._entries, self._mapper, self.seed = entries, mapper, seed
        self._replace_unreadable = replace_unreadable

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        index, errors = sample.image, list[str]()
        with seeded_random(_mixed(self.seed, _IMAGE, sample.position)):
            while len(errors) < _TRIES:
                try:
                    return {**self._mapper(self._entries[index]), "unreadable": errors}
                except UserError as error:
                    if not self._replace_unreadable:
                        raise
                    errors.append(str(error))
                    index = random.randrange(len(self))
        raise UserError(f"{errors[-1]}; {_TRIES} images in a row cannot be read")


class TrainingLoader:
    """An endless iterable of batches, each a list of model inputs.

    With another loader, such as detectron2's, the trainer cannot resume at the same image.

    Args:
        dataset: loads what the sampler yields.
        sampler: that of this process.
        batch_size: of this process.
        num_workers: processes that load images; 0: this process loads them.
        max_unreadable: how many unreadable images this process replaces by others.
        content: see below.

    Attributes:
        first_batch: number of the batch at which an iteration starts: the step of a resumed run.
        seed: determines order and augmentation; set it before the first batch is loaded.
        content: a short description that differs between datasets, stored in checkpoints to warn
            of a resumed run whose dataset has changed.

    Raises:
        UserError: while iterating, for an unreadable image beyond ``max_unreadable``.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        sampler: BatchedSampler,
        batch_size: int,
        num_workers: int = 0,
        max_unreadable: int = 0,
        content: str = "",
    ) -> None:
        self._dataset, self._sampler, self.content = dataset, sampler, content
        self._batch_size = batch_size
        self._max_unreadable = max_unreadable
        self._unreadable: set[str] = set()
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=ignore_signals,
        )

    @property
    def first_batch(self) -> int:
        return self._sampler.first_batch

    @first_batch.setter
    def first_batch(self, number: int) -> None:
        self._sampler.first_batch = number

    @property
    def seed(self) -> int:
        return self._sampler.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._sampler.seed = self._dataset.seed = seed

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batch = []
        for image in self._loader:
            self._count(image.pop("unreadable", []))
            batch.append(image)
            if len(batch) == self._batch_size:
                yield batch
                batch = []

    def _count(self, errors: list[str]) -> None:
        for error in errors:
            if error in self._unreadable:
                continue
            self._unreadable.add(error)
            count, limit = len(self._unreadable), self._max_unreadable
            if count > limit:
                raise UserError(f"{error}; DATALOADER.SKIP_UNREADABLE allows {limit} such images")
            logger.warning("skipped (%d of DATALOADER.SKIP_UNREADABLE %d): %s", count, limit, error)


def build_training_loader(cfg: CfgNode, mapper: DatasetMapper, seed: int) -> TrainingLoader:
    """Builds this process's loader for ``DATASETS.TRAIN`` from detectron2's ``DATALOADER`` keys.

    Args:
        seed: of order and augmentation, the same in all processes.
    """
    name = one_of(cfg.DATALOADER.SAMPLER_TRAIN, SAMPLERS, "DATALOADER.SAMPLER_TRAIN")
    entries = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    repeats = None
    if name == "RepeatFactorTrainingSampler":
        repeats = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            entries, cfg.DATALOADER.REPEAT_THRESHOLD
        )
    elif name == "RandomSubsetTrainingSampler":
        generator = torch.Generator().manual_seed(_SUBSET_SEED)  # the same subset for every seed
        count = max(1, int(len(entries) * cfg.DATALOADER.RANDOM_SUBSET_RATIO))
        order = torch.randperm(len(entries), generator=generator)[:count]
        entries = [entries[i] for i in order.tolist()]
    known = "".join(f"{x.get('image_id')} {len(x.get('annotations', []))};" for x in entries)
    groups = torch.zeros(len(entries), dtype=torch.int64)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = torch.tensor([int(x["width"] > x["height"]) for x in entries])
    world_size, max_unreadable = comm.get_world_size(), cfg.DATALOADER.SKIP_UNREADABLE
    images = DatasetFromList(entries, copy=False)
    return TrainingLoader(
        SeededDataset(images, mapper, seed, replace_unreadable=max_unreadable > 0),
        BatchedSampler(
            groups,
            cfg.SOLVER.IMS_PER_BATCH,
            seed,
            repeats=repeats,
            rank=comm.get_rank(),
            world_size=world_size,
        ),
        cfg.SOLVER.IMS_PER_BATCH // world_size,
        cfg.DATALOADER.NUM_WORKERS,
        max_unreadable,
        f"{len(entries)} images ({zlib.crc32(known.encode()):08x})",
    )


# ---------------------------------------------------------------- random numbers


@contextmanager
def seeded_random(seed: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's generators for the block, then restores their state."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds all generators for one step of a process, so that checkpoints need not store them."""
    mixed = _mixed(seed, _STEP, step, rank)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def _mixed(*numbers: int) -> int:
    """Hashes several numbers to one seed of at most 63 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


# ---------------------------------------------------------------- signals


def ignore_signals(worker: int) -> None:
    """Makes a loader worker ignore signals that are meant for the training process.

    Terminals and schedulers also send Ctrl-C, SIGUSR1 and SIGTERM to the workers, which the last
    step still needs. Only the SIGTERM of the parent ends a worker.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; it tells the sender
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parents_sigterm, daemon=True).start()


def _exit_on_parents_sigterm() -> None:
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (parent.pid if parent else 0):
        pass
    os._exit(0)
