"""An exported file in the place of the network, for whatever works with either."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from ..engine import SafeCheckpointer, Trainer
from ..engine.checkpoint import classes_in
from ..engine.fast import speed_up_inference
from .runtimes import Runtime, is_exported, load


class ExportedNetwork(nn.Module):
    """Takes what the test loader gives, and gives what ``FocalRetinaNet`` in eval mode does.

    Args:
        runtime: of the file.
        channels: of the pictures, "BGR" or "RGB".
        score_threshold: detections score above it, and above the file's own.
    """

    def __init__(
        self, runtime: Runtime, channels: str = "BGR", score_threshold: float = 0.0
    ) -> None:
        super().__init__()
        self.runtime, self.score_threshold = runtime, score_threshold
        self._flips = channels != runtime.info.channels

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detections of each picture, on the CPU, by falling score.

        Args:
            batched_inputs: of each picture ``image`` (3, H, W), 0 to 255, and ``height`` and
                ``width`` where the boxes are to refer to another size. Pictures of one size that
                follow one another go through together.
        """
        results: list[dict[str, Instances]] = []
        for _, group in groupby(batched_inputs, key=lambda x: x["image"].shape):
            results += self._detect(list(group))
        return results

    def _detect(self, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        pictures = np.stack([x["image"].numpy().transpose(1, 2, 0) for x in inputs])
        if self._flips:
            pictures = np.ascontiguousarray(pictures[..., ::-1])
        height, width = pictures.shape[1:3]
        results = []
        for x, boxes, scores, classes, count in zip(inputs, *self.runtime(pictures), strict=True):
            found = Instances(
                (height, width),
                pred_boxes=Boxes(torch.from_numpy(boxes[:count])),
                scores=torch.from_numpy(scores[:count]),
                pred_classes=torch.from_numpy(classes[:count]),
            )
            found = found[found.scores > self.score_threshold]
            at_size = x.get("height", height), x.get("width", width)
            results.append({"instances": detector_postprocess(found, *at_size)})
        return results


def load_network(
    cfg: CfgNode,
    *,
    runtime: str | None = None,
    classes: list[str] | None = None,
    score_threshold: float = 0.0,
) -> tuple[nn.Module, list[str] | None]:
    """What detects with ``MODEL.WEIGHTS``, in eval mode, and the classes that these name.

    Args:
        runtime: of an exported file, see :func:`runtimes.load`.
        classes: that it must have, if it names any.
        score_threshold: see :class:`ExportedNetwork`; the network has the config's.

    Raises:
        UserError: for weights that cannot be used.
    """
    weights = cfg.MODEL.WEIGHTS
    if is_exported(weights):
        network = ExportedNetwork(
            load(weights, runtime=runtime, device=cfg.MODEL.DEVICE),
            cfg.INPUT.FORMAT,
            score_threshold,
        )
        _check_classes(weights, network.runtime.info.classes, classes)
        return network, network.runtime.info.classes
    eager = Trainer.build_model(cfg)
    loaded = SafeCheckpointer(eager, complete=True, classes=classes).load(weights)
    speed_up_inference(eager, cfg)
    return eager.eval(), classes_in(loaded)
