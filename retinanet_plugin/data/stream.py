"""The order of training pictures as a function of the seed: batch ``i`` is the same in any run.

detectron2's loaders start over when a run is resumed, and what a picture's augmentation draws
depends on which worker loads it. Here both follow from the seed and a picture's place in the
stream alone: a resumed run, another number of loader workers, and the same batch shared by several
processes all see the same pictures, cut and flipped in the same way.
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
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError
from ..modeling.registry import one_of

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
_SUBSET = 0
_TRIES = 10  # pictures looked at for one that can be read
_ORDER, _PICTURE, _STEP = range(3)  # what a generator's seed is for

logger = logging.getLogger(__name__)


class Draw(NamedTuple):
    """A picture's turn."""

    position: int  # in the stream, from 0
    picture: int  # its number in the data set


class PictureStream(Sampler[Draw]):
    """The draws of one process, batch by batch, without end; each pass over the data is shuffled.

    Args:
        groups: (num_pictures,) int64; only pictures of one group share a batch.
        batch_size: of all processes together.
        seed: the same in all processes.
        repeats: (num_pictures,) how often each is drawn in a pass, on average; None: once.
        rank, world_size: this process takes each ``world_size``-th draw of a batch from its
            ``rank``-th on.
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
        self.first_batch = 0  # where an iteration begins; the batches before it are left out

    def __iter__(self) -> Iterator[Draw]:
        for number, batch in enumerate(self._batches()):
            if number >= self.first_batch:
                yield from batch[self._rank :: self._world_size]

    def _batches(self) -> Iterator[list[Draw]]:
        waiting: dict[int, list[Draw]] = {}
        for position, index in enumerate(self._indices()):
            batch = waiting.setdefault(self._groups[index], [])
            batch.append(Draw(position, index))
            if len(batch) == self._batch_size:
                yield batch
                del waiting[self._groups[index]]

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, _ORDER))
        everyone = torch.arange(len(self._groups))
        while True:
            drawn = everyone
            if self._repeats is not None:
                whole = self._repeats.floor()
                more = torch.rand(len(everyone), generator=generator) < self._repeats - whole
                drawn = everyone.repeat_interleave(whole.long() + more.long())
            yield from drawn[torch.randperm(len(drawn), generator=generator)].tolist()


class SeededPictures(Dataset[dict[str, Any]]):
    """Loads the picture of a :class:`Draw`; what its augmentation draws follows from the place.

    Args:
        entries: detectron2's dataset dicts.
        mapper: makes a model's input of one.
        seed: of the stream.
        replace_unreadable: whether another picture takes the place of one that cannot be read; its
            sentence is then in the input's ``"unreadable"``, a list.
    """

    def __init__(
        self, entries: Any, mapper: DatasetMapper, seed: int, *, replace_unreadable: bool = False
    ) -> None:
        self._entries, self._mapper, self.seed = entries, mapper, seed
        self._replace_unreadable = replace_unreadable

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        with random_numbers_of(_mixed(self.seed, _PICTURE, draw.position)):
            if not self._replace_unreadable:
                return self._load(draw.picture)
            return self._load_any(draw.picture)

    def _load(self, index: int) -> dict[str, Any]:
        loaded: dict[str, Any] = self._mapper(self._entries[index])
        return loaded

    def _load_any(self, index: int) -> dict[str, Any]:
        unreadable: list[str] = []
        while len(unreadable) < _TRIES:
            try:
                return {**self._load(index), "unreadable": unreadable}
            except UserError as error:
                unreadable.append(str(error))
                index = random.randrange(len(self))
        raise UserError(
            f"the data set: {_TRIES} pictures in a row cannot be read, the last for this: "
            f"{unreadable[-1]}"
        )


class TrainingLoader:
    """Batches of a :class:`PictureStream` without end: lists of a model's inputs.

    Args:
        pictures: what the stream's draws are loaded by.
        stream: of this process.
        batch_size: of this process.
        num_workers: processes that load; 0: this one.
        most_unreadable: how many pictures that cannot be read this process replaces by others.
        content: words that tell this data set from others.

    Raises:
        UserError: while iterating, at one more picture that cannot be read.
    """

    def __init__(
        self,
        pictures: SeededPictures,
        stream: PictureStream,
        batch_size: int,
        num_workers: int = 0,
        most_unreadable: int = 0,
        content: str = "",
    ) -> None:
        self._pictures, self.stream, self.content = pictures, stream, content
        self._batch_size = batch_size
        self._most_unreadable = most_unreadable
        self._unreadable: set[str] = set()
        self._loader: DataLoader[Any] = DataLoader(
            pictures,
            sampler=stream,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=leave_signals,
        )

    @property
    def seed(self) -> int:
        """Of order and augmentation; to be set before the first picture is loaded."""
        return self.stream.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.stream.seed = self._pictures.seed = seed

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batch = []
        for picture in self._loader:
            self._count(picture.pop("unreadable", []))
            batch.append(picture)
            if len(batch) == self._batch_size:
                yield batch
                batch = []

    def _count(self, unreadable: list[str]) -> None:
        for sentence in unreadable:
            if sentence not in self._unreadable:
                self._unreadable.add(sentence)
                if len(self._unreadable) > self._most_unreadable:
                    raise UserError(
                        f"{sentence} (and {self._most_unreadable} others before it, as many as "
                        "DATALOADER.SKIP_UNREADABLE allows)"
                    )
                logger.warning(
                    "left out: %s (%d of DATALOADER.SKIP_UNREADABLE %d)",
                    *(sentence, len(self._unreadable), self._most_unreadable),
                )


def build_training_loader(cfg: CfgNode, mapper: DatasetMapper, seed: int) -> TrainingLoader:
    """The loader of this process for ``DATASETS.TRAIN``, by detectron2's ``DATALOADER`` keys.

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
        generator = torch.Generator().manual_seed(_SUBSET)  # the same ones with every seed
        count = max(1, int(len(entries) * cfg.DATALOADER.RANDOM_SUBSET_RATIO))
        order = torch.randperm(len(entries), generator=generator)[:count]
        entries = [entries[i] for i in order.tolist()]
    known = "".join(f"{x.get('image_id')} {len(x.get('annotations', []))};" for x in entries)
    content = f"{len(entries)} pictures ({zlib.crc32(known.encode()):08x})"
    groups = torch.zeros(len(entries), dtype=torch.int64)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = torch.tensor([int(x["width"] > x["height"]) for x in entries])
    workers = comm.get_world_size()
    stream = PictureStream(
        groups,
        cfg.SOLVER.IMS_PER_BATCH,
        seed,
        repeats=repeats,
        rank=comm.get_rank(),
        world_size=workers,
    )
    allowed = cfg.DATALOADER.SKIP_UNREADABLE
    pictures = SeededPictures(
        DatasetFromList(entries, copy=False), mapper, seed, replace_unreadable=allowed > 0
    )
    return TrainingLoader(
        pictures,
        stream,
        cfg.SOLVER.IMS_PER_BATCH // workers,
        cfg.DATALOADER.NUM_WORKERS,
        allowed,
        content,
    )


@contextmanager
def random_numbers_of(seed: int) -> Iterator[None]:
    """Where Python's, numpy's and torch's random numbers follow from ``seed``, and go on after."""
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
    """Sets the random numbers of a process's step, so that they need no place in a checkpoint."""
    mixed = _mixed(seed, _STEP, step, rank)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, unlike those of their neighbours; at most 63 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def _unchanged(picture: Any) -> Any:
    return picture


def leave_signals(worker: int) -> None:
    """For loader workers: of all signals that end training, only their parent's SIGTERM ends them.

    A terminal's and a scheduler's reach them too, but the step that is to end needs them.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which tells who has sent it; Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (parent.pid if parent else 0):
        pass
    os._exit(0)
