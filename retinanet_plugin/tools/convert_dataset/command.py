"""A data set in COCO JSON, Pascal VOC, YOLO or CSV becomes COCO JSON, split and ready to train on.

    python -m retinanet_plugin.tools.convert_dataset.command /data/cars cars
    python -m retinanet_plugin.tools.convert_dataset.command boxes.csv cars --classes classes.csv --val 0.1
    python -m retinanet_plugin.tools.convert_dataset.command VOC2007 voc --format voc --fix

INPUT is a folder, or a COCO JSON, a data.yaml, a CSV or an XML; docs/data-formats.md has the
layouts. OUT gets train.json, val.json (test.json where the set has one) and config.yaml. A split
that the set has is kept; else pictures are split so that classes keep their shares. Pictures stay
where they are, unless --copy.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...command_line import whole
from ...config import find_config, get_config
from ...config_file import shipped_configs
from ...errors import UserError, one_sentence, printable
from ...utils import output_files, write_text
from . import KINDS, LabelledSet, Options, read_set
from .files import absolute
from .reading import recognise
from .ready_config import ready_config
from .split import stratified

_PROG = "python -m retinanet_plugin.tools.convert_dataset.command"
_CONFIG = "config.yaml"
_PICTURES = "pictures"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog=_PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("input", type=Path, metavar="INPUT")
    words.add_argument("out", type=Path, metavar="OUT", help="folder, made where it is absent")
    words.add_argument("--format", choices=("auto", *KINDS), default="auto")
    words.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures")
    words.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="classes and their order: a name a line, a .csv of name,index, or a .yaml with names",
    )
    words.add_argument(
        "--val", type=_share, default=0.2, help="share of pictures to validate on; default: 0.2"
    )
    words.add_argument("--seed", type=whole(0), default=1, help="of the split; default: 1")
    words.add_argument("--resplit", action="store_true", help="split anew a set that has a split")
    words.add_argument(
        "--fix",
        action="store_true",
        help="clip boxes to their picture, drop empty ones, leave out pictures that are absent or "
        "unreadable; all are counted",
    )
    words.add_argument(
        "--zero-based", action="store_true", help="VOC's pixels were counted from 0, not from 1"
    )
    words.add_argument("--copy", action="store_true", help="copy pictures into OUT/pictures")
    words.add_argument(
        "--base",
        default="Base-Scratch-R18.yaml",
        metavar="CONFIG",
        help="that OUT/config.yaml builds on; default: Base-Scratch-R18.yaml, random weights",
    )
    words.add_argument("--overwrite", action="store_true", help="replace what is there")
    return words


def _share(word: str) -> float:
    try:
        share = float(word)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{word!r} given; give a share from 0 to below 1")
    return share


def split_ids(found: LabelledSet, share: float, seed: int) -> dict[str, list[int]]:
    """Ids of the pictures to train and to validate on, anew; without ``share`` all are trained on.

    Raises:
        UserError: where there is but one picture to share out.
    """
    ids = np.array([row["id"] for row in found.content["images"]])
    if share == 0:
        return {"train": ids.tolist()}
    if len(ids) < 2:
        raise UserError("--val: only one picture, which cannot be split; give --val 0")
    row_of = {number: i for i, number in enumerate(ids.tolist())}
    column_of = {row["id"]: i for i, row in enumerate(found.content["categories"])}
    counts = np.zeros((len(row_of), len(column_of)), dtype=np.int64)
    for box in found.content["annotations"]:
        counts[row_of[box["image_id"]], column_of[box["category_id"]]] += 1
    val = stratified(counts, share, seed)
    return {"train": ids[~val].tolist(), "val": ids[val].tolist()}


def copy_pictures(found: LabelledSet, target: Path) -> None:
    """Into ``target``, under the names that the JSONs have; those that are there already stay."""
    names = [row["file_name"] for row in found.content["images"]]
    for name in tqdm(names, desc="copying", unit="picture"):
        source, place = found.images / name, target / name
        if place.is_file() and place.stat().st_size == source.stat().st_size:
            continue
        if place.exists():
            raise UserError(f"--copy: {place} is there and differs from {source}; give another OUT")
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        try:
            shutil.copy2(source, part)
            part.replace(place)
        except OSError as error:
            raise UserError(f"--copy: {place} cannot be written ({error.strerror})") from None
        finally:
            part.unlink(missing_ok=True)


def base_name(given: str, out: Path) -> str:
    """How ``OUT/config.yaml`` names the config that ``--base`` gives, wherever it is read from."""
    path, shipped = find_config(given).resolve(), shipped_configs().resolve()
    if path.is_relative_to(shipped):
        return path.relative_to(shipped).as_posix()
    return Path(os.path.relpath(path, out.resolve())).as_posix()


def table(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Boxes of each class in each split, in Markdown."""
    yield f"| class | {' | '.join(parts)} | {' | '.join(f'{x} %' for x in parts)} |"
    yield f"| --- |{' ---: |' * 2 * len(parts)}"
    counted = {split: _counts(content) for split, content in parts.items()}
    rows = next(iter(parts.values()))["categories"]
    for row in sorted(rows, key=lambda row: row["id"]):
        numbers = [counted[split].get(row["id"], 0) for split in parts]
        yield _table_row(printable(row["name"], 60), numbers)
    yield _table_row("all boxes", [len(content["annotations"]) for content in parts.values()])
    yield _table_row("pictures", [len(content["images"]) for content in parts.values()])
    empty = [
        len(content["images"]) - len({box["image_id"] for box in content["annotations"]})
        for content in parts.values()
    ]
    yield _table_row("of them empty", empty)


