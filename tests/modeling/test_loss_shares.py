"""Anchors and loss shares in the event storage, against dense counting."""

import pytest
import torch
from conftest import random_picture, small_config
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_head import GRIDS, A, K, dense, make_head, predictions_for, targets_for
from test_meta_arch import tiny_detector

from retinanet_plugin.losses import BinaryLoss, CrossEntropyLoss, FocalLoss, OhemLoss
from retinanet_plugin.modeling.loss_shares import PERIOD, LossShares

NAMES = {f"anchors/{x}" for x in ("positive", "ignored", "negative")} | {
    f"loss_cls_share/{x}" for x in ("positive", "negative")
}
R = sum(h * w * A for h, w in GRIDS)


@pytest.mark.parametrize(
    "loss", [FocalLoss(), CrossEntropyLoss(), OhemLoss(2 * R, 1.0)], ids=lambda x: type(x).__name__
)
def test_shares_of_twenty_steps(loss: BinaryLoss) -> None:
    """Where OHEM chooses all, its shares are those of the cross entropy, of twenty means."""
    head = make_head(cls_loss=loss, log_loss_shares=True)
    of_positives = total = 0.0
    with EventStorage() as storage:
        for step in range(2 * PERIOD):
            if step < PERIOD:
                assert not NAMES & set(storage.latest())
            if step == PERIOD:  # what was recorded counts no more
                of_positives = total = 0.0
            predictions, targets = predictions_for(head), targets_for(2)
            losses = head.losses(predictions, targets, 3.0 + step)
            storage.step()
            x = dense(predictions[0], K).detach()
            bits = torch.zeros_like(x)
            bits[targets.image, targets.anchor, targets.gt_class] = 1
            values = torch.where(bits > 0, loss.value(x, True), loss.value(x, False)).sum(2)
            values[targets.ignored_image, targets.ignored_anchor] = 0
            scale = losses["loss_cls"].item() / values.sum()
            of_positives += values[targets.image, targets.anchor].sum() * scale
            total += values.sum() * scale
    found = {name: storage.latest()[name] for name in NAMES}
    assert all(iteration == 2 * PERIOD - 1 for _, iteration in found.values())
    share = (of_positives / total).item()
    assert {k: v for k, (v, _) in found.items()} == pytest.approx(
        {
            "anchors/positive": 17 / 2,
            "anchors/ignored": 23 / 2,
            "anchors/negative": R - 20,
            "loss_cls_share/positive": share,
            "loss_cls_share/negative": 1 - share,
        },
        rel=1e-5,
    )


def test_key() -> None:
    assert build_model(small_config()).head.loss_shares is None
    model = build_model(small_config("MODEL.RETINANET.LOG_LOSS_SHARES", True))
    with EventStorage(PERIOD - 1) as storage:
        model([random_picture(64, 64, 2)])
    assert set(storage.latest()) > NAMES


def test_off_by_default_and_without_a_storage() -> None:
    head = make_head()
    with EventStorage(PERIOD - 1) as storage:
        head.losses(predictions_for(head), targets_for(2), 1.0)
    assert not NAMES & set(storage.latest())
    head = make_head(log_loss_shares=True)
    head.losses(predictions_for(head), targets_for(2), 1.0)


def test_nothing_but_ignored_anchors() -> None:
    head = make_head(cls_loss=OhemLoss(), log_loss_shares=True)
    targets = targets_for(2)
    everything = torch.arange(2 * R)
    none = targets.image[:0]
    targets = type(targets)(
        *(none, none, torch.zeros(0, 4), torch.zeros(0, 4), none),
        *(everything // R, everything % R, targets.grid),
    )
    with EventStorage(PERIOD - 1) as storage:
        losses = head.losses(predictions_for(head), targets, 1.0)
    assert losses["loss_cls"].item() == 0
    assert storage.latest()["anchors/ignored"][0] == R
    assert "loss_cls_share/positive" not in storage.latest()


def test_between_two_records_nothing_is_asked_of_the_device() -> None:
    """The meta device holds no values: whoever waits for one there, on a GPU, gets an error."""
    model = tiny_detector().to("meta")
    model.head.loss_shares = LossShares()
    with EventStorage():
        for _ in range(2):
            model([random_picture(64, 96, 4), random_picture(64, 64, 0)])
    assert model.head.loss_shares._total.device.type == "meta"
