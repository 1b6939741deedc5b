"""train_net.py as a person runs it, on a handful of pictures: train, go on, evaluate, mistakes."""

import json
import logging
import pickle
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_sets import forget_new_sets
from detectron2.utils.logger import setup_logger

import train_net
from retinanet_plugin.data import synthetic
from retinanet_plugin.engine import Trainer

SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()"),
    *("SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DRAW_PICTURES", "2"),
    *("TEST.REPORT", "False"),
]
OWN = [
    *("DATASETS.OWN.ROOT", "data", "DATASETS.OWN.TRAIN_JSON", "annotations/train.json"),
    *("DATASETS.OWN.TRAIN_IMAGES", "train", "DATASETS.OWN.TEST_JSON", "annotations/test.json"),
    *("DATASETS.OWN.TEST_IMAGES", "test"),
]
EXACTLY = ["MODEL.ACCELERATION.FOLD_NORMS", False]  # folding changes how --eval-only rounds
Run = Callable[..., None]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    synthetic.draw_dataset(folder / "data", num_train=6, num_test=4, size=96)
    return folder


@pytest.fixture
def run(drawn: Path, tmp_path: Path, monkeypatch) -> Iterator[Run]:
    """Runs train_net.py in a folder of its own, beside a link to the small data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(drawn / "data")

    def run_it(*words: object, config: str = "Base-Scratch-R18.yaml") -> None:
        arguments = ["train_net.py", "--config-file", config, *map(str, words)]
        monkeypatch.setattr(sys, "argv", arguments)
        train_net.invoke()

    with forget_new_sets():
        yield run_it
    for name in ("detectron2", "fvcore", "retinanet_plugin"):
        logging.getLogger(name).handlers.clear()  # they hold this test's stdout and files
    setup_logger.cache_clear()


def mistake(run: Run, capsys, *words: object, config: str = "Base-Scratch-R18.yaml") -> str:
    """What is said about a mistake: one line on stderr, and status 2."""
    with pytest.raises(SystemExit) as stop:
        run(*words, config=config)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    said = [x for x in err.splitlines() if x.startswith("error: ")]
    assert len(said) == 1
    assert "Traceback" not in out + err
    return said[0]


def last_metrics(folder: str) -> dict[str, float]:
    lines = Path(folder, "metrics.json").read_text().splitlines()
    return json.loads(lines[-1])


def detections(folder: str) -> list[dict[str, object]]:
    return json.loads(Path(folder, "inference/coco_instances_results.json").read_text())


def test_train_go_on_and_evaluate(run: Run, capsys, tmp_path: Path) -> None:
    run(*SMALL, *OWN, "OUTPUT_DIR", "out")
    assert "running on the CPU" in capsys.readouterr().out or torch.cuda.is_available()
    trained = last_metrics("out")
    assert {"bbox/AP", "bbox/AP50", "bbox/AP-disc"} <= trained.keys()
    assert "total_loss" in Path("out/metrics.json").read_text()
    picture = cv2.imread("out/inference/pictures.png")
    assert picture.shape[1] > 800 and len(np.unique(picture)) > 50

    before = torch.load("out/model_final.pth", weights_only=True)
    run("--resume", *SMALL, *OWN, "OUTPUT_DIR", "out", "SOLVER.MAX_ITER", 5)
    after = torch.load("out/model_final.pth", weights_only=True)
    assert (before["iteration"], after["iteration"]) == (2, 4)
    assert not torch.equal(
        before["model"]["head.cls_score.weight"], after["model"]["head.cls_score.weight"]
    )

    weights = ("MODEL.WEIGHTS", "out/model_final.pth")
    run("--eval-only", *SMALL, *OWN, *weights, *EXACTLY, "OUTPUT_DIR", "eval")
    assert detections("eval") == detections("out") != []
    assert "bbox/AP" in last_metrics("eval")
    Path("out/inference/coco_instances_results.json").unlink()
    run("--eval-only", "--resume", *SMALL, *OWN, *EXACTLY, "OUTPUT_DIR", "out")
    assert detections("out") == detections("eval")


def test_half_precision_on_a_cpu(run: Run, capsys) -> None:
    # P6 of 64 pixels is one column wide, where torch's bfloat16 convolution has a weight gradient
    # of whatever was in memory.
    large = (*SMALL, "INPUT.MIN_SIZE_TRAIN", "(160,)", "INPUT.MIN_SIZE_TEST", "160")
    run(*large, *OWN, "OUTPUT_DIR", "out", "SOLVER.AMP.ENABLED", True)
    weights = ("MODEL.WEIGHTS", "out/model_final.pth")
    run("--eval-only", *large, *OWN, *weights, "OUTPUT_DIR", "half", "TEST.DTYPE", "bfloat16")
    assert "Evaluating in bfloat16 (TEST.DTYPE)" in capsys.readouterr().out
    plain, half = ([d["score"] for d in detections(folder)] for folder in ("out", "half"))
    assert plain != half and max(plain) == pytest.approx(max(half), rel=0.05)
    said = mistake(run, capsys, *SMALL, *OWN, "TEST.DTYPE", "float15")
    assert 'TEST.DTYPE: unknown value "float15"' in said and "float16" in said


def test_same_seed_same_weights(run: Run) -> None:
    for out in ("one", "two"):
        run(*SMALL, *OWN, "OUTPUT_DIR", out, "TEST.DRAW_PICTURES", 0)
    one, two = (torch.load(f"{out}/model_final.pth", weights_only=True) for out in ("one", "two"))
    assert all(torch.equal(one["model"][k], two["model"][k]) for k in one["model"])


def test_a_run_is_not_overwritten(run: Run, capsys) -> None:
    run(*SMALL, *OWN, "OUTPUT_DIR", "out", "TEST.DRAW_PICTURES", 0)
    marked = Path("out/model_final.pth").stat().st_mtime_ns
    assert "OUTPUT_DIR: out already holds a run" in mistake(
        run, capsys, *SMALL, *OWN, "OUTPUT_DIR", "out"
    )
    assert Path("out/model_final.pth").stat().st_mtime_ns == marked


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


def _write_bad_weights() -> None:
    Path("text.pth").write_text("these are not weights")
    Path("empty.pth").write_bytes(b"")
    Path("evil.pkl").write_bytes(pickle.dumps({"model": _Evil(), "__author__": "me"}))
    torch.save({"model": _Evil()}, "evil.pth")
    torch.save({"model": {"a": torch.zeros(1000)}}, "short.pth")
    torch.save({"state_dict": {"a": torch.zeros(2)}, "meta": {}}, "other.pth")
    torch.save({"model": {"a": torch.zeros(2)}}, "strange.pth")
    torch.save([1, 2], "list.pth")
    torch.save({"model_state": _Evil()}, "evil.pyth")
    Path("numbers.pkl").write_bytes(pickle.dumps({1: 2}))
    Path("short.pth").write_bytes(Path("short.pth").read_bytes()[:-700])


@pytest.mark.parametrize(
    "weights, sentence",
    [
        ("absent.pth", "no file absent.pth"),
        ("text.pth", "text.pth is no checkpoint"),
        ("empty.pth", "empty.pth is no checkpoint"),
        ("short.pth", "short.pth is no checkpoint"),
        ("evil.pth", "evil.pth is no checkpoint"),
        ("evil.pyth", "evil.pyth is no checkpoint"),
        ("evil.pkl", "it asks for pathlib"),
        ("other.pth", "no checkpoint of named arrays"),
        ("strange.pth", "of the model's"),
        ("list.pth", "no checkpoint of named arrays"),
        ("numbers.pkl", "no checkpoint of named arrays"),
        ("http://127.0.0.1:9/model.pth", "cannot be downloaded"),
        ("", "nothing to evaluate"),
    ],
)
def test_weights_that_cannot_be_used(run: Run, capsys, weights: str, sentence: str) -> None:
    _write_bad_weights()
    said = mistake(run, capsys, "--eval-only", *SMALL, *OWN, "MODEL.WEIGHTS", weights)
    assert "MODEL.WEIGHTS" in said and sentence in said
    assert not Path("pwned").exists()


def test_weights_of_other_classes_are_not_evaluated(run: Run, capsys) -> None:
    run(*SMALL, *OWN, "OUTPUT_DIR", "out", "TEST.DRAW_PICTURES", 0)
    weights = torch.load("out/model_final.pth", weights_only=True)["model"]
    weights["head.cls_score.bias"] = torch.zeros(9 * 6)
    torch.save({"model": weights}, "six.pth")
    said = mistake(run, capsys, "--eval-only", *SMALL, *OWN, "MODEL.WEIGHTS", "six.pth")
    assert "head.cls_score.bias is (54,) there and (36,) here" in said


def test_zoo_pickle_of_arrays_loads(run: Run) -> None:
    run(*SMALL, *OWN, "OUTPUT_DIR", "out", "TEST.DRAW_PICTURES", 0)
    weights = torch.load("out/model_final.pth", weights_only=True)["model"]
    arrays = {k: v.numpy() for k, v in weights.items()}
    Path("zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "test"}))
    keys = ["OUTPUT_DIR", "again", "MODEL.WEIGHTS", "zoo.pkl", "TEST.DRAW_PICTURES", 0]
    run("--eval-only", *SMALL, *OWN, *EXACTLY, *keys)
    assert detections("again") == detections("out") != []


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["MODEL.RETINANET.NUM_CLASSES", 3], "NUM_CLASSES is 3, but .* has 4 classes"),
        (["MODEL.RETINANET.CLS_LOSS", "focl"], "CLS_LOSS: unknown name"),
        (["MODEL.RETINANET.FOO", "1"], "unknown key MODEL.RETINANET.FOO"),
        (["SOLVER.BASE_LR", "fast"], "needs a float"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE: .*cuda"),
        (["MODEL.META_ARCHITECTURE", "RetinaNot"], "META_ARCHITECTURE: unknown name"),
        (["MODEL.RETINANET.IOU_THRESHOLDS", "[0.4,'x']"], "IOU_THRESHOLDS"),
        (["MODEL.RETINANET.FOCAL_LOSS_ALPHA", "1.5"], "alpha must be at most 1"),
        (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH: 0"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "CHECKPOINT_PERIOD: 0"),
        (["DATASETS.OWN.TRAIN_JSON", "no.json"], "no file .*no.json"),
        (["OUTPUT_DIR", "data/annotations/train.json"], "OUTPUT_DIR: .* cannot be made"),
    ],
)
def test_mistakes_before_training(run: Run, capsys, words: list[object], sentence: str) -> None:
    said = mistake(run, capsys, *SMALL, *OWN, *words)
    assert re.search(sentence, said)
    assert not Path("output/model_final.pth").exists()


def test_no_config(run: Run, capsys) -> None:
    assert "--config-file: none given" in mistake(run, capsys, config="")


def test_built_in_set_that_is_not_there(run: Run, capsys) -> None:
    said = mistake(run, capsys, *SMALL)
    assert "coco_2017_train" in said and "DETECTRON2_DATASETS" in said


LOSS = """
from helper_of_my_loss import SCALE  # a file beside it
from retinanet_plugin import CLS_LOSS_REGISTRY
from retinanet_plugin.losses import BinaryLoss, FocalLoss

