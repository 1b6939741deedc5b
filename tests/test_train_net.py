"""train_net.py as a person runs it, on a handful of pictures: train, go on, evaluate, mistakes."""

import json
import logging
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_sets import forget_new_sets
from detectron2.utils.logger import setup_logger

import train_net
from retinanet_plugin.data import synthetic

SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()"),
    *("SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DRAW_PICTURES", "2"),
]
OWN = [
    *("DATASETS.OWN.ROOT", "data", "DATASETS.OWN.TRAIN_JSON", "annotations/train.json"),
    *("DATASETS.OWN.TRAIN_IMAGES", "train", "DATASETS.OWN.TEST_JSON", "annotations/test.json"),
    *("DATASETS.OWN.TEST_IMAGES", "test"),
]
EXACTLY = ["MODEL.FOLD_NORMS", False]  # folding changes how --eval-only rounds
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
    assert "no detection scores above" in capsys.readouterr().out
