"""Timing: whose turn it is, what is timed, and on which inputs."""

import time
from typing import Any

import pytest
import torch
from conftest import small_config, spread_logits
from detectron2.modeling import build_model

from retinanet_plugin.evaluation.timing import inference, noise_images, time_in_turn


@pytest.mark.parametrize("rounds", [1, 3])
def test_networks_take_turns(rounds: int) -> None:
    """Each input of each network once to warm up, and then as often as asked for."""
    order: list[tuple[str, Any]] = []

    def network(name: str, pause: float) -> Any:
        def run(image: Any) -> None:
            order.append((name, image))
            time.sleep(pause)

        return run

    networks = {"slow": network("slow", 0.02), "quick": network("quick", 0.0)}
    inputs = {"slow": ["s0", "s1"], "quick": ["q0", "q1"]}
    times = time_in_turn(networks, inputs, torch.device("cpu"), rounds)
    turn = [("slow", "s0"), ("quick", "q0"), ("slow", "s1"), ("quick", "q1")]
    assert order == turn * (1 + rounds)
    assert {name: len(t) for name, t in times.items()} == {"slow": 2 * rounds, "quick": 2 * rounds}
    assert min(times["slow"]) >= 0.02


def test_noise_is_resized_and_timed_as_evaluated() -> None:
    cfg = small_config("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96)
    images = noise_images(cfg, 100, 120, 2)
    assert [tuple(x["image"].shape) for x in images] == [(3, 64, 77)] * 2
    assert (images[0]["height"], images[0]["width"]) == (100, 120)
    assert not torch.equal(images[0]["image"], images[1]["image"])
    model = build_model(cfg).eval()
    spread_logits(model)
    with torch.no_grad():
        (expected,) = model(images[:1])
    (output,) = inference(model, cfg)(images[0])
    assert len(output["instances"]) == len(expected["instances"]) > 20
    assert torch.equal(output["instances"].scores, expected["instances"].scores)
