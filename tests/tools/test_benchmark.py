"""The benchmark command: its arithmetic, its inputs, and a whole run at a tiny size."""

import importlib.util
import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toy_onnx import write_toy

from retinanet_plugin import UserError
from retinanet_plugin.engine import Trainer
from retinanet_plugin.modeling import DetectionDecoder
from retinanet_plugin.runtimes.exported_files import ONNX_RUNTIMES
from retinanet_plugin.tools.benchmark import command, compare, measure, models, workers
from retinanet_plugin.tools.benchmark.measure import Rates, Run
from retinanet_plugin.tools.benchmark.units import duration, size

KEYS = ["MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"]
KEYS += ["MODEL.RETINANET.NUM_CLASSES", "7"]
TINY = ["--config", "Base-Scratch-R18.yaml", "--device", "cpu", "--boxes", "6", "--rounds", "1"]
CPU = torch.device("cpu")


def tiny(height: int = 160, width: int = 192, batch: int = 1) -> models.Setting:
    return models.Setting("Base-Scratch-R18.yaml", tuple(KEYS), height, width, batch, 6, "cpu")


class Here(workers.Side):
    """In place of another process, which takes seconds to start."""

    alive = True

    def __init__(self, name: str, setting: models.Setting, threads: int) -> None:
        super().__init__(name)

    def close(self) -> None:
        self.alive = False


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measuring of the machine's rates, no processes, and this one's memory as it was."""
    monkeypatch.setattr(command, "measure_rates", lambda device: Rates(1e9, 2e9, 1e9, 1e9))
    monkeypatch.setattr(compare, "Worker", Here)
    monkeypatch.setattr(workers, "keep_freed_memory", lambda cfg: False)


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str, fails_at: int = 99) -> float | None:
        order.append(name)
        return None if len(order) == fails_at else len(order)

    times = measure.alternate({"a": partial(side, "a"), "b": partial(side, "b")}, rounds=3)
    assert "".join(order) == "ababab"
    assert times == {"a": [1, 3, 5], "b": [2, 4, 6]}
    order.clear()
    times = measure.alternate({"a": partial(side, "a"), "b": partial(side, "b", 4)}, rounds=3)
    assert "".join(order) == "ababa"
    assert times == {"a": [1, 3, 5]}


def test_what_prepares_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)

    def pass_time(seconds: float) -> float:
        clock.now += seconds
        return 2 * seconds

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert measure.seconds(Run(pass_time, prepare=lambda: pass_time(3.0)), CPU) == 6.0


@pytest.mark.parametrize("a_run, rounds", [(0.01, 15), (1.5, 8), (2.5, 4), (30.0, 3)])
def test_rounds_end_in_time(a_run: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 to 15 rounds, the last of which ends within 12 seconds."""
    clock = SimpleNamespace(now=0.0)

    def work() -> float:
        clock.now += a_run
        return a_run

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert len(measure.alternate({"a": work})["a"]) == rounds


def test_summary_is_the_median_and_the_spread() -> None:
    found = measure.summary([3.0, 1.0, 10.0, 2.0])
    assert (found["median"], found["min"], found["max"]) == (2.5, 1.0, 10.0)


def test_ratios() -> None:
    medians = {"detectron2": 6.0, "torchvision": 3.0, "ours": 2.0}
    assert compare.ratios(medians) == pytest.approx({"detectron2": 3.0, "torchvision": 1.5})
    assert compare.fractions(medians) == pytest.approx({"detectron2": 1 / 3, "torchvision": 2 / 3})
    assert compare.ratios({"detectron2": 6.0}) == {}


def test_half_precision_is_compared_with_float32_too() -> None:
    float32 = {"part": "inference", "seconds": {"detectron2": {"median": 9.0}}}
    half = {"part": "inference-bfloat16", "seconds": {"ours": {"median": 2.0}}}
    for result in (half, float32):
        compare.add_float32_ratio(result, {"inference": float32})
    assert half["times_as_fast_as_float32"] == 4.5
    assert "times_as_fast_as_float32" not in float32


def test_floors() -> None:
    rates = Rates(float32=100.0, bfloat16=400.0, copy=8.0, compare=5.0)
    expected = {"class-loss": 10.0, "decoding": 4.0, "training": 3.0, "inference-bfloat16": 0.75}
    for part, floor in expected.items():
        seconds = {"ours": {"median": 2 * floor}}
        result = {"part": part, "seconds": seconds, "logits": 20, "multiplications": 300}
        compare.add_floor(result, rates)
        assert (result["floor"], result["share_of_floor"]) == (floor, 0.5)


