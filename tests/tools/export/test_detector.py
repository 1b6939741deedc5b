"""The module that is exported, run as it is, against the model that it is made of."""

import numpy as np
import pytest
import torch
from conftest import small_config, spread_logits
from exported_run import blocks, grey
from retinanet_plugin.tools.export.command.checking import eager
from retinanet_plugin.tools.export.command.detector import PictureDetector

from retinanet_plugin import UserError
from retinanet_plugin.engine import Trainer


def model_of(*overrides: object, scale: float = 0.15) -> torch.nn.Module:
    torch.manual_seed(1)
    model = Trainer.build_model(
        small_config("MODEL.ACCELERATION.WINOGRAD", "False", *overrides)
    ).eval()
    spread_logits(model)
    with torch.no_grad():
        model.head.cls_score.weight *= scale
        model.head.bbox_pred.weight *= 0.3
    return model


def assert_same(
    model: torch.nn.Module, pictures: np.ndarray, given: torch.Tensor | None = None, **options: str
) -> int:
    """To the last bit; the detections there were."""
    with torch.no_grad():
        detector = PictureDetector(model, **options).eval()
        outputs = detector(torch.from_numpy(pictures) if given is None else given)
    boxes, scores, classes, counts = outputs
    expected = eager(model, pictures)
    for i, one in enumerate(expected):
        count = len(one.scores)
        assert counts[i] == count
        assert np.array_equal(boxes[i, :count].numpy(), one.boxes)
        assert np.array_equal(scores[i, :count].numpy(), one.scores)
        assert classes[i, :count].tolist() == one.classes.tolist()
        assert not any(x[i, count:].any() for x in (boxes, scores, classes))
    return sum(len(one.scores) for one in expected)


@pytest.mark.parametrize("shape", [(2, 64, 96), (1, 33, 130), (4, 7, 61), (1, 1, 1)])
def test_the_models_detections_at_any_size(shape: tuple[int, int, int]) -> None:
    assert assert_same(model_of(), blocks(*shape)) > 0


def test_nothing_found() -> None:
    model = model_of()
    model.decoder.score_thresh = 0.9999999
    assert assert_same(model, grey(2, 40, 50)) == 0


def test_more_candidates_than_a_level_may_send_on_and_than_a_picture_keeps() -> None:
    model = model_of("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 40, "TEST.DETECTIONS_PER_IMAGE", 25)
    assert 40 < assert_same(model, blocks(2, 96, 96)) <= 50


def test_one_box_a_class_and_other_anchors() -> None:
    model = model_of(
        *("MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG", "False"),
        *("MODEL.ANCHOR_GENERATOR.SCALES_PER_OCTAVE", 2, "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
    )
    assert assert_same(model, blocks(2, 50, 70)) > 0


def test_boxes_outside_the_picture_are_clipped_and_empty_ones_left_out() -> None:
    model = model_of()
    with torch.no_grad():
        model.head.bbox_pred.weight *= 30
    found = assert_same(model, blocks(2, 40, 60))
    model.decoder.max_detections = 10**4
    everything = sum(len(model.decoder(*x)[0]) for x in [_levels(model, blocks(1, 40, 60))])
    assert 0 < found and len(eager(model, blocks(1, 40, 60))[0].scores) < everything


def _levels(model, pictures):
    images = model.preprocess_image([{"image": torch.from_numpy(pictures[0].transpose(2, 0, 1))}])
    with torch.no_grad():
        features = list(model.backbone(images.tensor).values())
        logits, deltas = model.head(features)
    anchors = [x.tensor for x in model.anchor_generator(features)]
    return logits, deltas, anchors, images.image_sizes


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_other_inputs(channels: str) -> None:
    model, pictures = model_of("INPUT.FORMAT", "RGB"), blocks(2, 40, 70)
    given = torch.from_numpy(pictures if channels == "RGB" else pictures[..., ::-1].copy())
    given = given.permute(0, 3, 1, 2).float()
    assert assert_same(model, pictures, given, layout="nchw", channels=channels) > 0


def test_what_cannot_be_exported() -> None:
    with pytest.raises(UserError, match="META_ARCHITECTURE: Linear cannot be exported"):
        PictureDetector(torch.nn.Linear(1, 1))
