"""The highest score, against the sigmoid of all logits in float64."""

import pytest
import torch
from conftest import random_picture, small_config, spread_logits
from detectron2.modeling import build_model
from torch import nn

from retinanet_plugin.evaluation.scores import highest_score


def _scores(model: nn.Module, image: dict[str, object]) -> torch.Tensor:
    """The highest of each class in one image, (7,), in float64."""
    features = model.backbone(model.preprocess_image([image]).tensor)
    logits, _ = model.head([features[name] for name in model.head_in_features])
    of_class = [x[0].double().sigmoid().view(9, 7, -1).amax((0, 2)) for x in logits]
    return torch.stack(of_class).amax(0)


@torch.no_grad()
def test_the_highest_score_below_the_threshold() -> None:
    model = build_model(small_config("MODEL.RETINANET.SCORE_THRESH_TEST", 0.99)).eval()
    spread_logits(model)
    model.head.cls_score.weight *= 0.1  # no score near 1
    images = [random_picture(96, 128, 0) for _ in range(2)]
    scores = torch.stack([_scores(model, image) for image in images]).amax(0)
    kept = scores.argsort()[:2]
    with highest_score(model) as highest, highest_score(model, kept) as of_kept:
        assert highest() is None
        detections = [model([image])[0]["instances"] for image in images]
    assert sum(map(len, detections)) == 0
    assert highest() == pytest.approx(scores.max().item())
    assert of_kept() == pytest.approx(scores[kept].max().item())
    assert of_kept() < highest()


def test_other_models() -> None:
    with highest_score(nn.Linear(1, 1)) as highest:
        assert highest() is None
