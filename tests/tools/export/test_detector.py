"""The exportable module, in eager mode, against the model: equal to the last bit."""

import numpy as np
import pytest
import torch
from conftest import small_config, spread_logits
from exported_run import blocks

from retinanet_plugin import UserError
from retinanet_plugin.engine import Trainer
from retinanet_plugin.tools.export.comparison import detect
from retinanet_plugin.tools.export.detector import ImageDetector


def build_model(*overrides: object) -> torch.nn.Module:
    torch.manual_seed(1)
    cfg = small_config("MODEL.ACCELERATION.WINOGRAD", "False", *overrides)
    model = Trainer.build_model(cfg).eval()
    spread_logits(model)
    with torch.no_grad():
        model.head.cls_score.weight *= 0.15
        model.head.bbox_pred.weight *= 0.3
    return model


def count_of_equal(model: torch.nn.Module, images: np.ndarray) -> int:
    """Asserts that detections are equal and returns their number."""
    with torch.no_grad():
        boxes, scores, classes, counts = ImageDetector(model).eval()(torch.from_numpy(images))
    expected = detect(model, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for i, one in enumerate(expected):
        count = len(one)
        assert counts[i] == count
        assert torch.equal(boxes[i, :count], one.pred_boxes.tensor)
        assert torch.equal(scores[i, :count], one.scores)
        assert torch.equal(classes[i, :count], one.pred_classes)
        assert not any(x[i, count:].any() for x in (boxes, scores, classes))
    return sum(len(one) for one in expected)


OTHER_MODEL = (
    *("MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG", "False"),
    *("MODEL.ANCHOR_GENERATOR.SCALES_PER_OCTAVE", 2, "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
)


@pytest.mark.parametrize(
    "shape, overrides",
    [((2, 64, 96), ()), ((1, 33, 130), ()), ((1, 1, 1), ()), ((2, 50, 70), OTHER_MODEL)],
)
def test_any_size_boxes_per_class_and_other_anchors(shape: tuple, overrides: tuple) -> None:
    assert count_of_equal(build_model(*overrides), blocks(*shape)) > 0


def test_more_candidates_than_a_level_and_an_image_keep() -> None:
    model = build_model("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 40, "TEST.DETECTIONS_PER_IMAGE", 25)
    assert 40 < count_of_equal(model, blocks(2, 96, 96)) <= 50


def test_boxes_outside_the_image_are_clipped_and_empty_ones_dropped() -> None:
    model = build_model()
    with torch.no_grad():
        model.head.bbox_pred.weight *= 30
    assert count_of_equal(model, blocks(2, 40, 60)) > 0
    decoded, decode = [], model.decoder
    decode.max_detections = 10**4
    model.decoder = lambda *args: [decoded.append(len(x)) or x for x in decode(*args)]
    images = torch.from_numpy(blocks(2, 40, 60)).permute(0, 3, 1, 2)
    assert sum(len(x) for x in detect(model, images)) < sum(decoded)


def test_other_models_are_refused() -> None:
    with pytest.raises(UserError, match=r"META_ARCHITECTURE: .*Linear"):
        ImageDetector(torch.nn.Linear(1, 1))