def test_memory_counts_the_detector_where_the_whole_step_is_measured() -> None:
    memory = {"before_build": 10, "before_run": 70, "peak": 100}
    assert compare.used(memory, whole=True) == 90
    assert compare.used(memory, whole=False) == 30


def test_better_rates() -> None:
    assert measure.better(Rates(1, 5, 3, 7), Rates(2, 4, 6, 1)) == Rates(2, 5, 6, 7)


def test_numbers_for_people() -> None:
    assert duration(0.01234, 0.0119, 0.02) == "12.3 ms (11.9 to 20)"
    assert duration(0.968, 0.9, 1.031) == "968 ms (900 to 1,031)"
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

    def run() -> None:
        with torch.set_grad_enabled(graded):
            y = network(x)
        if graded:
            y.sum().backward()

    counted = measure.multiplications(network, run)
    with FlopCounterMode(display=False) as counter:
        run()
    assert counted == counter.get_total_flops() / 2 > 0


@pytest.fixture(scope="module")
def bench() -> models.Bench:
    return models.Bench(tiny(150, 200, batch=2))


def test_setting_knows_the_shapes(bench: models.Bench) -> None:
    model, setting = bench.ours.eval(), bench.setting
    levels = model.backbone(model.preprocess_image(bench.pictures).tensor)
    shapes = [tuple(levels[f].shape[-2:]) for f in model.head_in_features]
    assert setting.level_shapes == shapes
    logits, _ = model.head([levels[f] for f in model.head_in_features])
    assert setting.num_logits == sum(x.numel() for x in logits)
    anchors = model.anchor_generator([levels[f] for f in model.head_in_features])
    assert setting.num_anchors == sum(map(len, anchors))


def test_detectors_share_weights_and_imitate_trained_ones(bench: models.Bench) -> None:
    ours, theirs = bench.ours.eval(), bench.detectron2.eval()
    for name, expected in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], expected), name
    with torch.no_grad():
        levels = theirs.backbone(theirs.preprocess_image(bench.pictures).tensor)
        logits, deltas = theirs.head([levels[f] for f in theirs.head_in_features])
    logits, deltas = (torch.cat([x.flatten() for x in part]) for part in (logits, deltas))
    above = (logits.sigmoid() > 0.05).float().mean().item()
    assert above == pytest.approx(models.SHARE_ABOVE, rel=0.1)
    assert logits.std().item() == pytest.approx(1, abs=0.01)
    assert deltas.std().item() == pytest.approx(0.2, abs=0.01)


def test_another_process_loads_the_same_weights(bench: models.Bench) -> None:
    other = models.Bench(bench.setting, bench._weights)
    for ours, theirs in ((other.ours, bench.ours), (other.torchvision, bench.torchvision)):
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_boxes_lie_within_the_pictures(bench: models.Bench) -> None:
    for picture in models.random_pictures(replace(bench.setting, boxes=500)):
        boxes = picture["instances"].gt_boxes.tensor
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([200, 150])).all()
        sizes = boxes[:, 2:] - boxes[:, :2]
        assert sizes.min() > 15.9 and (sizes.amax(dim=0) > torch.tensor([100, 75])).all()


def test_torchvision_is_frozen_as_the_config_says() -> None:
    model = models.build_torchvision(
        models.Setting("retinanet_R50_FPN_1x.yaml", (), 64, 64, 1, 1, "cpu")
    )
    body = model.backbone.body
    frozen = {
        n
        for n, child in body.named_children()
        if not any(p.requires_grad for p in child.parameters())
    }
    assert frozen == {"conv1", "bn1", "relu", "maxpool", "layer1"}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_a_worker_is_a_side_in_another_process(bench: models.Bench) -> None:
    folder, setting = bench._weights, bench.setting
    _ = bench.ours  # its weights are in the folder then
    here, worker = workers.Side("ours"), workers.Worker("ours", setting, 1)
    try:
        found, expected = (x.start("class-loss", setting, folder)[0] for x in (worker, here))
        assert found[0] == pytest.approx(expected[0])
        for a, b in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(a, b)
        assert worker.seconds() > 0
        worker.finish()
        with pytest.raises(RuntimeError, match="no_such"):
            worker.start("class-loss", replace(setting, config="no_such.yaml"), folder)
        assert worker.alive and worker.start("labels", setting, folder)[1] == 0
        assert worker._process.pid is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="its process ended, status -9"):
            worker.seconds()
        assert not worker.alive
    finally:
        worker.close()


