#!/usr/bin/env python
r"""Trains and evaluates RetinaNet from a YAML config, on detectron2's trainer.

    python train_net.py --config-file configs/retinanet_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/retinanet_R50_FPN_1x.yaml --eval-only \
        MODEL.WEIGHTS model_final.pth

Words at the end override keys of the config. Without a GPU it runs on the CPU.
"""

from retinanet_plugin.engine import invoke

if __name__ == "__main__":
    invoke(epilog=__doc__)
