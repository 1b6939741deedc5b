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
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError, one_of

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
_SUBSET_SEED = 0
_TRIES = 10  # images tried in place of an unreadable one
_ORDER, _IMAGE, _STEP = range(3)  # what a generator is seeded for

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One element of the endless sequence of training images."""

    position: int  # in the sequence, from 0
    image: int  # its index in the dataset


class TrainingLoader:
    """An endless iterable of this process's share of each batch, a list of model inputs.

    With another loader, such as detectron2's, the trainer cannot resume at the same image.

    Args:
        entries: detectron2's dataset dicts.
        mapper: makes a model's input of one entry.
        seed: the same in all processes.
        batch_size: of all processes together.
        repeats: (num_images,), how often a pass takes each image on average; None: once.
        group_by_shape: whether landscape images share no batch with others.
        num_workers: processes that load images; 0: this process loads them.
        max_unreadable: how many unreadable images this process replaces by others.

    Attributes:
        first_batch: number of the batch at which an iteration starts: the step of a resumed run.
        seed: determines order and augmentation; set it before the iteration starts.
        content: a short description that differs between datasets, stored in checkpoints to warn
            of a resumed run whose dataset has changed.

    Raises:
        UserError: while iterating, for an unreadable image beyond ``max_unreadable``.
    """

    def __init__(
        self,
        entries: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        seed: int,
        *,
        batch_size: int,
        repeats: torch.Tensor | None = None,
        group_by_shape: bool = False,
        num_workers: int = 0,
        max_unreadable: int = 0,
    ) -> None:
        self.seed, self.first_batch = seed, 0
        self._entries, self._mapper = DatasetFromList(entries, copy=False), mapper
        self._repeats, self._batch_size, self._num_workers = repeats, batch_size, num_workers
        self._groups = [group_by_shape and x["width"] > x["height"] for x in entries]
        self._max_unreadable = max_unreadable
        self._unreadable: set[str] = set()
        known = "".join(f"{x.get('image_id')} {len(x.get('annotations', []))};" for x in entries)
        self.content = f"{len(entries)} images ({zlib.crc32(known.encode()):08x})"

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        batches = islice(self.batches(), self.first_batch, None)
        loader: DataLoader[Any] = DataLoader(
            _SeededDataset(self._entries, self._mapper, self.seed, self._max_unreadable > 0),
            sampler=(sample for batch in batches for sample in batch[rank::world_size]),
            batch_size=None,  # workers prefetch single images: batches could fill /dev/shm
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=ignore_signals,
        )
        images = iter(loader)
        while True:
            batch = list(islice(images, self._batch_size // world_size))
            for image in batch:
                self._count(image.pop("unreadable"))
            yield batch

    def batches(self) -> Iterator[list[Sample]]:
        """Yields the samples of each batch of all processes, from the first batch on."""
        seed = _mixed(self.seed, _ORDER)
        if self._repeats is None:
            sampler = TrainingSampler(len(self._entries), seed=seed)
        else:
            sampler = RepeatFactorTrainingSampler(self._repeats, seed=seed)
        incomplete: dict[bool, list[Sample]] = defaultdict(list)
        # Iterating over the sampler would give this process's share of the images only.
        for position, image in enumerate(sampler._infinite_indices()):
            batch = incomplete[self._groups[image]]
            batch.append(Sample(position, image))
            if len(batch) == self._batch_size:
                yield incomplete.pop(self._groups[image])

    def _count(self, errors: list[str]) -> None:
        for error in errors:
            if error in self._unreadable:
                continue
            self._unreadable.add(error)
            count, limit = len(self._unreadable), self._max_unreadable
            if count > limit:
                raise UserError(f"{error} DATALOADER.SKIP_UNREADABLE allows {limit} such images.")
            logger.warning("skipped (%d of DATALOADER.SKIP_UNREADABLE %d): %s", count, limit, error)


class _SeededDataset(Dataset[dict[str, Any]]):
    """Loads the image of a :class:`Sample`, with augmentation seeded by its position.

    With ``replace_unreadable``, another image replaces one that cannot be read. Model inputs list
    the errors under "unreadable".
    """

    def __init__(self, entries: Any, mapper: Any, seed: int, replace_unreadable: bool) -> None:
        self._entries, self._mapper, self._seed = entries, mapper, seed
        self._replace_unreadable = replace_unreadable

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        index, errors = sample.image, list[str]()
        with seeded_random(_mixed(self._seed, _IMAGE, sample.position)):
            while len(errors) < _TRIES:
                try:
                    return {**self._mapper(self._entries[index]), "unreadable": errors}
                except UserError as error:
                    if not self._replace_unreadable:
                        raise
                    errors.append(str(error))
                    index = random.randrange(len(self._entries))
        raise UserError(f"{errors[-1]} {_TRIES} images in a row cannot be read.")


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
    return TrainingLoader(
        entries,
        mapper,
        seed,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        repeats=repeats,
        group_by_shape=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        max_unreadable=cfg.DATALOADER.SKIP_UNREADABLE,
    )


# ---------------------------------------------------------------- random numbers


@contextmanager
def seeded_random(seed: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's CPU generator for the block, then restores them."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; it tells the sender
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parents_sigterm, daemon=True).start()


def _exit_on_parents_sigterm() -> None:
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (parent.pid if parent else 0):
        pass
    os._exit(0)