def _counts(content: Mapping[str, Any]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for box in content["annotations"]:
        counts[box["category_id"]] = counts.get(box["category_id"], 0) + 1
    return counts


def _table_row(name: str, numbers: Sequence[int]) -> str:
    total = max(sum(numbers), 1)
    shares = [f"{number / total:.1%}".removesuffix("%") for number in numbers]
    name = name.replace("|", "\\|")
    return f"| {name} | {' | '.join(map(str, numbers))} | {' | '.join(shares)} |"


def main(words: Sequence[str] | None = None) -> None:
    """Converts what the command line names."""
    args = parser().parse_args(words)
    source, out = absolute(args.input), absolute(args.out)
    base = get_config(args.base)  # refuses what is none before anything is read
    if out.exists():  # refused before anything is read, which takes time
        output_files(out, [_CONFIG], overwrite=args.overwrite, option="OUT")
    kind = None if args.format == "auto" else args.format
    if kind is None and source.exists():
        kind = recognise(source)
        print(f"format: {kind}, recognised from the files of {source}")
    options = Options(
        args.images,
        args.classes,
        fix=args.fix,
        zero_based=args.zero_based,
        track=lambda rows: tqdm(rows, desc="reading", unit="", leave=False),
    )
    found = read_set(source, kind, options)
    for note in found.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    splits = choose_splits(found, args)
    parts = {split: found.part(ids, split) for split, ids in splits.items()}
    for split, content in parts.items():
        if not content["images"] or (split == "train" and not content["annotations"]):
            raise UserError(
                f"{split}: has no {'boxes' if content['images'] else 'pictures'}; give --resplit "
                "to split anew, or another --val"
            )
    files = output_files(
        out,
        [f"{split}.json" for split in parts] + [_CONFIG],
        overwrite=args.overwrite,
        option="OUT",
    )
    images = found.images
    if args.copy:
        images = out / _PICTURES
        copy_pictures(found, images)
    for file, content in zip(files, parts.values(), strict=False):
        write_text(file, json.dumps(content))
    write_text(files[-1], ready_config(parts, out, images, base_name(args.base, out), base))
    print("\n".join(table(parts)))
    for file in files:
        print(file)
    print(f"pictures: {images}")
    print(_next_commands(files[-1]))


def choose_splits(found: LabelledSet, args: argparse.Namespace) -> dict[str, list[int]]:
    """The set's own split where it has one to train on and one more; else a new one."""
    kept = found.splits if "train" in found.splits and len(found.splits) > 1 else {}
    if not kept or args.resplit:
        print(f"split: anew, seed {args.seed}, {args.val:.0%} of the pictures to validate on")
        return split_ids(found, args.val, args.seed)
    print(f"split: the set's own ({', '.join(kept)}), kept; --resplit makes another")
    given = [set(ids) for ids in kept.values()]
    left_out = len(found.content["images"]) - len(set.union(*given))
    twice = sum(map(len, given)) - len(set.union(*given))
    if left_out:
        print(f"note: {left_out} pictures are in no split: left out", file=sys.stderr)
    if twice:
        print(f"note: {twice} pictures are in several splits: AP will flatter", file=sys.stderr)
    return kept


def _next_commands(config: Path) -> str:
    shown = shlex.quote(str(config))
    return "\n".join(
        [
            "next:",
            f"  python -m retinanet_plugin.tools.check_dataset.command --config-file {shown}",
            f"  python -m retinanet_plugin.tools.anchors.command --config-file {shown}",
            f"  python -m retinanet_plugin.tools.train.command --config-file {shown}",
        ]
    )


if __name__ == "__main__":
    with one_sentence("files in OUT are whole; run it again, with --overwrite if there are any"):
        main()
