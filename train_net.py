#!/usr/bin/env python
"""Trains and evaluates RetinaNet from a YAML config, on detectron2's trainer.

    python train_net.py --config-file configs/retinanet_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/retinanet_R50_FPN_1x.yaml --eval-only \
        MODEL.WEIGHTS model_final.pth

Words at the end override keys of the config. Without a GPU it runs on the CPU.
"""

import argparse
from typing import Any

from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from retinanet_plugin.engine import Trainer, choose_workers, prepare
from retinanet_plugin.errors import one_sentence


def main(args: argparse.Namespace) -> Any:
    """Runs in each process: trains, or with ``--eval-only`` evaluates."""
    cfg = prepare(args)
    if args.eval_only:
        results = Trainer.evaluate(cfg, resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def invoke() -> None:
    """Reads the command line and starts a process for each GPU."""
    args = default_argument_parser(epilog=__doc__).parse_args()
    with one_sentence():
        launch(
            main,
            choose_workers(args.num_gpus, args.num_machines),
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


if __name__ == "__main__":
    invoke()
