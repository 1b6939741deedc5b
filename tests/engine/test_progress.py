"""What a terminal shows, on a real one: a pair of pseudo-terminals, and ``train_net.py`` on it."""

import logging
import os
import re
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from coco_sets import forget_new_sets
from detectron2.utils.logger import setup_logger

from retinanet_plugin.data import synthetic
from retinanet_plugin.engine import invoke
from retinanet_plugin.engine.progress import evaluation_progress

# Not on Windows.
pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))

WORDS = [
    *("--config-file", "Base-Scratch-R18.yaml", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SEED", "3"),
    *("TEST.DRAW_PICTURES", "1", "TEST.REPORT", "False", "DATASETS.OWN.ROOT", "data"),
    *("DATASETS.OWN.TRAIN_JSON", "annotations/train.json", "DATASETS.OWN.TRAIN_IMAGES", "train"),
    *("DATASETS.OWN.TEST_JSON", "annotations/test.json", "DATASETS.OWN.TEST_IMAGES", "test"),
]


class Terminal:
    """The program's end is ``file``; what it wrote can be read when that is closed."""

    def __init__(self, columns: int = 100) -> None:
        self._ours, theirs = pty.openpty()
        size = struct.pack("4H", min(columns, 40), columns, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
        self.file = os.fdopen(theirs, "w", encoding="utf-8")
        self._read: list[bytes] = []
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def _collect(self) -> None:
        try:
            while part := os.read(self._ours, 4096):
                self._read.append(part)
        except OSError:  # the other end is closed
            pass

    def text(self) -> str:
        self.file.close()
        self._reader.join()
        os.close(self._ours)
        return b"".join(self._read).decode()


@pytest.mark.parametrize("columns", [0, 30, 200])
def test_a_line_fits_its_terminal(monkeypatch, columns: int) -> None:
    """Some terminals do not tell their size, which is 0 then."""
    terminal = Terminal(columns)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.file)
        with evaluation_progress(range(5), "a_name") as pictures:
            assert list(pictures) == list(range(5))
    lines = [x for x in re.split(r"[\r\n]+", terminal.text()) if x.strip()]
    assert lines[0].startswith("a_name: 0/5 pictures |")
    assert max(map(len, lines)) <= (columns or 80)


@pytest.fixture
def _in_a_folder(tmp_path: Path, monkeypatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    synthetic.draw_dataset(tmp_path / "data", num_train=6, num_test=4, size=96)
    yield
    _forget_logs()


def _forget_logs() -> None:
    for name in ("detectron2", "fvcore", "retinanet_plugin"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()


@pytest.mark.usefixtures("_in_a_folder")
def test_training_on_a_terminal_and_without(monkeypatch, capsys) -> None:
    """On a terminal with evaluations, elsewhere without: other output, the same weights."""
    terminal = Terminal()
    with monkeypatch.context() as patch, forget_new_sets():
        patch.setattr(sys, "stdout", terminal.file)
        patch.setattr(sys, "stderr", terminal.file)
        invoke([*WORDS, "OUTPUT_DIR", "seen", "TEST.EVAL_PERIOD", "1"])
    shown = terminal.text()
    _forget_logs()
    capsys.readouterr()
    with forget_new_sets():
        invoke([*WORDS, "OUTPUT_DIR", "unseen"])
    printed = "".join(capsys.readouterr())

    loss = r"loss [\d.]+ \(cls [\d.]+, box_reg [\d.]+\)"
    assert re.search(rf"\r3/3 steps \|█+\| +[^\r]*, 00:00 left, {loss}", shown)
    assert "own_test: 0/4 pictures |" in shown and "Evaluation results for bbox" in shown
    assert "Everything is logged in seen/log.txt" in shown and "Step 1: bbox/AP " in shown
    for text in ("Starting training", "Environment info", "eta: ", "Start inference", "DONE (t="):
        assert text not in shown
        assert text in printed
        assert text in Path("seen/log.txt").read_text()
    assert Path("seen/log.txt").read_text().count("Starting training") == 1
    assert "steps |" not in printed and "pictures |" not in printed

    seen, unseen = (
        torch.load(f"{x}/model_final.pth", weights_only=True) for x in ("seen", "unseen")
    )
    assert all(torch.equal(x, unseen["model"][name]) for name, x in seen["model"].items())
    assert seen["classes"] == ["disc", "ring", "triangle", "cross"]
    metrics = Path("seen/metrics.json").read_text().splitlines()
    assert sum("validation/total_loss" in line and "bbox/AP" in line for line in metrics) == 3
    assert len(list(Path("seen/inference").glob("pictures*.png"))) == 4
    assert Path("seen/model_best.pth").exists() and not Path("unseen/model_best.pth").exists()
