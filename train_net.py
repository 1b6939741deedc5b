#!/usr/bin/env python
"""Trains and evaluates RetinaNet from a YAML config, on detectron2's trainer.

    python train_net.py --config-file configs/retinanet_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/retinanet_R50_FPN_1x.yaml --eval-only \
        MODEL.WEIGHTS model_final.pth

Words at the end override keys of the config. Without a GPU it runs on the CPU.
"""

import sys

try:
    from retinanet_plugin.engine import invoke
except KeyboardInterrupt:  # PyTorch takes seconds to import
    print("stopped: nothing was begun.", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    invoke(epilog=__doc__)
