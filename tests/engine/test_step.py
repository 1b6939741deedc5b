"""Training steps: precisions against float32, and steps that are not finite."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import random_image, small_config
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from retinanet_plugin import UserError
from retinanet_plugin.engine.amp import DTYPES, HALF_DTYPES
from retinanet_plugin.engine.step import TrainingStep, gradient_norms

NOT_FINITE = r"SOLVER\.BASE_LR: training stopped at step \d.*\.json"  # projects read the step


def step_of(dtype: torch.dtype, batches=None, **options) -> TrainingStep:
    torch.manual_seed(0)
    model = build_model(small_config("MODEL.RESNETS.NORM", "BN"))
    batches = batches or [[random_image(96, 128, 3)], [random_image(96, 96, 0)]] * 5
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    options.setdefault("output", os.devnull)  # where a report would be an error
    step = TrainingStep(model, batches, optimizer, "cpu", dtype, **options)
    step.iter = 0
    return step


def set_scale(step: TrainingStep, scale: float) -> None:
    step.grad_scaler.scale(torch.zeros(1))  # creates it
    step.grad_scaler.update(scale)


@pytest.mark.parametrize("dtype", HALF_DTYPES.values(), ids=str)
def test_steps_follow_float32(dtype: torch.dtype) -> None:
    losses = {}
    for precision in (torch.float32, dtype):
        step = step_of(precision)
        seen, used = [], []
        step.model.head.cls_score.register_forward_hook(
            lambda *args, used=used: used.append(args[-1].dtype)
        )
        with EventStorage() as storage:
            for _ in range(3):
                step.run_step()
                seen.append(storage.latest()["total_loss"][0])
        losses[precision] = torch.tensor(seen)
        assert set(used) == {precision}
        assert all(p.dtype is torch.float32 for p in step.model.parameters())
    assert not torch.equal(losses[torch.float32], losses[dtype])
    torch.testing.assert_close(losses[torch.float32], losses[dtype], rtol=0.05, atol=0)
    assert losses[dtype][0] != losses[dtype][2]  # similar images after two updates


def test_float16_lowers_its_scale_when_gradients_overflow() -> None:
    step = step_of(torch.float16)
    before = [p.clone() for p in step.model.parameters()]
    with EventStorage():
        set_scale(step, 2.0**100)
        step.run_step()
    assert all(map(torch.equal, before, step.model.parameters()))
    resumed = step_of(torch.float16)
    resumed.load_state_dict(step.state_dict())
    assert resumed.grad_scaler.get_scale() == step.grad_scaler.get_scale() < 2.0**100


def test_float16_that_overflows_without_a_scale_is_reported(tmp_path: Path) -> None:
    """The loss is finite, but no smaller scale would make the gradients finite."""
    step = step_of(torch.float16, output=tmp_path)
    step.model.head.cls_score.register_full_backward_pre_hook(
        lambda module, grads: tuple(1e30 * grad for grad in grads)
    )
    with EventStorage():
        set_scale(step, 4.0)
        step.run_step(), step.run_step()
        with pytest.raises(UserError, match=NOT_FINITE):
            step.run_step()
    report = json.loads((tmp_path / "not_finite" / "step_0000001.json").read_text())
    assert float(report["losses"]["loss_cls"]) < 1e3


@pytest.mark.parametrize(
    ("before", "after"), [("float32", "float16"), ("float16", "float16"), ("float16", "float32")]
)
def test_resume_in_any_precision(before: str, after: str) -> None:
    step, state = step_of(DTYPES[after]), step_of(DTYPES[before]).state_dict()
    step.load_state_dict(state)
    # A checkpoint of detectron2's own trainer.
    step.load_state_dict({k: v for k, v in state.items() if k not in ("grad_scaler", "skipped")})
    with EventStorage():
        step.run_step()


def batches_with_a_bad_one(bad: int, count: int) -> list[list[dict[str, object]]]:
    batches = []
    for number in range(count):
        image = {**random_image(64, 64, 2), "image_id": number, "file_name": f"{number}.jpg"}
        if number == bad:
            image["image"][0, 5, 7] = float("nan")
        batches.append([image])
    return batches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_step_that_is_not_finite_ends_training(tmp_path: Path, dtype: torch.dtype) -> None:
    step = step_of(dtype, batches_with_a_bad_one(1, 2), output=tmp_path)
    with EventStorage():
        step.run_step()
        step.iter = 1
        before = [p.clone() for p in step.model.parameters()]
        with pytest.raises(UserError, match=NOT_FINITE):
            step.run_step()
    assert all(map(torch.equal, before, step.model.parameters()))
    report = json.loads((tmp_path / "not_finite" / "step_0000002.json").read_text())
    assert (report["step"], report["learning_rate"]) == (2, 0.01)
    assert report["losses"]["loss_cls"] == "nan"
    assert report["gradient_norms"]["head.cls_score.weight"] == "nan"
    assert report["images"] == [{"image_id": 1, "file_name": "1.jpg"}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_skipped_steps_change_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    """Weights, momenta and the statistics of norms equal those of a run without the bad batch."""
    batches = batches_with_a_bad_one(1, 3)
    step = step_of(dtype, batches, output=tmp_path, max_skipped=1)
    without = step_of(dtype, [batches[0], batches[2]])
    with EventStorage():
        for step.iter in range(3):
            step.run_step()
        for _ in range(2):
            without.run_step()
    theirs = without.model.state_dict()
    for name, value in step.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert step.grad_scaler.get_scale() == without.grad_scaler.get_scale()
    assert step.state_dict()["skipped"] == 1


def test_skipped_steps_are_counted_across_a_resume(tmp_path: Path) -> None:
    bad = batches_with_a_bad_one(0, 1) * 3
    step = step_of(torch.float32, bad, output=tmp_path, max_skipped=2)
    with EventStorage():
        step.run_step()
        again = step_of(torch.float32, bad, output=tmp_path, max_skipped=2)
        again.load_state_dict(step.state_dict())
        again.run_step()
        with pytest.raises(UserError, match=NOT_FINITE):
            again.run_step()


def test_gradient_norms() -> None:
    model = torch.nn.Linear(3, 2)
    model(torch.ones(1, 3)).square().sum().backward()
    for name, norm in gradient_norms(model).items():
        expected = model.get_parameter(name).grad.double().square().sum().sqrt()
        torch.testing.assert_close(norm.double(), expected)
