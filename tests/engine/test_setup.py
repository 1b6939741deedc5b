"""Keys that do not go together are named before a run starts."""

import pytest
import torch
from detectron2.utils import comm

from retinanet_plugin import UserError, get_config
from retinanet_plugin.engine import setup
from retinanet_plugin.engine.setup import (
    check_evaluation,
    check_numbers,
    check_output,
    choose_device,
)

PATIENCE, PERIOD = "SOLVER.EARLY_STOPPING.PATIENCE", "TEST.EVAL_PERIOD"


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([PATIENCE, "-1"], "PATIENCE: -1 given"),
        ([PATIENCE, "3"], r"PATIENCE: 3 given, but TEST.EVAL_PERIOD is 0"),
        (
            ["TEST.BEST_METRIC", "validation/total_loss", "TEST.LOSS", "False"],
            r'BEST_METRIC: "validation/total_loss" is not measured while TEST.LOSS is False',
        ),
    ],
)
def test_evaluations_that_will_not_be(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_evaluation(get_config("Base-RetinaNet.yaml", words))


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["SEED", str(2**70)], r"SEED: 1180591620717411303424 given; give a number from -1 to"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER: 0 given; give a number of at least 1"),
        (["SOLVER.BASE_LR", "-1.0"], "SOLVER.BASE_LR: -1.0 given"),
        (["SOLVER.BASE_LR", "1e999"], "SOLVER.BASE_LR: inf given"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD: 0 given"),
        (["DATALOADER.NUM_WORKERS", "-1"], "DATALOADER.NUM_WORKERS: -1 given"),
        (["MODEL.FPN.OUT_CHANNELS", "-4"], "MODEL.FPN.OUT_CHANNELS: -4 given"),
        (["INPUT.MIN_SIZE_TRAIN", "()"], r"INPUT.MIN_SIZE_TRAIN: \(\) given; give whole numbers"),
        (["INPUT.MIN_SIZE_TRAIN", "(-5,)"], r"INPUT.MIN_SIZE_TRAIN: \(-5,\) given"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "or two with .*_SAMPLING range"),
        (["SOLVER.LR_SCHEDULER_NAME", "x"], 'LR_SCHEDULER_NAME: unknown value "x"; known: Warmup'),
    ],
)
def test_numbers_and_names_by_which_detectron2_fails_later(words: list[str], sentence: str) -> None:
    check_numbers(get_config("Base-RetinaNet.yaml"), training=True)
    with pytest.raises(UserError, match=sentence):
        check_numbers(get_config("Base-RetinaNet.yaml", words), training=True)


@pytest.mark.parametrize("given", ["cpu", "cuda:1", "cuda:0", "cuda"])
def test_several_processes_take_a_gpu_each(given: str, monkeypatch) -> None:
    cfg = get_config("Base-RetinaNet.yaml", ["MODEL.DEVICE", given])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    choose_device(cfg)  # one may take any
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    if given == "cuda":
        choose_device(cfg)
    else:
        with pytest.raises(UserError, match=f"MODEL.DEVICE: {given} given for 2 processes.*CUDA_V"):
            choose_device(cfg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choose_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"


def test_training_keeps_its_folder_to_itself(tmp_path, monkeypatch) -> None:
    held: list[str] = []
    monkeypatch.setattr(setup, "hold", held.append)
    cfg = get_config("Base-RetinaNet.yaml", ["OUTPUT_DIR", str(tmp_path / "out")])
    check_output(cfg, training=False, resume=False)
    assert held == []
    check_output(cfg, training=True, resume=False)
    assert held == [str(tmp_path / "out")]


def test_those_that_will() -> None:
    words = [PATIENCE, "3", PERIOD, "100", "TEST.BEST_METRIC", "validation/total_loss"]
    check_evaluation(get_config("Base-RetinaNet.yaml", words))


@pytest.mark.parametrize("name", ["metrics.json", "log.txt", "inference", "inference/a/b.png"])
def test_a_link_out_of_the_folder_is_not_written_through(tmp_path, name: str) -> None:
    link = tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "out" / "elsewhere")
    cfg = get_config("Base-RetinaNet.yaml", ["OUTPUT_DIR", str(tmp_path / "out")])
    check_output(cfg, training=False, resume=False)
    link.unlink()
    link.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=f"{name} is a link to .*precious, outside the folder"):
        check_output(cfg, training=False, resume=False)
