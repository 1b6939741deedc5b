r"""Milliseconds a picture and AP of several models, beside the paper's figure 2.

    python -m projects.focal_loss_paper.commands.speed_accuracy output/quickstart
    python -m projects.focal_loss_paper.commands.speed_accuracy output/bccd_R18_FPN/ \
        retinanet_R50_FPN_1x.yaml=r50.pth --evaluate --out figures
    python -m projects.focal_loss_paper.commands.speed_accuracy --size 480x640 \
        e_speed/R50_400.yaml e_speed/R50_800.yaml TEST.DTYPE bfloat16

A model is a config (a file or the name of a shipped one), CONFIG=WEIGHTS, whose weights may be a
file of tools.export, or the folder of a run, whose AP is read from its metrics.json. All are
timed in turn, as train_net.py --eval-only runs them: warm, one picture at a time, from the
resized picture in memory to its detections. A table in Markdown goes to the standard output,
speed_accuracy.png and .json into the folder. Words at the end override keys of all configs; where
they change what is evaluated, a run's AP is left out.
"""

import argparse
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from tqdm import tqdm

from retinanet_plugin.acceleration.memory import keep_freed_memory
from retinanet_plugin.command_line import whole
from retinanet_plugin.data import check_datasets, register_own_datasets
from retinanet_plugin.engine import import_code
from retinanet_plugin.engine.setup import check_names, choose_device
from retinanet_plugin.engine.user_code import add_option
from retinanet_plugin.errors import UserError, one_sentence
from retinanet_plugin.evaluation.timing import (
    describe_machine,
    inference,
    load_images,
    median_shape,
    noise_images,
    time_in_turn,
)
from retinanet_plugin.utils import output_files, write_figure, write_json

from ..speed_report import draw, markdown, report
from ..subjects import (
    Measured,
    Picture,
    Subject,
    build_subject,
    evaluate,
    parse_size,
    read_subject,
    with_unique_names,
)

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m projects.focal_loss_paper.commands.speed_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("words", nargs="+", metavar="MODEL", help="and then KEY VALUE of configs")
    words.add_argument("--pictures", type=whole(1), default=10, help="of the data set; default: 10")
    words.add_argument("--rounds", type=whole(1), default=3, help="runs of each; default: 3")
    words.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="time on noise of that size instead, resized as each config says",
    )
    words.add_argument(
        "--evaluate", action="store_true", help="evaluate what has weights, on DATASETS.TEST"
    )
    words.add_argument("--threads", type=whole(1), help="of the CPU; default: torch's choice")
    words.add_argument("--out", type=Path, default=Path("output/speed_accuracy"), metavar="FOLDER")
    words.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_option(words)
    return words


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models, and from the first key on what overrides their configs."""
    for i, word in enumerate(words):
        if _KEY.fullmatch(word) and not Path(word).exists():
            return list(words[:i]), list(words[i:])
    return list(words), []


def prepare(args: argparse.Namespace) -> list[Subject]:
    """The models, each looked at as far as that is possible without building it.

    Raises:
        UserError: for a mistake on the command line or in a config.
    """
    models, overrides = split_words(args.words)
    if not models:
        raise UserError("no model given; give a config, CONFIG=WEIGHTS, or the folder of a run.")
    # One device for all, whatever a run's config.yaml says: a GPU where there is one.
    overrides = ["MODEL.DEVICE", "cuda", *overrides]
    subjects = [read_subject(word, overrides) for word in models]
    for subject in subjects:
        choose_device(subject.cfg)
        check_names(subject.cfg)
        if args.evaluate and not subject.cfg.MODEL.WEIGHTS:
            raise UserError(
                f"--evaluate: {subject.name} has no weights; give CONFIG=WEIGHTS or a run's folder."
            )
    subjects = with_unique_names(subjects)
    for subject in subjects:  # now, and not after minutes of building and evaluating others
        register_data(subject, args)
    return subjects


def register_data(subject: Subject, args: argparse.Namespace) -> None:
    """Makes the model's data set known, where it is needed; sets of one's own share their names.

    Raises:
        UserError: where it is not at hand.
    """
    cfg = subject.cfg
    if not args.size or args.evaluate:
        try:
            register_own_datasets(cfg, training=False)
            check_datasets(cfg, training=False)
        except UserError as error:
            hint = "" if args.size else "; or give --size 480x640 to time it on noise"
            raise UserError(f"{subject.name}: {str(error).rstrip('.')}{hint}.") from None
    elif cfg.MODEL.RETINANET.NUM_CLASSES < 1:
        raise UserError(
            f"{subject.name}: its number of classes is that of its data set, which --size leaves "
            "alone; give MODEL.RETINANET.NUM_CLASSES at the end of the command."
        )


def load(subject: Subject, args: argparse.Namespace) -> list[Picture]:
    """The model's own pictures, or noise."""
    register_data(subject, args)
    if not args.size:
        return load_images(subject.cfg, subject.dataset, args.pictures)
    height, width = args.size
    return noise_images(subject.cfg, height, width, args.pictures)


def measure(args: argparse.Namespace, subjects: Sequence[Subject]) -> Iterator[Measured]:
    """Builds all, evaluates where that is asked for, and then times them in turn."""
    built, pictures, metrics = {}, {}, {}
    for subject in subjects:
        name = subject.name
        print(f"building {name}", file=sys.stderr, flush=True)
        pictures[name] = load(subject, args)
        built[name] = build_subject(subject, pictures[name])
    for subject in subjects if args.evaluate else ():  # only now: a checkpoint may be broken
        name = subject.name
        register_data(subject, args)
        folder = args.out / re.sub(r"[^\w.=-]+", "_", name)
        with redirect_stdout(sys.stderr):  # COCO's own tables are not ours
            metrics[name] = evaluate(subject, built[name], folder)
    models = {subject.name: inference(built[subject.name], subject.cfg) for subject in subjects}
    count = min(map(len, pictures.values()))
    pictures = {name: own[:count] for name, own in pictures.items()}
    device = torch.device(subjects[0].cfg.MODEL.DEVICE)
    total = len(subjects) * count * (1 + args.rounds)
    with tqdm(total=total, desc="timing", unit="run") as bar:
        times = time_in_turn(models, pictures, device, args.rounds, bar.update)
    for subject in subjects:
        name = subject.name
        known = metrics.get(name, subject.metrics)
        source = "evaluation" if name in metrics else "metrics.json" if known else ""
        shape = median_shape(pictures[name])
        timed_on = "noise" if args.size else subject.dataset
        yield Measured(subject, timed_on, shape, times[name], known, source)


def main(words: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for."""
    args = parser().parse_intermixed_args(words)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    import_code(args.imports)
    subjects = prepare(args)
    keep_freed_memory(subjects[0].cfg)
    files = ["speed_accuracy.png", "speed_accuracy.json"]
    picture, numbers = output_files(args.out, files, overwrite=args.overwrite)
    results = list(measure(args, subjects))
    machine = describe_machine(subjects[0].cfg.MODEL.DEVICE, torch.get_num_threads())
    write_figure(picture, draw(results, machine))
    write_json(numbers, report(results, machine))
    print(markdown(results, machine))
    print(f"{picture}\n{numbers}")


if __name__ == "__main__":
    with one_sentence("neither table nor figure was written; run it again"):
        logging.basicConfig(format="%(message)s")
        logging.getLogger("detectron2.evaluation").setLevel(logging.INFO)  # the time left
        main()
