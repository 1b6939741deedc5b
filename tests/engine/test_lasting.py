"""Metrics, detections and logs that cannot be written, as on a full disk: said, and left out."""

import errno
import json
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils.events import EventStorage, TensorboardXWriter
from small_run import write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io import gfile
from torch import nn

from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.engine import SafeCheckpointer, Trainer
from retinanet_plugin.engine.best_effort_io import (
    LastingCOCOEvaluator,
    LastingWriter,
    no_traceback_of_logs,
)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


def loaded(cfg: CfgNode) -> nn.Module:
    register_own_datasets(cfg, training=False)
    model = Trainer.build_model(cfg)
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def test_an_evaluation_that_can_write_nothing_measures_the_same(tmp_path: Path, caplog) -> None:
    cfg = write_run(tmp_path)
    cfg.TEST.DRAW_PICTURES = 2
    model = loaded(cfg)
    whole = Trainer.test(cfg, model)
    folder = tmp_path / "out" / "inference"
    assert (folder / "pictures.png").is_file()
    folder.rename(tmp_path / "before")
    folder.write_text("no folder")  # who is root may write anywhere, but not there
    assert repr(Trainer.test(cfg, model)) == repr(whole)  # NaN is as good as NaN
    assert "coco_instances_results.json cannot be written" in caplog.text


def test_detections_are_written_as_detectron2_does(tmp_path: Path) -> None:
    cfg = write_run(tmp_path)
    model = loaded(cfg)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    both = DatasetEvaluators(
        [
            LastingCOCOEvaluator("own_test", tasks=("bbox",), output_dir=str(ours)),
            COCOEvaluator("own_test", tasks=("bbox",), output_dir=str(theirs)),
        ]
    )
    with pytest.raises(AssertionError, match="same key"):  # of the two, after both have ended
        inference_on_dataset(model, Trainer.build_test_loader(cfg, "own_test"), both)
    name = "coco_instances_results.json"
    found = json.loads((ours / name).read_text())
    assert found and found == json.loads((theirs / name).read_text())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_a_log_that_cannot_be_written_prints_no_traceback(capsys) -> None:
    with open("/dev/full", "w") as full:
        handler = logging.StreamHandler(full)
        log = logging.getLogger("retinanet_plugin")
        log.addHandler(handler)
        try:
            no_traceback_of_logs()
            log.error("said")
        finally:
            log.removeHandler(handler)
            with pytest.raises(OSError):
                full.close()
    assert "Traceback" not in capsys.readouterr().err


def test_tensorboard_goes_on_in_another_file(tmp_path: Path, caplog, monkeypatch, capsys) -> None:
    no_traceback_of_logs()
    is_full, write = False, gfile.LocalFileSystem._write

    def sometimes(*words: object) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*words)

    monkeypatch.setattr(gfile.LocalFileSystem, "_write", sometimes)
    with EventStorage() as storage:
        tensorboard = TensorboardXWriter(str(tmp_path))
        writer = LastingWriter(tensorboard)
        for step in range(40):
            is_full = 5 <= step < 20
            storage.put_scalar("loss", float(step))
            writer.write()
            with suppress(OSError):  # else a thread of TensorBoard's writes when it likes
                tensorboard._writer.flush()
            storage.step()
        writer.close()
    files = list(tmp_path.glob("events*"))
    seen: set[int] = set()
    for file in files:
        if file.stat().st_size:
            events = EventAccumulator(str(file)).Reload()
            seen |= {event.step for event in events.Scalars("loss")}
    assert seen >= {*range(4), *range(32, 40)}
    assert caplog.text.count("metrics cannot be written (No space left") == 1
    assert len(files) <= 8
    assert "Exception in thread" not in capsys.readouterr().err
