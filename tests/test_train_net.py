"""The train command as a user runs it: train, resume, evaluate, stop, and make mistakes."""

import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from small_training import SMALL, detections, metrics, train

from retinanet_plugin import cli
from retinanet_plugin.data import synthetic
from retinanet_plugin.engine import Trainer

EXACTLY = ["MODEL.ACCELERATION.FOLD_NORMS", False]  # folding changes how --eval-only rounds
TRAINED = ["TEST.DRAW_IMAGES", 2, "SOLVER.CHECKPOINT_PERIOD", 2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset in ``data`` and a run of three steps in ``out``."""
    folder = tmp_path_factory.mktemp("trained")
    synthetic.draw_dataset(folder / "data", num_train=6, num_test=4, size=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(*SMALL, *TRAINED, "OUTPUT_DIR", "out") == 0
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(trained / "data")
    (tmp_path / "trained").symlink_to(trained / "out")


def mistake(capsys: pytest.CaptureFixture[str], *args: object, **options: str) -> str:
    """Returns the sentence about a mistake: one line on stderr, and status 2."""
    flags = [x for x in args if str(x).startswith("--")]
    assert train(*flags, *SMALL, *args[len(flags) :], **options) == 2
    out, err = capsys.readouterr()
    (sentence,) = (x for x in err.splitlines() if x.startswith("error: "))
    assert "Traceback" not in out + err
    return sentence


def test_what_training_leaves() -> None:
    last = metrics("trained")[-1]
    assert {"bbox/AP", "bbox/AP50", "bbox/AP-disc", "validation/total_loss"} <= last.keys()
    assert any("total_loss" in line for line in metrics("trained"))
    drawn = cv2.imread("trained/inference/detections.png")
    assert drawn is not None and drawn.shape[1] > 800 and len(np.unique(drawn)) > 50
    names = {path.name for path in Path("trained").glob("model_*.pth")}
    assert names == {"model_0000001.pth", "model_final.pth"}


def test_resume_trains_further(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a report that fails does not fail the run."""
    shutil.copytree(Path("trained").resolve(), "out")
    before = torch.load("out/model_final.pth", weights_only=True)
    assert "OUTPUT_DIR" in mistake(capsys, "OUTPUT_DIR", "out")
    monkeypatch.setattr(cli, "report_on", {}.__getitem__)
    further = ("SOLVER.MAX_ITER", 5, "TEST.REPORT", True)
    assert train("--resume", *SMALL, "OUTPUT_DIR", "out", *further) == 0
    after = torch.load("out/model_final.pth", weights_only=True)
    assert (before["iteration"], after["iteration"]) == (2, 4)
    out = capsys.readouterr().out
    assert "SOLVER.MAX_ITER 3 -> 5" in out and "(TEST.REPORT) was not written: KeyError" in out
    name = "head.cls_score.weight"
    assert not torch.equal(before["model"][name], after["model"][name])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("trainer"),
        lambda c: c.update(trainer=5),
        lambda c: c["trainer"].pop("iteration"),
        lambda c: c["trainer"].update(iteration="3"),
        lambda c: c["trainer"].pop("_trainer"),
        lambda c: c["model"].update({"head.cls_score.bias": torch.zeros(9)}),
        lambda c: c["model"].clear(),
    ],
)
def test_resume_from_a_checkpoint_of_another_program(
    capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], Any]
) -> None:
    checkpoint = torch.load("trained/model_final.pth", weights_only=True)
    change(checkpoint)
    Path("other").mkdir()
    torch.save(checkpoint, "other/model_final.pth")
    assert "error: --resume" in mistake(capsys, "--resume", "OUTPUT_DIR", "other")


