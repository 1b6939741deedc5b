"""Anchors and loss shares in the event storage, against dense counting."""

from types import SimpleNamespace

import pytest
import torch
from conftest import random_image, small_config, spread_logits
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from retinanet_plugin import UserError
from retinanet_plugin.engine.loss_shares import PERIOD, LossShares
from retinanet_plugin.losses.targets import IGNORED


class Steps:
    """Runs a model as a trainer with the hook does."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.hook = LossShares(model)
        self.hook.before_train()

    def run(self, storage: EventStorage, image: dict[str, object]) -> dict[str, torch.Tensor]:
        losses = self.model([image])
        self.hook.trainer = SimpleNamespace(iter=storage.iter, storage=storage)
        self.hook.after_step()
        storage.step()
        return losses


def names(storage: EventStorage) -> set[str]:
    return {x for x in storage.latest() if x.startswith(("anchors/", "loss_cls_share/"))}


@pytest.mark.parametrize("loss", ["focal", "cross_entropy", "ohem"])
def test_shares_of_twenty_steps(loss: str) -> None:
    """OHEM is made to choose all anchors: its shares are those of the cross entropy."""
    keys = ("MODEL.RETINANET.OHEM.BATCH_SIZE", 10**6, "MODEL.RETINANET.OHEM.NMS_THRESH", 1.0)
    model = build_model(small_config("MODEL.RETINANET.CLS_LOSS", loss, *keys))
    spread_logits(model)
    logits: list[torch.Tensor] = []
    model.head.register_forward_hook(lambda _, __, out: logits.extend(out[0]))
    steps, binary = Steps(model), model.head.cls_loss.binary
    of_positives = total = positives = 0.0
    with EventStorage() as storage, torch.no_grad():
        for step in range(2 * PERIOD):
            if step == PERIOD:  # the first record is complete
                of_positives = total = positives = 0.0
            assert bool(names(storage)) == (step >= PERIOD)
            logits.clear()
            value = steps.run(storage, random_image(64, 96, 3))["loss_cls"]
            x = torch.cat([x.permute(0, 2, 3, 1).reshape(-1, 7) for x in logits])
            (label,) = model.targets.labels(1)
            bits = torch.nn.functional.one_hot(label.clamp(min=0), 7) * (label >= 0)[:, None]
            losses = binary(x, bits).sum(1) * (label != IGNORED)
            of_positives += losses[label >= 0].sum() / losses.sum() * value
            total += value
            positives += int((label >= 0).sum()) / PERIOD
    latest = {name: storage.latest()[name][0] for name in names(storage)}
    share = (of_positives / total).item()
    assert latest["loss_cls_share/positive"] == pytest.approx(share, rel=1e-5)
    assert latest["loss_cls_share/negative"] == pytest.approx(1 - share, rel=1e-5)
    assert latest["anchors/positive"] == pytest.approx(positives)
    assert sum(latest[f"anchors/{x}"] for x in ("positive", "ignored", "negative")) == len(label)


def test_nothing_chosen() -> None:
    """Without any anchor to train on there is no share of the loss."""
    model = build_model(small_config("MODEL.RETINANET.CLS_LOSS", "ohem"))
    model.head.cls_loss.choose = lambda losses, positive, anchors: torch.zeros(0).long()
    with EventStorage(PERIOD - 1) as storage:
        assert Steps(model).run(storage, random_image(64, 64, 2))["loss_cls"] == 0
    assert names(storage) == {f"anchors/{x}" for x in ("positive", "ignored", "negative")}


def test_head_without_a_class_loss() -> None:
    model = build_model(small_config())
    model.head = torch.nn.Identity()
    with pytest.raises(UserError, match=r"MODEL\.RETINANET\.LOG_LOSS_SHARES"):
        LossShares(model)


def test_the_device_is_not_waited_for() -> None:
    """The meta device has no values: reading one there, which waits on a GPU, is an error."""
    model = build_model(small_config()).to("meta")
    steps = Steps(model)
    with EventStorage() as storage:
        for _ in range(2):
            steps.run(storage, random_image(64, 96, 4))
    assert steps.hook._loss.device.type == "meta"