class Large(BinaryLoss):
    def value(self, logits, positive):
        return SCALE * FocalLoss().value(logits, positive)

@CLS_LOSS_REGISTRY.register()
def large(cfg):
    return Large()
"""


def test_code_of_ones_own(run: Run) -> None:
    """A loss in a file outside the package, named in YAML; imported twice, it registers once."""
    Path("code").mkdir()
    Path("code/my_large_loss.py").write_text(LOSS)
    Path("code/helper_of_my_loss.py").write_text("SCALE = 100")
    Path("mine.yaml").write_text(
        '_BASE_: "Base-Scratch-R18.yaml"\nMODEL: {RETINANET: {CLS_LOSS: "large"}}\n'
    )
    step = (*SMALL, *OWN, "SOLVER.MAX_ITER", 1, "TEST.DRAW_PICTURES", 0)
    own = ("--import", "code/my_large_loss.py", "--import", "code/my_large_loss.py")
    run(*own, *step, "OUTPUT_DIR", "mine", config="mine.yaml")
    run(*step, "OUTPUT_DIR", "ours")
    lines = (
        Path(folder, "metrics.json").read_text().splitlines()[0] for folder in ("mine", "ours")
    )
    mine, ours = (json.loads(line)["loss_cls"] for line in lines)
    assert mine == pytest.approx(100 * ours, rel=1e-4)


@pytest.mark.parametrize(
    "name, code, sentence",
    [
        ("absent", None, "--import: no file .*absent.py"),
        ("a_syntax", "x = (\n", "a_syntax.py, line 1: SyntaxError: '.' was never closed"),
        ("a_value", "\n\nint('x')\n", "a_value.py, line 3: ValueError: invalid literal"),
        (
            "a_module",
            "import no_such.thing\n",
            "a_module.py, line 1: ModuleNotFoundError: .*no_suc",
        ),
        ("an_exit", "import sys\nsys.exit(3)\n", "an_exit.py, line 2: SystemExit: 3"),
        ("in_a_library", "import json\njson.loads('{')\n", "in_a_library.py, line 2: JSONDecode"),
        (
            "a_name",
            "import retinanet_plugin as r\n@r.CLS_LOSS_REGISTRY.register()\ndef focal(): ...\n",
            "a_name.py, line 2: .*'focal' was already registered",
        ),
        ("json", "", "has the name of another module, json .*rename"),
        ("my-loss", "", "letters, digits and underscores"),
    ],
)
def test_mistakes_in_code_of_ones_own(
    run: Run, capsys, name: str, code: str | None, sentence: str
) -> None:
    if code is not None:
        Path(f"{name}.py").write_text(code)
    said = mistake(run, capsys, "--import", f"{name}.py", *SMALL, *OWN)
    assert re.search(sentence, said)
    assert not Path("output").exists()


def test_a_module_that_is_not_there(run: Run, capsys) -> None:
    said = mistake(run, capsys, "--import", "no_such.module", *SMALL, *OWN)
    assert "--import: no module no_such" in said


def test_no_code_from_yaml(run: Run, capsys) -> None:
    """A configuration from elsewhere cannot name a file to run."""
    Path("evil.py").write_text("open('pwned', 'w')")
    Path("evil.yaml").write_text('_BASE_: "Base-Scratch-R18.yaml"\nIMPORT: "evil.py"\n')
    assert "unknown key IMPORT" in mistake(run, capsys, *SMALL, *OWN, config="evil.yaml")
    assert not Path("pwned").exists()


class _Signals(logging.Filter):
    """Sends this process a signal when the log has a certain message."""

    def __init__(self, number: signal.Signals, message: str) -> None:
        super().__init__()
        self.number, self.message = number, message

    def filter(self, record: logging.LogRecord) -> bool:
        if self.message in record.getMessage():
            signal.raise_signal(self.number)
        return True


@contextmanager
def signal_at(number: signal.Signals, logger: str, message: str) -> Iterator[None]:
    sender = _Signals(number, message)
    logging.getLogger(logger).addFilter(sender)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(sender)


def stopped(run: Run, capsys, number: signal.Signals, *words: object) -> str:
    handlers = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == (130 if number == signal.SIGINT else 75)
    assert handlers == [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    (said,) = (x for x in err.splitlines() if x.startswith("stopped: "))
    return said


def steps_of_schedule(checkpoint: str) -> int:
    hooks = torch.load(checkpoint, weights_only=True)["trainer"]["hooks"]
    return hooks["LRScheduler"]["last_epoch"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_within_a_step_keeps_that_step(
    run: Run, capsys, monkeypatch, number: signal.Signals
) -> None:
    """The run that was stopped and the one that was not end with the same schedule."""
    step = Trainer.run_step

    def run_step(self: Trainer) -> None:
        step(self)
        if self.iter == 2 and self.start_iter == 0:
            signal.raise_signal(number)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    words = (*SMALL, *OWN, "SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 100)
    said = stopped(run, capsys, number, *words, "OUTPUT_DIR", "out")
    assert said == (
        "stopped: 3 of 5 steps were done; go on from model_0000002.pth in out by the same command "
        "with --resume."
    )
    assert steps_of_schedule("out/model_0000002.pth") == 3
    assert not Path("out/inference").exists()
    run("--resume", *words, "OUTPUT_DIR", "out")
    assert steps_of_schedule("out/model_final.pth") == 5
    assert "bbox/AP" in last_metrics("out")


def test_a_signal_within_the_last_step_skips_the_evaluation(run: Run, capsys, monkeypatch) -> None:
    step = Trainer.run_step

    def run_step(self: Trainer) -> None:
        step(self)
        if self.iter == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    said = stopped(run, capsys, signal.SIGINT, *SMALL, *OWN, "OUTPUT_DIR", "out")
    assert "3 of 3 steps were done; go on from model_final.pth" in said
    assert not Path("out/inference").exists()
    run("--resume", *SMALL, *OWN, "OUTPUT_DIR", "out")
    assert "bbox/AP" in last_metrics("out")


def test_a_signal_within_an_evaluation_between_steps_keeps_the_step(run: Run, capsys) -> None:
    words = (*SMALL, *OWN, "SOLVER.CHECKPOINT_PERIOD", 100, "TEST.EVAL_PERIOD", 2)
    with signal_at(signal.SIGTERM, "detectron2.evaluation.evaluator", "Start inference"):
        said = stopped(run, capsys, signal.SIGTERM, *words, "OUTPUT_DIR", "out")
    assert "2 of 3 steps were done; go on from model_0000001.pth in out" in said
    assert steps_of_schedule("out/model_0000001.pth") == 2


def test_a_signal_after_the_last_step_stops_at_once(run: Run, capsys) -> None:
    evaluates, name = "Start inference", "detectron2.evaluation.evaluator"
    with signal_at(signal.SIGTERM, name, evaluates):
        said = stopped(run, capsys, signal.SIGTERM, *SMALL, *OWN, "OUTPUT_DIR", "out")
    assert "3 of 3 steps were done; go on from model_final.pth in out" in said
    with signal_at(signal.SIGTERM, name, evaluates):
        weights = ("MODEL.WEIGHTS", "out/model_final.pth")
        said = stopped(
            run, capsys, signal.SIGTERM, "--eval-only", *SMALL, *OWN, *weights, "OUTPUT_DIR", "eval"
        )
    assert said.startswith("stopped: checkpoints are as they were; run it again")


def test_picture_damaged_behind_its_header(run: Run, capsys, drawn: Path, tmp_path: Path) -> None:
    """Found while decoding, in a worker process of the loader: still one sentence with its name."""
    shutil.copytree(drawn / "data", tmp_path / "damaged")
    for file in (tmp_path / "damaged" / "train").iterdir():
        file.write_bytes(file.read_bytes()[:-2000])
    for workers in (0, 1):
        said = mistake(
            run,
            capsys,
            *(*SMALL, *OWN, "DATASETS.OWN.ROOT", "damaged", "OUTPUT_DIR", f"out{workers}"),
            *("DATALOADER.NUM_WORKERS", workers),
        )
        assert "damaged/train/" in said and "cannot be read" in said


def test_loss_that_is_not_finite(run: Run, capsys) -> None:
    said = mistake(run, capsys, *SMALL, *OWN, "SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "20")
    assert "loss is not finite" in said and "SOLVER.BASE_LR" in said


def test_pictures_without_any_detection(run: Run, capsys) -> None:
    """An untrained model finds nothing: evaluation and drawing still end well, and say so."""
    run(*SMALL, *OWN, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.99", "OUTPUT_DIR", "out")
    assert Path("out/inference/pictures.png").exists()
    assert np.isnan(last_metrics("out")["bbox/AP"])
    said = capsys.readouterr().out
    assert re.search(r"no detection scores above .*; the highest score seen is 0\.\d+", said)
