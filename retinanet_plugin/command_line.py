"""What the commands' parsers share: one spelling for each option."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from .engine.user_code import add_import_option, import_code
from .errors import UserError, did_you_mean


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of ``retinanet NAME``, described by its module's docstring."""
    return argparse.ArgumentParser(
        prog=f"retinanet {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_file(
    parser: argparse.ArgumentParser, *, required: bool = True, default: str | None = None
) -> None:
    """Adds ``--config-file``."""
    note = "" if required or default is None else f"; default: {default}"
    parser.add_argument(
        "--config-file",
        required=required,
        default=default,
        metavar="FILE",
        help=f"a YAML file, or the name of a shipped one{note}",
    )


def add_weights(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds ``--weights``."""
    parser.add_argument(
        "--weights", required=required, metavar="FILE", help="a checkpoint or an exported model"
    )


def add_output(parser: argparse.ArgumentParser, help: str, *, required: bool = False) -> None:
    """Adds ``--output`` and ``--overwrite``."""
    parser.add_argument("--output", type=Path, required=required, metavar="PATH", help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``, which :func:`parse` turns into an override of MODEL.DEVICE."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:0, ...; default: a GPU")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds ``KEY VALUE ...`` (``opts``) and ``--import``."""
    add_import_option(parser)
    parser.add_argument(
        "opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of config keys"
    )


def parse(parser: argparse.ArgumentParser, args: Sequence[str] | None) -> argparse.Namespace:
    """Parses ``args``, in which options may follow the overrides, and imports ``--import``."""
    parsed = parser.parse_intermixed_args(args)
    if getattr(parsed, "device", None):
        parsed.opts = [*parsed.opts, "MODEL.DEVICE", parsed.device]
    import_code(getattr(parsed, "imports", []))
    return parsed


def at_least(minimum: int) -> Callable[[str], int]:
    """Returns an argparse ``type`` for integers from ``minimum`` up."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: give an integer of at least {minimum}")
        return int(text)

    return read


positive_int = at_least(1)


def split_overrides(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits arguments at the first config key, such as SOLVER.BASE_LR, that is not a file."""
    for i, arg in enumerate(args):
        if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", arg) and not Path(arg).exists():
            return list(args[:i]), list(args[i:])
    return list(args), []


def dataset_names(cfg: CfgNode, chosen: str) -> tuple[str, ...]:
    """Returns the datasets that ``--dataset`` names: "train", "test", or a registered name.

    Raises:
        UserError: if no such dataset is registered.
    """
    splits = {"train": cfg.DATASETS.TRAIN, "test": cfg.DATASETS.TEST}
    known = [*splits, *DatasetCatalog]
    if chosen not in known:
        raise UserError(
            f'--dataset: no dataset "{chosen}"{did_you_mean(chosen, known)}; give train, test or '
            "the name of a registered one."
        )
    return tuple(splits.get(chosen, (chosen,)))
