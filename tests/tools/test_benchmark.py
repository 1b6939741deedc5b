"""The benchmark command: its arithmetic, its inputs, and whole runs at a tiny size."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from retinanet_plugin import UserError
from retinanet_plugin.modeling import DetectionDecoder
from retinanet_plugin.tools.benchmark import command, comparison, measure, models, processes
from retinanet_plugin.tools.benchmark.measure import Rates, Run
from retinanet_plugin.tools.benchmark.report import duration, size

KEYS = ["MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"]
KEYS += ["MODEL.RETINANET.NUM_CLASSES", "7"]
TINY = ["--config-file", "Base-Scratch-R18.yaml", "--device", "cpu", "--boxes", "6", "--rounds"]
TINY += ["1"]


class Here(processes.Side):
    """Stands in for a worker, whose process takes seconds to start."""

    alive = True

    def __init__(self, name: str, *args: object) -> None:
        super().__init__(name)

    def call(self, method: str, *args: object) -> object:
        return getattr(self, method)(*args)

    def close(self) -> None:
        self.alive = False


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not measure the machine's rates, starts no processes, and keeps this one as it is."""
    monkeypatch.setattr(command, "measure_rates", lambda device: Rates(1e9, 2e9, 1e9, 1e9))
    monkeypatch.setattr(comparison, "Worker", Here)


def test_sides_alternate_and_failed_ones_are_left_out() -> None:
    order: list[str] = []

    def side(name: str, fails_at: int = 99) -> float | None:
        order.append(name)
        return None if len(order) == fails_at else len(order)

    times = measure.alternate({"a": partial(side, "a"), "b": partial(side, "b", 4)}, rounds=3)
    assert "".join(order) == "ababa"
    assert times == {"a": [1, 3, 5]}


@pytest.mark.parametrize("per_run, rounds", [(0.01, 15), (1.5, 8), (2.5, 4), (30.0, 3)])
def test_rounds_fit_into_the_time(per_run: float, rounds: int, monkeypatch) -> None:
    """3 to 15 rounds, the last of which ends within 12 seconds."""
    clock = SimpleNamespace(now=0.0)

    def work() -> float:
        clock.now += per_run
        return per_run

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert len(measure.alternate({"a": work})["a"]) == rounds


def test_summaries_and_ratios() -> None:
    times = measure.summary([3.0, 1.0, 10.0, 2.0])
    assert (times["median"], times["min"], times["max"]) == (2.5, 1.0, 10.0)
    medians = {"detectron2": 6.0, "torchvision": 3.0, "ours": 2.0}
    assert comparison.fractions(medians) == pytest.approx(
        {"detectron2": 1 / 3, "torchvision": 2 / 3}
    )
    assert comparison.fractions({"detectron2": 6.0}) == {}
    memory = {"before_build": 10, "before_run": 70, "peak": 100}
    assert comparison.bytes_used(memory, whole=True) == 90
    assert comparison.bytes_used(memory, whole=False) == 30
    assert measure.better(Rates(1, 5, 3, 7), Rates(2, 4, 6, 1)) == Rates(2, 5, 6, 7)


@pytest.mark.parametrize(
    "part, floor",
    [("class-loss", 10.0), ("decoding", 4.0), ("training", 3.0), ("inference-bfloat16", 0.75)],
)
def test_floors(part: str, floor: float) -> None:
    seconds = {"ours": {"median": 2 * floor}}
    result = {"part": part, "seconds": seconds, "logits": 20, "multiplications": 300}
    comparison.add_floor(result, Rates(float32=100.0, bfloat16=400.0, copy=8.0, compare=5.0))
    assert (result["floor"], result["share_of_floor"]) == (floor, 0.5)


def test_units() -> None:
    assert duration(0.968, 0.01234, 1.031) == "968 ms (12.3 to 1,031)"
    assert duration(2.5) == "2.5 s"
    assert (size(58.4e6), size(2.9e9)) == ("58 MB", "2.90 GB")


