"""The losses of a test set: against all its images as one batch of training."""

from typing import Any

import pytest
import torch
from conftest import random_image, small_config, spread_logits
from detectron2.utils import comm
from torch import nn

from retinanet_plugin.engine import Trainer
from retinanet_plugin.evaluation.validation_loss import validation_loss
from retinanet_plugin.modeling import DENSE_HEAD_REGISTRY, FocalLossHead

LOSSES = {
    "focal": (),
    "ohem": ("MODEL.RETINANET.OHEM.POSITIVE_FRACTION", 0.25),  # as many anchors as it has positives
}
Losses = dict[str, float]


def detector(loss: str, *overrides: object) -> Any:
    torch.manual_seed(1)
    keys = ("MODEL.RETINANET.CLS_LOSS", loss, *LOSSES[loss], *overrides)
    cfg = small_config(*keys)
    model = Trainer.build_model(cfg)
    spread_logits(model)
    return cfg, model


def images() -> list[dict[str, Any]]:
    """Of one size, so that a batch pads none; one of them is empty."""
    torch.manual_seed(2)
    return [random_image(96, 128, count) for count in (9, 0, 2)]


def losses_of(cfg: Any, model: nn.Module, some: list[dict[str, Any]]) -> Losses:
    model.eval()
    with validation_loss(cfg, model) as loss, torch.no_grad():
        for image in some:
            loss.process([image], model([image]))
        return loss.evaluate()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("normalizer", ["positives", "ema"])
def test_as_one_batch_of_training(loss: str, normalizer: str) -> None:
    cfg, model = detector(loss, "MODEL.RETINANET.LOSS_NORMALIZER", normalizer)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    losses = losses_of(cfg, model, images())["validation"]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not model.head._forward_hooks

    _, same = detector(loss, "MODEL.RETINANET.LOSS_NORMALIZER", "positives")
    same.train()
    for module in same.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    expected = {name: x.item() for name, x in same(images()).items()}
    assert losses == pytest.approx({"total_loss": sum(expected.values()), **expected}, rel=1e-5)


class OwnHead(nn.Module):
    """What DENSE_HEAD_REGISTRY asks of a head, and no more."""

    def __init__(self, cfg: Any, input_shape: Any) -> None:
        super().__init__()
        self.inner = FocalLossHead(cfg, input_shape)
        self.num_classes, self.num_anchors = self.inner.num_classes, self.inner.num_anchors
        self.box2box_transform = self.inner.box2box_transform
        self.class_agnostic_bbox_reg = self.inner.class_agnostic_bbox_reg
        self.losses = self.inner.losses

    def forward(self, features: list[torch.Tensor]) -> Any:
        return self.inner(features)


def test_head_of_a_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DENSE_HEAD_REGISTRY._obj_map, "OwnHead", OwnHead)
    cfg, model = detector("focal")
    expected = losses_of(cfg, model, images())
    cfg.MODEL.RETINANET.HEAD_NAME = "OwnHead"
    own = Trainer.build_model(cfg)
    weights = model.state_dict().items()
    own.load_state_dict({name.replace("head.", "head.inner."): x for name, x in weights})
    assert losses_of(cfg, own, images()) == expected


def test_none_without_ground_truth_or_where_switched_off() -> None:
    cfg, model = detector("focal")
    assert losses_of(cfg, model, [random_image(64, 64, 0)]) == {}
    unknown = random_image(64, 64, 1)
    del unknown["instances"]
    assert losses_of(cfg, model, [unknown]) == {}
    with validation_loss(cfg, nn.Linear(1, 1)) as loss:
        assert loss is None
    cfg.TEST.LOSS = False
    with validation_loss(cfg, model) as loss:
        assert loss is None


def test_workers_of_unequal_shares(monkeypatch) -> None:
    """Each counts alone, for they do not keep step; the first puts the parts together."""

    def waits_for_ever(*_: object) -> None:
        raise AssertionError("asked the other worker within an image")

    parts: list[Any] = []
    expected = losses_of(*detector("ohem"), images())["validation"]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", waits_for_ever)
    monkeypatch.setattr(
        comm, "gather", lambda part: parts.append(part) or (parts if comm.is_main_process() else [])
    )
    for rank, share in ((1, images()[:2]), (0, images()[2:])):
        monkeypatch.setattr(comm, "is_main_process", lambda rank=rank: rank == 0)
        found = losses_of(*detector("ohem"), share)
        assert bool(found) == (rank == 0)
    assert found["validation"] == pytest.approx(expected, rel=1e-5)
