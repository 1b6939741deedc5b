#!/usr/bin/env python
r"""Trains and evaluates RetinaNet from a YAML config, on detectron2's trainer.

    python train_net.py --config-file configs/retinanet_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/retinanet_R50_FPN_1x.yaml --eval-only \
        MODEL.WEIGHTS model_final.pth

The same as ``retinanet train``.
"""

import sys

from retinanet_plugin.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