@pytest.mark.parametrize("frozen, graded", [(True, False), (True, True), (False, True)])
def test_multiplications_are_those_that_torch_counts(frozen: bool, graded: bool) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(6, 4, 1),
    )
    network[0].requires_grad_(not frozen)
    x = torch.randn(2, 3, 31, 40)

    def run() -> torch.Tensor:
        with torch.set_grad_enabled(graded):
            y = network(x)
        if graded:
            y.sum().backward()
        return y

    result, counted = measure.multiplications(network, run)
    assert result.shape == (2, 4, 13, 17)
    with FlopCounterMode(display=False) as counter:
        run()
    assert counted == counter.get_total_flops() / 2 > 0


@pytest.fixture(scope="module")
def bench() -> models.Bench:
    config = "Base-Scratch-R18.yaml"
    return models.Bench(models.Setting(config, tuple(KEYS), 150, 200, 2, 6, "cpu"))


def test_settings_know_the_shapes(bench: models.Bench) -> None:
    model, setting = bench.ours.eval(), bench.setting
    levels = model.backbone(model.preprocess_image(bench.inputs).tensor)
    features = [levels[f] for f in model.head_in_features]
    assert setting.level_shapes == [tuple(x.shape[-2:]) for x in features]
    assert setting.num_logits == sum(x.numel() for x in model.head(features)[0])
    assert setting.num_anchors == sum(map(len, model.anchor_generator(features)))


def test_detectors_share_weights_and_imitate_trained_ones(bench: models.Bench) -> None:
    ours, theirs = bench.ours.eval(), bench.detectron2.eval()
    for name, expected in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], expected), name
    with torch.no_grad():
        levels = theirs.backbone(theirs.preprocess_image(bench.inputs).tensor)
        logits, deltas = theirs.head([levels[f] for f in theirs.head_in_features])
    logits, deltas = (torch.cat([x.flatten() for x in part]) for part in (logits, deltas))
    above = (logits.sigmoid() > 0.05).float().mean().item()
    assert above == pytest.approx(models.SHARE_ABOVE, rel=0.1)
    assert logits.std().item() == pytest.approx(1, abs=0.01)
    assert deltas.std().item() == pytest.approx(0.2, abs=0.01)
    other = models.Bench(bench.setting, bench._weights)  # as in another process
    for a, b in ((other.ours, bench.ours), (other.torchvision, bench.torchvision)):
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)


def test_boxes_are_within_the_images(bench: models.Bench) -> None:
    for x in models.random_inputs(replace(bench.setting, boxes=500)):
        boxes = x["instances"].gt_boxes.tensor
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([200, 150])).all()
        sizes = boxes[:, 2:] - boxes[:, :2]
        assert sizes.min() > 15.9 and (sizes.amax(dim=0) > torch.tensor([100, 75])).all()


def test_torchvision_is_frozen_as_in_the_config() -> None:
    setting = models.Setting("retinanet_R50_FPN_1x.yaml", (), 64, 64, 1, 1, "cpu")
    model = models.build_torchvision(setting)
    frozen = {
        name
        for name, child in model.backbone.body.named_children()
        if not any(p.requires_grad for p in child.parameters())
    }
    assert frozen == {"conv1", "bn1", "relu", "maxpool", "layer1"}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_workers_do_what_sides_do(bench: models.Bench) -> None:
    folder, setting = bench._weights, bench.setting
    _ = bench.ours  # now its weights are in the folder
    side, worker = processes.Side("ours"), processes.Worker("ours", setting, 1)
    try:
        actual, _ = worker.call("start", "class-loss", setting, folder)
        expected, _ = side.start("class-loss", setting, folder)
        assert actual[0] == pytest.approx(expected[0])
        for a, b in zip(actual[1], expected[1], strict=True):
            torch.testing.assert_close(a, b)
        assert worker.call("seconds") > 0
        worker.call("finish")
        with pytest.raises(RuntimeError, match="no_such"):
            worker.call("start", "class-loss", replace(setting, config="no_such.yaml"), folder)
        sizes = worker.call("peak_memory", "labels", setting, folder)
        assert 0 < sizes["before_build"] < sizes["peak"] >= sizes["before_run"]
        worker.process.kill()
        with pytest.raises(RuntimeError, match="killed"):
            worker.call("seconds")
        assert not worker.alive
    finally:
        worker.close()