def test_freed_memory_is_kept_for_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(
        workers,
        "keep_freed_memory",
        lambda cfg: kept.append(cfg.MODEL.ACCELERATION.KEEP_FREED_MEMORY),
    )
    setting = tiny()
    without = replace(setting, overrides=(*KEYS, "MODEL.ACCELERATION.KEEP_FREED_MEMORY", "False"))
    for side in compare.SIDES:
        workers.prepare_process(side, setting)
        workers.prepare_process(side, without)
    assert kept == [True, False]


def test_a_side_that_fails_while_it_is_timed_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the system ends a process that takes too much memory; the others go on."""
    started: list[str] = []

    class Frail(Here):
        def __init__(self, name: str, setting: models.Setting, threads: int) -> None:
            super().__init__(name, setting, threads)
            started.append(name)

        def seconds(self) -> float:
            if self._name != "detectron2":
                return super().seconds()
            self.alive = False
            raise MemoryError

    monkeypatch.setattr(compare, "Worker", Frail)
    words = [*TINY, "--size", "64x64", "--no-memory", "--only", "labels", "decoding"]
    assert command.main([*words, "--", *KEYS]) == 0
    shown = capsys.readouterr().out
    assert shown.count("detectron2 cannot run: MemoryError") == 2
    assert sorted(started) == ["detectron2", "detectron2", "ours", "torchvision"]


def run_probes_here(words: list[str], **_: Any) -> SimpleNamespace:
    """In place of another process: the same command line in this one."""
    assert words[1:3] == ["-m", "retinanet_plugin.tools.benchmark"]
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "print", seen.append, raising=False)
        status = command.main(words[3:])
    return SimpleNamespace(returncode=status, stdout="\n".join(seen), stderr="")


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "numbers.json", tmp_path / "bars.png"
    parts = ["class-loss", "loss", "labels", "decoding", "training", "inference"]
    parts.append("inference-bfloat16")
    words = [*TINY, "--size", "96x128", "--json", str(path), "--plot", str(picture)]
    status = command.main([*words, "--no-memory", "--only", *parts, "--", *KEYS])
    shown = capsys.readouterr()
    assert status == 0, shown.out
    results = json.loads(path.read_text())
    assert list(results["parts"]) == [p if p != "labels" else "labels-6" for p in parts]
    for result in results["parts"].values():
        others = ["detectron2"] if "bfloat16" in result["part"] else ["detectron2", "torchvision"]
        assert list(result["seconds"]) == [*others, "ours"]
        assert list(result["times_as_fast_as"]) == others
        assert result["checks"] and all(check["agrees"] for check in result["checks"])
        assert not result["notes"]
        for side, ratio in result["times_as_fast_as"].items():
            times = result["seconds"]
            assert ratio == pytest.approx(times[side]["median"] / times["ours"]["median"])
        assert f"| {result['title']} |" in shown.out
    assert results["setting"]["anchors"] == 9 * (12 * 16 + 6 * 8 + 3 * 4 + 2 * 2 + 1)
    assert results["parts"]["inference-bfloat16"]["times_as_fast_as_float32"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_memory_is_measured_by_other_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(run=run_probes_here))
    path = tmp_path / "numbers.json"
    words = [*TINY, "--size", "64x96", "--batch", "2", "--json", str(path), "--only", "labels"]
    assert command.main([*words, "--", *KEYS]) == 0
    result = json.loads(path.read_text())["parts"]["labels-6"]
    assert list(result["memory"]) == ["detectron2", "torchvision", "ours"]
    assert result["memory_of"] == pytest.approx(compare.fractions(result["memory"]))
    assert not result["notes"]
    assert "| memory at the peak |" in capsys.readouterr().out


def test_a_process_that_fails_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = SimpleNamespace(returncode=-9, stdout="", stderr="")
    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(run=lambda *_, **__: killed))
    words = [*TINY, "--size", "64x64", "--only", "labels"]
    assert command.main([*words, "--", *KEYS]) == 0
    assert "memory of ours was not measured, status -9: no message" in capsys.readouterr().out


def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "numbers.json", tmp_path / "lines.png"
    words = [*TINY, "--size", "64x64", "--sweep", "boxes", "--no-memory", "--json", str(path)]
    assert command.main([*words, "--plot", str(picture), "--", *KEYS]) == 0
    results = json.loads(path.read_text())
    assert results["parts"] == {}
    points = results["sweeps"]["boxes"]
    assert [point["value"] for point in points] == [1, 10, 100, 1000, 5000]
    assert [point["parts"]["labels"]["boxes"] for point in points] == [1, 10, 100, 1000, 5000]
    assert "| 5,000 |" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_exported_files_beside_their_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(command, "keep_freed_memory", lambda cfg: False)
    network = Trainer.build_model(tiny().cfg())
    torch.save({"model": network.state_dict()}, tmp_path / "model.pth")
    exported, numbers = write_toy(tmp_path / "toy.onnx"), tmp_path / "numbers.json"
    words = [*TINY[:-2], "--size", "64x96", "--batch", "2", "--rounds", "2"]
    words += ["--models", str(tmp_path / "model.pth"), str(exported), "--json", str(numbers)]
    assert command.main([*words, "--", *KEYS]) == 0
    shown = capsys.readouterr().out
    found = json.loads(numbers.read_text())["models"]
    runtimes = [name for name in ONNX_RUNTIMES if importlib.util.find_spec(name)]
    assert [x["runtime"] for x in found] == ["PyTorch, float32", *runtimes]
    assert [x["bytes"] for x in found[1:]] == [exported.stat().st_size] * len(runtimes)
    assert all(len(x["seconds"]["all"]) == 2 for x in found)
    ratio = found[0]["seconds"]["median"] / found[1]["seconds"]["median"]
    assert f"| toy.onnx | {runtimes[0]} |" in shown and f"| {ratio:.3g} |" in shown
    assert "A batch of 2, noise of 64 x 96" in shown


def test_wrong_results_do_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = DetectionDecoder.__call__
    monkeypatch.setattr(DetectionDecoder, "__call__", lambda *a: [x[1:] for x in right(*a)])
    words = [*TINY, "--size", "160x192", "--no-memory", "--only", "decoding"]
    assert command.main([*words, "--", *KEYS]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_what_cannot_run_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: models.Bench) -> Run:
        raise RuntimeError("no compiler here")

    sides = {**compare.PARTS["labels"].sides, "ours": broken}
    part = replace(compare.PARTS["labels"], sides=sides, needs=lambda setting: 1e30)
    monkeypatch.setitem(compare.PARTS, "labels", part)
    words = [*TINY, "--size", "64x64", "--no-memory", "--only", "labels"]
    assert command.main([*words, "--", *KEYS]) == 1
    shown = capsys.readouterr().out
    assert "ours cannot run: no compiler here" in shown
    assert "detectron2 was not tried: it takes about" in shown


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--size", "800"], '--size: "800" given'),
        (["--size", "0x64"], '--size: "0x64" given'),
        (["--only", "los"], 'unknown name "los"; known: class-loss'),
        (["--sweep", "sizes", "colour"], 'unknown name "colour"; known: classes'),
        (["--only", "loss", "--sweep"], "several given"),
        (["--models", "a.onnx", "--sweep"], "several given"),
        (["--models", "a.onnx", "--plot", "a.png"], "--plot: draws parts and sweeps"),
        (["--models", "no.onnx"], "--models: no file no.onnx"),
        (["--device", "gpu"], '--device: "gpu" given'),
        (["--config", "no.yaml"], "no.yaml"),
        (["--json", "no/such/folder/x.json"], "--json: no/such/folder/x.json cannot be written"),
        (["--plot", "."], "--plot: . cannot be written"),
        (["MODEL.RETINANET.NUM_CLASES", "3"], "NUM_CLASES"),
    ],
)
def test_mistakes_are_named(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        command.main(words)
    assert sentence in str(error.value)


@pytest.mark.parametrize("words", [["--batch", "0"], ["--boxes", "-1"], ["--classes", "many"]])
def test_numbers_are_checked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(words)
    assert exit_.value.code == 2
    assert "give a whole number" in capsys.readouterr().err
