"""Mixed precision on the CPU, where detectron2 has none."""

import pytest
import torch
from conftest import random_picture, small_config
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from retinanet_plugin.engine.amp import HALF_DTYPES, AutocastTrainer


def trainer_of(dtype: torch.dtype) -> AutocastTrainer:
    torch.manual_seed(0)
    model = build_model(small_config("MODEL.RESNETS.NORM", "BN"))
    batches = [[random_picture(128, 192, 3)], [random_picture(128, 160, 0)]] * 5
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    trainer = AutocastTrainer(model, batches, optimizer, "cpu", dtype)
    trainer.iter = 0
    return trainer


@pytest.mark.parametrize("dtype", HALF_DTYPES.values(), ids=str)
def test_steps_follow_float32(dtype: torch.dtype) -> None:
    losses = {}
    for precision in (torch.float32, dtype):
        trainer = trainer_of(precision)
        seen = []
        convolved = []
        trainer.model.head.cls_score.register_forward_hook(
            lambda *args, log=convolved: log.append(args[-1].dtype)
        )
        with EventStorage() as storage:
            for _ in range(4):
                trainer.run_step()
                seen.append(storage.latest()["total_loss"][0])
        losses[precision] = torch.tensor(seen)
        assert set(convolved) == {precision}
        assert all(p.dtype is torch.float32 for p in trainer.model.parameters())
    assert not torch.equal(losses[torch.float32], losses[dtype])
    torch.testing.assert_close(losses[torch.float32], losses[dtype], rtol=0.05, atol=0)
    assert losses[dtype][0] != losses[dtype][2]  # the same kind of picture after two updates


def test_float16_scales_its_losses_and_keeps_the_scale() -> None:
    trainer = trainer_of(torch.float16)
    with EventStorage():
        trainer.grad_scaler.scale(torch.zeros(1))  # makes the scale
        trainer.grad_scaler.update(128.0)
        trainer.run_step()
    other = trainer_of(torch.float16)
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == trainer.grad_scaler.get_scale() == 128.0


def test_float16_skips_a_step_that_overflows() -> None:
    trainer = trainer_of(torch.float16)
    before = [p.clone() for p in trainer.model.parameters()]
    with EventStorage():
        trainer.grad_scaler.scale(torch.zeros(1))
        trainer.grad_scaler.update(2.0**100)
        trainer.run_step()
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert trainer.grad_scaler.get_scale() < 2.0**100


def test_a_run_goes_on_in_another_precision() -> None:
    for before, after in ((torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)):
        state = trainer_of(before).state_dict()
        trainer = trainer_of(after)
        trainer.load_state_dict(state)
        without = {k: v for k, v in state.items() if k != "grad_scaler"}  # a float32 run's
        trainer.load_state_dict(without)
        with EventStorage():
            trainer.run_step()
