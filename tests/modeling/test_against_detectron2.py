"""FocalRetinaNet against detectron2's RetinaNet with the same weights."""

import copy

import pytest
import torch
from conftest import random_picture, small_config, spread_logits
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

SIZES = [32 * 2 ** (i / 3) for i in range(3)]


def detectron2_config(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[s * 2**i for s in SIZES] for i in range(5)]
    return cfg


def pair(*overrides: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    cfg = small_config("MODEL.RETINANET.LOSS_NORMALIZER", "ema", *overrides)
    ours, theirs = build_model(cfg), build_model(detectron2_config(cfg))
    spread_logits(theirs)
    # Batch statistics of noise, so that features do not explode in evaluation.
    theirs.train()
    with torch.no_grad():
        theirs.backbone(torch.randn(4, 3, 128, 128))
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == ["loss_normalizer"] and not unexpected
    return ours, theirs


def losses_and_gradients(model, images, steps=1):
    model.train()
    with EventStorage():
        for _ in range(steps):
            model.zero_grad()
            losses = model(copy.deepcopy(images))
            sum(losses.values()).backward()
    return losses, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


BATCHES = {
    "one box": [(128, 160, 1)],
    "unequal": [(96, 200, 5), (160, 128, 30)],
    "no box": [(128, 128, 0)],
    "some without": [(128, 128, 0), (100, 140, 12), (64, 64, 0)],
    "many": [(256, 256, 300)],
}


@pytest.mark.parametrize(
    "batch, box_loss",
    [(batch, "smooth_l1") for batch in BATCHES]
    + [("unequal", loss) for loss in ("giou", "diou", "ciou")],
)
def test_losses_and_gradients(batch: str, box_loss: str) -> None:
    ours, theirs = pair("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", box_loss)
    images = [random_picture(*shape) for shape in BATCHES[batch]]
    # Two steps, so that the moving average moves.
    losses, gradients = losses_and_gradients(ours, images, steps=2)
    expected_losses, expected_gradients = losses_and_gradients(theirs, images, steps=2)
    for name, expected in expected_losses.items():
        torch.testing.assert_close(losses[name], expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        scale = expected.abs().max().clamp(min=1e-8)
        error = (gradients[name] - expected).abs().max() / scale
        assert error < 1e-4, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("gamma, alpha", [(0.0, 0.5), (0.5, 0.5), (2.0, -1.0), (5.0, 0.25)])
def test_focal_parameters(gamma: float, alpha: float) -> None:
    keys = "MODEL.RETINANET.FOCAL_LOSS_GAMMA", gamma, "MODEL.RETINANET.FOCAL_LOSS_ALPHA", alpha
    ours, theirs = pair(*keys)
    images = [random_picture(128, 128, 8)]
    losses, _ = losses_and_gradients(ours, images)
    expected, _ = losses_and_gradients(theirs, images)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def assert_same_detections(ours, theirs, images) -> list[int]:
    ours.eval(), theirs.eval()
    with torch.no_grad():
        detections, expected = ours(images), theirs(images)
    for mine, reference in zip(detections, expected, strict=True):
        mine, reference = mine["instances"], reference["instances"]
        assert len(mine) == len(reference)
        assert mine.image_size == reference.image_size
        assert torch.equal(mine.pred_classes, reference.pred_classes)
        torch.testing.assert_close(mine.scores, reference.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            mine.pred_boxes.tensor, reference.pred_boxes.tensor, rtol=1e-5, atol=1e-3
        )
    return [len(x["instances"]) for x in detections]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 17),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.6, "MODEL.RETINANET.NMS_THRESH_TEST", 0.3),
        ("TEST.DETECTIONS_PER_IMAGE", 5),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(10.0,10.0,5.0,5.0)"),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
    ],
)
def test_detections(overrides) -> None:
    ours, theirs = pair(*overrides)
    images = [random_picture(128, 192, 0), random_picture(150, 101, 0)]
    images[1].update(height=300, width=202)  # to be detected at twice its size
    assert min(assert_same_detections(ours, theirs, images)) > 0


def test_detections_of_channels_last_outputs() -> None:
    """The decoder's path for the other memory format gives the same detections."""
    ours, _ = pair()
    ours.eval()
    with torch.no_grad():
        images = ours.preprocess_image([random_picture(128, 160, 0)])
        features = [ours.backbone(images.tensor)[f] for f in ours.head_in_features]
        predictions = ours.head(features)
        other = [[x.contiguous(memory_format=torch.channels_last) for x in p] for p in predictions]
        (detections,) = ours.forward_inference(images, features, other)
        (expected,) = ours.forward_inference(images, features, predictions)
    assert len(detections) > 0
    for field in ("scores", "pred_classes"):
        assert torch.equal(detections.get(field), expected.get(field))
    assert torch.equal(detections.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_detections_with_saturated_scores() -> None:
    """Logits above 17 all score 1.0 in float32; the order of equal scores is detectron2's."""
    ours, theirs = pair()
    for model in (ours, theirs):
        with torch.no_grad():
            model.head.cls_score.weight *= 10
            model.head.cls_score.bias.fill_(20.0)
    assert_same_detections(ours, theirs, [random_picture(160, 160, 0)])


def test_no_detection() -> None:
    ours, theirs = pair("MODEL.RETINANET.SCORE_THRESH_TEST", 1.0)
    assert assert_same_detections(ours, theirs, [random_picture(64, 64, 0)]) == [0]


def test_same_initial_weights() -> None:
    cfg = small_config()
    torch.manual_seed(5)
    ours = build_model(cfg).state_dict()
    torch.manual_seed(5)
    theirs = build_model(detectron2_config(cfg)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
