"""Trains and evaluates RetinaNet from a YAML config: train_net.py, where only the package is.

python -m retinanet_plugin.tools.train --config-file retinanet_R50_FPN_1x.yaml --num-gpus 8
"""

from ..engine import invoke

if __name__ == "__main__":
    invoke(epilog=__doc__)
