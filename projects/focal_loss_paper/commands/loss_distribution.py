r"""Which samples hold a trained model's loss, for several gammas: figure 4 of the paper.

    python -m projects.focal_loss_paper.commands.loss_distribution --config-file configs/quickstart.yaml \
        MODEL.WEIGHTS output/quickstart/model_final.pth

Runs the model once over a data set, at the size of pictures in the test, and writes into the folder
loss_distribution.png, .csv (the curves) and .json (the shares of the hardest). It also compares the
sum over all samples with the model's own training loss; the exit status is 1 where they differ.
Words at the end override keys of the config.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from tqdm import tqdm

from retinanet_plugin.command_line import chosen_datasets, looking_at_data, whole
from retinanet_plugin.config import get_config
from retinanet_plugin.data import ReadableDatasetMapper, check_datasets, register_own_datasets
from retinanet_plugin.engine import SafeCheckpointer, Trainer, import_code
from retinanet_plugin.engine.setup import check_names, check_weights, choose_device
from retinanet_plugin.errors import UserError, one_sentence
from retinanet_plugin.modeling import FocalRetinaNet
from retinanet_plugin.utils import output_files, write_csv, write_figure, write_json

from ..loss_distribution import PAPER_GAMMAS, LossDistribution, curves, draw, measure

_AGREE = 1e-4  # relative
_LARGEST_GAMMA = 20  # with which the loss of the easiest is still a number of float64


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = looking_at_data("loss_distribution", __doc__, split="test")
    words.add_argument("--pictures", type=whole(1), help="so many, evenly spread; default: all")
    words.add_argument("--batch-size", type=whole(1), default=1, help="pictures at a time")
    words.add_argument("--gammas", nargs="+", default=[f"{g:g}" for g in PAPER_GAMMAS])
    return words


def take_gammas(args: argparse.Namespace) -> list[float]:
    """The gammas, ascending; words behind them that are no numbers go to the config's.

    So ``--gammas 0 2 MODEL.WEIGHTS x`` is what it looks like.

    Raises:
        UserError: where there is none, or one out of range.
    """
    numbers = list(takewhile(_is_number, args.gammas))
    args.opts = [*args.gammas[len(numbers) :], *args.opts]
    gammas = sorted({float(number) for number in numbers})
    if not gammas or not 0 <= gammas[0] <= gammas[-1] <= _LARGEST_GAMMA:
        raise UserError(
            f"--gammas: {' '.join(numbers or args.gammas[:1])} given; give numbers from 0 to "
            f"{_LARGEST_GAMMA}."
        )
    return gammas


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def prepare(args: argparse.Namespace) -> CfgNode:
    """The configuration, after all that can be wrong with it was looked at.

    ``DATASETS.TEST`` becomes the data set that ``--dataset`` names.

    Raises:
        UserError: for a mistake in it.
    """
    import_code(args.imports)
    cfg = get_config(args.config_file, args.opts)
    choose_device(cfg)
    check_names(cfg)
    check_weights(cfg, training=False, resume=False)
    register_own_datasets(cfg, training=args.dataset == "train")
    cfg.DATASETS.TEST = chosen_datasets(cfg, args.dataset)
    check_datasets(cfg, training=False)
    cfg.freeze()
    return cfg


def load_model(cfg: CfgNode) -> FocalRetinaNet:
    """The trained model, as ``--eval-only`` builds it."""
    model = Trainer.build_model(cfg)
    if not isinstance(model, FocalRetinaNet):
        raise UserError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE} given; losses are looked at "
            "in FocalRetinaNet only, which loads weights of detectron2's RetinaNet too."
        )
    SafeCheckpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    return model


def load_pictures(cfg: CfgNode, most: int | None, batch_size: int) -> Any:
    """Batches of the data sets' pictures with ground truth, at the size of the test."""
    entries = [x for name in cfg.DATASETS.TEST for x in DatasetCatalog.get(name)]
    bare = next((x for x in entries if "annotations" not in x), None)
    if bare or not entries:
        raise UserError(
            f"--dataset: {', '.join(cfg.DATASETS.TEST)} has "
            f"{'no annotations' if bare else 'no pictures'}, so there is no loss to look at; give "
            "another data set."
        )
    count = min(most or len(entries), len(entries))
    mapper = ReadableDatasetMapper(
        is_train=True,
        augmentations=build_augmentation(cfg, is_train=False),
        image_format=cfg.INPUT.FORMAT,
    )
    return build_detection_test_loader(
        dataset=[entries[i * len(entries) // count] for i in range(count)],
        mapper=mapper,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for; returns the exit status."""
    args = parser().parse_intermixed_args(words)
    gammas = take_gammas(args)
    cfg = prepare(args)
    out = args.out or Path(cfg.OUTPUT_DIR) / "loss_distribution"
    files = [f"loss_distribution.{kind}" for kind in ("png", "csv", "json")]
    picture, table, numbers = output_files(out, files, overwrite=args.overwrite)
    batches = load_pictures(cfg, args.pictures, args.batch_size)
    model = load_model(cfg)
    found = measure(model, tqdm(batches, desc="pictures", unit="batch"), gammas)
    write_figure(picture, draw(found))
    write_csv(table, {name: column.tolist() for name, column in curves(found).items()})
    write_json(
        numbers,
        {
            "config": args.config_file,
            "weights": cfg.MODEL.WEIGHTS,
            "data_sets": list(cfg.DATASETS.TEST),
            **found.report(),
        },
    )
    print(found.table())
    print(f"\n{picture}\n{table}\n{numbers}")
    return 0 if say_agreement(found) else 1


def say_agreement(found: LossDistribution) -> bool:
    """Whether the sum over the samples is the model's own loss, where that is such a sum."""
    loss = found.training_loss()
    if loss is None:
        print("\nloss_cls is not compared: it chooses among the anchors.")
        return True
    agree = loss["relative_difference"] <= _AGREE
    print(
        f"\nloss_cls on these pictures: {loss['model']:.6g} by the model, "
        f"{loss['summed_over_samples']:.6g} summed over the samples; relative difference "
        f"{loss['relative_difference']:.1e}{'' if agree else ': they DIFFER'}."
    )
    return agree


if __name__ == "__main__":
    with one_sentence():
        sys.exit(main())