def test_a_side_that_dies_is_noted_and_started_again(monkeypatch, capsys) -> None:
    """For example because the system ends a process that needs too much memory."""
    started: list[str] = []

    class Frail(Here):
        def __init__(self, name: str, *args: object) -> None:
            super().__init__(name)
            started.append(name)

        def seconds(self) -> float:
            if self._name != "detectron2":
                return super().seconds()
            self.alive = False
            raise RuntimeError("killed")

    monkeypatch.setattr(comparison, "Worker", Frail)
    args = ["--size", "64x64", "--no-memory", "--only", "labels", "decoding", *KEYS]
    assert command.main([*TINY, *args]) == 0
    assert capsys.readouterr().out.count("detectron2 failed: killed") == 2
    assert sorted(started) == ["detectron2", "detectron2", "ours", "torchvision"]


def test_a_whole_run(tmp_path: Path, capsys, monkeypatch) -> None:
    memory = {"before_build": 10, "before_run": 70, "peak": 100}
    monkeypatch.setattr(Here, "peak_memory", lambda *args: memory)
    parts = ["class-loss", "loss", "labels", "decoding", "training", "inference"]
    parts.append("inference-bfloat16")
    args = ["--size", "96x128", "--output", str(tmp_path), "--only", *parts, *KEYS]
    assert command.main([*TINY, *args]) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "benchmark.md").read_text() in shown
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(results["parts"]) == [p if p != "labels" else "labels-6" for p in parts]
    for result in results["parts"].values():
        others = ["detectron2"] if "bfloat16" in result["part"] else ["detectron2", "torchvision"]
        assert list(result["seconds"]) == list(result["memory"]) == [*others, "ours"]
        assert list(result["times_as_fast_as"]) == list(result["memory_of"]) == others
        assert result["checks"] and all(check["agrees"] for check in result["checks"])
        assert not result["notes"]
        times = result["seconds"]
        for side, ratio in result["times_as_fast_as"].items():
            assert ratio == pytest.approx(times[side]["median"] / times["ours"]["median"])
        assert shown.count(f"| {result['title']} |") == 2
    assert results["setting"]["anchors"] == 9 * (12 * 16 + 6 * 8 + 3 * 4 + 2 * 2 + 1)
    half, float32 = (results["parts"][x]["seconds"] for x in ("inference-bfloat16", "inference"))
    ratio = float32["detectron2"]["median"] / half["ours"]["median"]
    assert results["parts"]["inference-bfloat16"]["times_as_fast_as_float32"] == ratio
    with pytest.raises(UserError, match="--output"):
        command.main([*TINY, *args])


def test_wrong_results_fail(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    right = DetectionDecoder.__call__
    monkeypatch.setattr(DetectionDecoder, "__call__", lambda *a: [x[1:] for x in right(*a)])
    args = ["--size", "160x192", "--no-memory", "--only", "decoding", *KEYS]
    assert command.main([*TINY, *args]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_what_cannot_run_is_noted(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def broken(bench: models.Bench) -> Run:
        raise RuntimeError("no compiler here")

    sides = {**comparison.PARTS["labels"].sides, "ours": broken}
    part = replace(comparison.PARTS["labels"], sides=sides)
    monkeypatch.setitem(comparison.PARTS, "labels", part)
    args = ["--size", "64x64", "--no-memory", "--only", "labels", *KEYS]
    assert command.main([*TINY, *args]) == 1
    assert "ours failed: no compiler here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, named",
    [
        (["--size", "800"], "--size"),
        (["--size", "0x64"], "--size"),
        (["--config-file", "no.yaml"], r"no\.yaml"),
        (["--device", "gpu"], r"MODEL\.DEVICE"),
        (["--only", "los"], "--only.*los"),
        (["--only", "loss", "MODEL.RETINANET.NUM_CLASES", "3"], "NUM_CLASES"),
        (["MODEL.RETINANET.NUM_CLASSES", "-1"], "NUM_CLASSES"),
    ],
)
def test_mistakes_are_named(args: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        command.main(args)