def test_evaluation_alone_gives_the_same_detections() -> None:
    expected = detections("trained")
    weights = torch.load("trained/model_final.pth", weights_only=True)["model"]
    arrays = {name: value.numpy() for name, value in weights.items()}
    Path("zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "test"}))
    for file in ("trained/model_final.pth", "zoo.pkl"):
        args = (*SMALL, *EXACTLY, "OUTPUT_DIR", "eval", "MODEL.WEIGHTS", file)
        assert train("--eval-only", *args) == 0
        assert detections("eval") == expected != []
        assert "bbox/AP" in metrics("eval")[-1]
    Path("out").mkdir()
    for name in ("model_final.pth", "last_checkpoint"):
        shutil.copy(f"trained/{name}", "out")
    assert train("--eval-only", "--resume", *SMALL, *EXACTLY, "OUTPUT_DIR", "out") == 0
    assert detections("out") == expected
    half = (*SMALL, "OUTPUT_DIR", "half", "MODEL.WEIGHTS", "zoo.pkl", "TEST.DTYPE", "bfloat16")
    assert train("--eval-only", *half) == 0
    exact, rounded = ([x["score"] for x in y] for y in (expected, detections("half")))
    assert exact != rounded and max(exact) == pytest.approx(max(rounded), rel=0.05)


@pytest.mark.parametrize("weights", ["absent.pth", "six.pth", "http://127.0.0.1:9/model.pth", ""])
def test_weights_that_cannot_be_used(capsys: pytest.CaptureFixture[str], weights: str) -> None:
    """tests/safety has more of them."""
    six = torch.load("trained/model_final.pth", weights_only=True)["model"]
    six["head.cls_score.bias"] = torch.zeros(9 * 6)
    torch.save({"model": six}, "six.pth")
    assert "MODEL.WEIGHTS" in mistake(capsys, "--eval-only", "MODEL.WEIGHTS", weights)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RETINANET.NUM_CLASSES", 3),
        ("SOLVER.BASE_LR", "fast"),
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.META_ARCHITECTURE", "RetinaNot"),
        ("TEST.DTYPE", "float15"),
        ("DATASETS.OWN.TRAIN_JSON", "no.json"),
    ],
)
def test_mistakes_before_training(
    capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    assert key in mistake(capsys, key, value)
    assert not Path("output/model_final.pth").exists()


def test_missing_config_and_missing_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config-file" in mistake(capsys, config="")
    names = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
    none = [x for name in names for x in (f"DATASETS.OWN.{name}", "")]
    assert "coco_2017_train" in mistake(capsys, *none)


@pytest.fixture
def signal_in_step(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, signal.Signals]]:
    """Signals to send within steps of the first start; steps count from 0."""
    sent: list[tuple[int, signal.Signals]] = []
    step = Trainer.run_step

    def run_step(self: Trainer) -> None:
        step(self)
        for at, number in sent:
            if self.iter == at and self.start_iter == 0:
                signal.raise_signal(number)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    return sent


def stopped(capsys: pytest.CaptureFixture[str], number: signal.Signals, *args: object) -> str:
    handlers = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    assert train(*SMALL, *args, "OUTPUT_DIR", "out") == (130 if number == signal.SIGINT else 75)
    assert handlers == [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    (sentence,) = (x for x in err.splitlines() if x.startswith("stopped: "))
    return sentence


def steps_of_schedule(checkpoint: str) -> int:
    hooks = torch.load(checkpoint, weights_only=True)["trainer"]["hooks"]
    return hooks["LRScheduler"]["last_epoch"]


def test_signal_in_a_step(capsys: pytest.CaptureFixture[str], signal_in_step: list) -> None:
    """That step is kept, and the resumed run ends with the schedule of one never stopped."""
    signal_in_step.append((1, signal.SIGUSR1))
    assert "model_0000001.pth" in stopped(capsys, signal.SIGUSR1)
    assert steps_of_schedule("out/model_0000001.pth") == 2
    assert not Path("out/inference").exists()
    assert train("--resume", *SMALL, "OUTPUT_DIR", "out") == 0
    assert steps_of_schedule("out/model_final.pth") == 3
    ours, theirs = (
        torch.load(f"{folder}/model_final.pth", weights_only=True)["model"]
        for folder in ("out", "trained")
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_signal_in_the_last_step_skips_the_evaluation(
    capsys: pytest.CaptureFixture[str], signal_in_step: list
) -> None:
    signal_in_step.append((2, signal.SIGINT))
    assert "model_final.pth" in stopped(capsys, signal.SIGINT)
    assert not Path("out/inference").exists()
    assert train("--resume", *SMALL, "OUTPUT_DIR", "out") == 0
    assert "bbox/AP" in metrics("out")[-1]


def test_second_signal_stops_at_once(
    capsys: pytest.CaptureFixture[str], signal_in_step: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinanet_plugin.engine.stopping._SAME_S", 0.0)
    signal_in_step.extend([(1, signal.SIGINT)] * 2)
    assert ".pth" not in stopped(capsys, signal.SIGINT)
    assert not list(Path("out").glob("*.pth"))


def test_signal_in_an_evaluation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between steps it keeps the step; after the last it stops at once."""

    def test(*args: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "test", test)
    sentence = stopped(capsys, signal.SIGTERM, "TEST.EVAL_PERIOD", 2)
    assert "model_0000001.pth" in sentence
    assert steps_of_schedule("out/model_0000001.pth") == 2
    shutil.rmtree("out")
    assert "model_final.pth" in stopped(capsys, signal.SIGTERM)


def test_no_detections(capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluation and drawing still succeed, and the log says why AP is not a number."""
    keys = ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.99", "TEST.DRAW_IMAGES", 2)
    weights = ("MODEL.WEIGHTS", "trained/model_final.pth")
    assert train("--eval-only", *SMALL, *keys, *weights, "OUTPUT_DIR", "out") == 0
    assert Path("out/inference/detections.png").exists()
    assert np.isnan(metrics("out")[-1]["bbox/AP"])
    assert "MODEL.RETINANET.SCORE_THRESH_TEST (0.99)" in capsys.readouterr().out
