"""All that is wrong with a data set: every picture decoded, every box looked at.

    python -m retinanet_plugin.tools.check_dataset.command --config-file my.yaml
    python -m retinanet_plugin.tools.check_dataset.command --json train.json --images pictures \
        --json val.json --images pictures --fix mended

Looks at the data sets that the config names, or at COCO JSONs, of which the first is the training
set. A table goes to the standard output; check_dataset.html (with the worst cases drawn) and
check_dataset.json (all findings) into the folder. The exit status is 1 if there are errors, 0 if
there are none, 2 for a mistake on the command line; with --fix too it tells of the set as given.
Words at the end override keys of the config, from which anchors and picture sizes come.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ...command_line import whole
from ...config import get_config
from ...data.dataset_boxes import training_scales
from ...engine import import_code
from ...engine.setup import check_names
from ...engine.user_code import add_option
from ...errors import UserError, one_sentence
from ...evaluation.anchor_coverage import Anchors, positive_threshold
from ...utils import output_files, write_json, write_text
from .boxes import AnchorRule
from .check import check
from .entries import Source, sources_of, sources_of_files
from .fix import copies_of, mend, write_mended
from .page import html
from .table import report, terminal

_DEFAULT_CONFIG = "Base-RetinaNet.yaml"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m retinanet_plugin.tools.check_dataset.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "--config-file", help=f"file or shipped name; default with --json: {_DEFAULT_CONFIG}"
    )
    words.add_argument("--json", action="append", default=[], metavar="FILE", help="COCO JSON")
    words.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="FOLDER",
        help="of the pictures of each --json, or of all of them",
    )
    words.add_argument(
        "--fix", type=Path, metavar="FOLDER", help="write mended copies of the JSONs there"
    )
    words.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: OUTPUT_DIR/check_dataset"
    )
    words.add_argument("--overwrite", action="store_true", help="replace what is there")
    words.add_argument(
        "--workers",
        type=whole(1),
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4,
        metavar="N",
        help="pictures decoded at a time; default: the processor's cores (%(default)s)",
    )
    add_option(words)
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of the config")
    return words


def prepare(args: argparse.Namespace) -> tuple[CfgNode, list[Source]]:
    """The configuration and the data sets.

    Raises:
        UserError: for a mistake in either.
    """
    import_code(args.imports)
    if bool(args.json) != bool(args.images):
        raise UserError(
            "--json and --images go together: a COCO JSON and the folder of its pictures."
        )
    if not args.json and not args.config_file:
        raise UserError("nothing to check: give --config-file, or --json FILE and --images FOLDER.")
    cfg = get_config(args.config_file or _DEFAULT_CONFIG, args.opts)
    check_names(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RETINANET.NUM_CLASSES = 1  # whatever the config says: anchors have no class
    sources = sources_of_files(args.json, args.images) if args.json else sources_of(cfg)
    return cfg, sources


def anchor_rule(cfg: CfgNode) -> AnchorRule:
    """What the config's assigner asks of a box."""
    retinanet = cfg.MODEL.RETINANET
    return AnchorRule(
        Anchors.of(cfg),
        training_scales(cfg),
        float(retinanet.IOU_THRESHOLDS[0]),
        positive_threshold(cfg),
        retinanet.ALLOW_LOW_QUALITY_MATCHES,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Checks what the command line asks for; returns the exit status."""
    args = parser().parse_intermixed_args(words)
    cfg, sources = prepare(args)
    out = args.out or Path(cfg.OUTPUT_DIR) / "check_dataset"
    page, listed = output_files(
        out, ["check_dataset.html", "check_dataset.json"], overwrite=args.overwrite
    )
    copies = copies_of(sources, args.fix, overwrite=args.overwrite) if args.fix else []
    checked = check(sources, anchor_rule(cfg), args.workers)
    write_text(page, html(checked))
    write_json(listed, report(checked))
    print(terminal(checked))
    print(f"{page}\n{listed}")
    if args.fix:
        print(write_mended(mend(checked), copies))
    return int(checked.count("error") > 0)


if __name__ == "__main__":
    with one_sentence("nothing was written, and no file was changed; run it again"):
        sys.exit(main())
