"""What the commands' lines have in common."""

import argparse
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from .engine.user_code import add_option
from .errors import UserError, did_you_mean


def looking_at_data(name: str, description: str | None, split: str) -> argparse.ArgumentParser:
    """The command line of a tool that looks at a data set of a config.

    Args:
        name: of the tool.
        split: of the config, which is looked at unless ``--dataset`` says otherwise.
    """
    other = "test" if split == "train" else "train"
    words = argparse.ArgumentParser(
        prog=f"python -m retinanet_plugin.tools.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("--config-file", required=True, help="file or shipped name")
    words.add_argument(
        "--dataset",
        default=split,
        help=f"{split} or {other}, the config's, or the name of a registered one; default: {split}",
    )
    words.add_argument("--out", type=Path, metavar="FOLDER", help=f"default: OUTPUT_DIR/{name}")
    words.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_option(words)
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of the config")
    return words


def add_overrides(words: argparse.ArgumentParser) -> None:
    """Adds ``--opts``, after which a command line has but keys and values of the config."""
    words.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="the rest overrides keys of the config",
    )


def chosen_datasets(cfg: CfgNode, chosen: str) -> tuple[str, ...]:
    """The registered data sets that ``--dataset`` names, those of ``DATASETS`` included.

    Raises:
        UserError: where no such data set is registered.
    """
    splits = {"train": cfg.DATASETS.TRAIN, "test": cfg.DATASETS.TEST}
    if chosen not in (*splits, *DatasetCatalog):
        raise UserError(
            f'--dataset: no data set "{chosen}" is registered'
            f"{did_you_mean(chosen, [*splits, *DatasetCatalog])}; give train or test for the "
            "config's, or the name of a registered one."
        )
    return tuple(splits.get(chosen, (chosen,)))


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number of at least that: a ``type`` of argparse."""

    def read(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r} given; give a whole number from {least} up")
        return int(word)

    return read
