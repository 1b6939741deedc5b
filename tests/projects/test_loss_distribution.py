"""The distribution of losses: against sorting all samples, and against detectron2's own losses."""

import csv
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_sets import forget_new_sets
from conftest import random_picture, small_config, spread_logits
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from fvcore.nn import sigmoid_focal_loss
from torch import nn

from projects.focal_loss_paper.commands import loss_distribution as command
from projects.focal_loss_paper.loss_distribution import HARDEST, LossHistogram, curves, measure
from retinanet_plugin import UserError
from retinanet_plugin.data import synthetic
from retinanet_plugin.modeling import FocalRetinaNet

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)


def focal_losses(wrong: np.ndarray, gamma: float) -> np.ndarray:
    """Of logits of absent classes, without alpha."""
    return np.exp(-gamma * np.logaddexp(0, -wrong)) * np.logaddexp(0, wrong)


SAMPLES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "spread": lambda rng: rng.normal(-4, 3, 50_000),
    "trained": lambda rng: np.where(
        rng.random(50_000) < 1e-3, rng.normal(1, 1, 50_000), rng.normal(-8, 1, 50_000)
    ),
    "ties": lambda rng: rng.integers(-3, 3, 50_000) / 7.0,
    "narrow": lambda rng: rng.uniform(-4.6, -4.6 + 1e-4, 50_000),
    "extreme": lambda rng: rng.choice([-1e4, -90.0, -70.0, 0.0, 70.0, 90.0, 1e3], 50_000),
    "few": lambda rng: rng.normal(0, 1, 100),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_shares_are_those_of_sorted_samples(name: str) -> None:
    wrong = SAMPLES[name](np.random.default_rng(0))
    histogram = LossHistogram(GAMMAS)
    for part in np.array_split(wrong, 3):
        histogram.add(torch.from_numpy(part))
    assert histogram.count == len(wrong)
    for gamma in GAMMAS:
        losses = np.sort(focal_losses(wrong, gamma))
        assert histogram.total(gamma) == pytest.approx(losses.sum(), rel=1e-12)
        error = histogram.error(gamma)
        assert error < 1e-3 or name == "extreme"  # logits of 70 and 90 are in one bin
        cumulated = np.concatenate([[0], losses.cumsum() / losses.sum()])
        fractions = np.arange(len(losses) + 1) / len(losses)
        found = histogram.cumulated(gamma, fractions)
        assert np.abs(found - cumulated).max() <= error + 1e-12
        for share in HARDEST:
            expected = losses[-round(share * len(losses)) :].sum() / losses.sum()
            assert histogram.hardest(gamma, share) == pytest.approx(expected, abs=error + 1e-12)


def test_the_bound_is_reached_by_the_worst_samples() -> None:
    """Half of them at one end of a bin, half at the other; all loss in that bin."""
    ends = torch.tensor([-12.0, -12 + 1 / 2048 - 1e-9], dtype=torch.float64)
    histogram = LossHistogram([2.0])
    histogram.add(ends.repeat(500))
    low, high = focal_losses(ends.numpy(), 2.0)
    off = histogram.cumulated(2.0, np.array([0.5]))[0] - low / (low + high)
    assert off == pytest.approx(histogram.error(2.0), rel=1e-3)
    assert off == pytest.approx(3 / 8192, rel=1e-3)


def spread_model(*overrides: object) -> nn.Module:
    """Random weights that give logits as spread out as a trained model's, in evaluation too."""
    model = build_model(small_config(*overrides))
    spread_logits(model)
    with torch.no_grad():
        model.train().backbone(torch.randn(4, 3, 128, 128))
    return model


def test_samples_are_those_of_detectron2() -> None:
    """Its labels, dense targets and fvcore's focal loss on the same logits."""
    model = spread_model()
    pictures = [random_picture(96, 160, 6), random_picture(128, 96, 25), random_picture(96, 96, 0)]
    theirs_cfg = small_config("MODEL.META_ARCHITECTURE", "RetinaNet")
    theirs_cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    sizes = [[8 * 2**i * 4 * 2 ** (j / 3) for j in range(3)] for i in range(5)]
    theirs_cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    theirs = build_model(theirs_cfg).eval()
    theirs.load_state_dict(model.state_dict())
    found = measure(model, [pictures[:2], pictures[2:]], [0.0, 2.0])

    expected = {"positives": 0.0, "negatives": 0.0}
    counts = {"positives": 0, "negatives": 0, "ignored": 0}
    with torch.no_grad():
        for batch in (pictures[:2], pictures[2:]):
            images = theirs.preprocess_image(batch)
            levels = theirs.backbone(images.tensor)
            features = [levels[f] for f in theirs.head_in_features]
            logits, anchors = theirs.head(features)[0], theirs.anchor_generator(features)
            logits = torch.cat(theirs._transpose_dense_predictions([logits], [7])[0], 1).double()
            labels, _ = theirs.label_anchors(anchors, [x["instances"] for x in batch])
            labels = torch.stack(labels)
            kept = labels >= 0
            targets = nn.functional.one_hot(labels[kept], 8)[:, :-1].double()
            losses = sigmoid_focal_loss(logits[kept], targets, alpha=-1, gamma=2)
            for name, chosen in (("positives", targets == 1), ("negatives", targets == 0)):
                expected[name] += losses[chosen].sum().item()
                counts[name] += int(chosen.sum())
            counts["ignored"] += int((~kept).sum())
    assert counts["ignored"] > 0
    assert found.ignored_anchors == counts["ignored"]
    assert found.pictures == 3
    for name in expected:
        side = getattr(found, name)
        assert side.count == counts[name] > 0
        assert side.total(2.0) == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["FOCAL_LOSS_ALPHA", 0.9, "FOCAL_LOSS_GAMMA", 0.5, "LOSS_NORMALIZER", "ema"],
        ["CLS_LOSS", "focal_star", "IOU_LABELS", "[0,0,1]"],
        ["CLS_LOSS", "cross_entropy", "ALLOW_LOW_QUALITY_MATCHES", False],
    ],
    ids=str,
)
def test_the_sum_is_the_training_loss(keys: list[object]) -> None:
    model = spread_model(*(f"MODEL.RETINANET.{k}" if i % 2 == 0 else k for i, k in enumerate(keys)))
    before = {k: v.clone() for k, v in model.state_dict().items() if k != "loss_normalizer"}
    batches = [[random_picture(96, 128, 0)], [random_picture(128, 96, n) for n in (9, 30)]]
    loss = measure(model, batches, [2.0]).training_loss()
    assert loss["relative_difference"] < 1e-5
    assert loss["model"] > 0
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    # And the model's is what it trains on, but for the batch statistics of norms.
    for layer in model.train().modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    if model.normalize_by != "ema":
        with torch.no_grad():
            trained = [float(model(batch)["loss_cls"]) for batch in batches]
        assert loss["model"] == pytest.approx(np.mean(trained), rel=1e-5)


def test_a_loss_that_chooses_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    model = spread_model("MODEL.RETINANET.CLS_LOSS", "ohem")
    found = measure(model, [[random_picture(96, 128, 5)]], [0.0, 2.0])
    assert found.report()["training_loss"] is None
    assert found.negatives.count > found.positives.count > 0
    assert command.say_agreement(found)
    assert "chooses among the anchors" in capsys.readouterr().out


def test_models_and_pictures_that_tell_nothing() -> None:
    model = spread_model()
    with pytest.raises(UserError, match="no anchor assigned"):
        measure(model, [[random_picture(64, 64, 0)]], [2.0])
    nn.init.constant_(model.head.cls_score.bias, float("nan"))
    with pytest.raises(UserError, match="diverged"):
        measure(model, [[random_picture(64, 64, 3)]], [2.0])


# ---------------------------------------------------------------- the command

SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.DEVICE", "cpu"),
    *("INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "0"),
    *("DATASETS.OWN.ROOT", "data", "DATASETS.OWN.TRAIN_JSON", "annotations/train.json"),
    *("DATASETS.OWN.TRAIN_IMAGES", "train", "DATASETS.OWN.TEST_JSON", "annotations/test.json"),
    *("DATASETS.OWN.TEST_IMAGES", "test", "MODEL.WEIGHTS", "model.pth"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set and weights."""
    folder = tmp_path_factory.mktemp("prepared")
    synthetic.draw_dataset(folder / "data", num_train=6, num_test=4, size=96)
    torch.manual_seed(0)
    model = spread_model("MODEL.RETINANET.NUM_CLASSES", 4)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


@pytest.fixture
def run(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "model.pth"):
        (tmp_path / name).symlink_to(prepared / name)

    def run_it(*words: str, out: str = "out", keys: tuple[str, ...] = ()) -> int:
        given = ["--config-file", "Base-Scratch-R18.yaml", "--out", out, *words]
        return command.main([*given, *SMALL, *keys])

    with forget_new_sets():
        yield run_it
    for name in ("detectron2", "fvcore", "retinanet_plugin"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()


def test_the_command(run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--batch-size", "3", "--gammas", "2", "0") == 0  # and SMALL follows
    shown = capsys.readouterr()
    assert "2/2" in shown.err  # batches
    report = json.loads(Path("out/loss_distribution.json").read_text())
    assert (report["pictures"], report["data_sets"]) == (4, ["own_test"])
    assert report["training_loss"]["relative_difference"] < 1e-4
    easy, focal = report["negatives"]["gammas"]
    assert (easy["gamma"], focal["gamma"]) == (0, 2)
    for share in ("0.01", "0.1", "0.2"):
        assert easy["held_by_hardest"][share] < focal["held_by_hardest"][share] < 1
    assert f"| {report['negatives']['samples']:,} negatives | 2 |" in shown.out
    assert Path("out/loss_distribution.png").read_bytes().startswith(b"\x89PNG")
    names, *rows = csv.reader(Path("out/loss_distribution.csv").read_text().splitlines())
    assert names[:3] == ["fraction", "positives gamma=0", "positives gamma=2"]
    table = np.array(rows, float)
    assert (np.diff(table, axis=0) >= 0).all()
    assert table[0].tolist() == [0] * 5 and table[-1] == pytest.approx(1)
    at_90 = table[np.isclose(table[:, 0], 0.9)][0]
    assert 1 - at_90[4] == pytest.approx(focal["held_by_hardest"]["0.1"], abs=1e-6)
    with pytest.raises(UserError, match="--overwrite"):
        run()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--dataset", "train", "--pictures", "99"], (6, ["own_train"])),
        (["--dataset", "own_test", "--pictures", "2"], (2, ["own_test"])),
    ],
)
def test_data_sets(run: Callable, words: list[str], expected: tuple[int, list[str]]) -> None:
    assert run(*words, "--gammas", "1", "--batch-size", "2") == 0
    report = json.loads(Path("out/loss_distribution.json").read_text())
    assert (report["pictures"], report["data_sets"]) == expected


def test_a_sum_that_differs_is_told(
    run: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the model divided by something else."""
    monkeypatch.setattr(FocalRetinaNet, "_normalizer", lambda *_: torch.tensor(3.0))
    assert run("--pictures", "1") == 1
    assert "they DIFFER" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, keys, sentence",
    [
        (["--dataset", "own_tset"], (), r'--dataset: no data set "own_tset" .*did you mean'),
        ([], ("MODEL.WEIGHTS", "no.pth"), "no file no.pth"),
        ([], ("MODEL.WEIGHTS", ""), "nothing to evaluate"),
        ([], ("MODEL.META_ARCHITECTURE", "RetinaNet"), "in FocalRetinaNet only"),
        ([], ("MODEL.RETINANET.NUM_CLASSES", "3"), "NUM_CLASSES is 3, but"),
        ([], ("MODEL.RETINANET.FOO", "3"), "unknown key"),
        ([], ("MODEL.RETINANET.NUM_CONVS", "2"), "84 of the model.s 88 parameters, 4 are absent"),
        (["--out", "model.pth/x"], (), "--out: model.pth/x cannot be made"),
    ],
)
def test_mistakes(run: Callable, words: list[str], keys: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run(*words, keys=keys)
    assert not Path("out/loss_distribution.json").exists()


@pytest.mark.parametrize("words", [["-1"], ["x", "1"], ["nan"], ["0", "1e3"]])
def test_gammas_are_checked(run: Callable, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"--gammas: .*; give numbers from 0 to 20"):
        run("--gammas", *words)


def test_numbers_of_pictures_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--config-file", "x.yaml", "--pictures", "0"])
    assert "give a whole number from 1 up" in capsys.readouterr().err


def test_curves_are_finer_towards_the_hardest() -> None:
    found = measure(spread_model(), [[random_picture(96, 128, 5)]], [2.0])
    columns = curves(found)
    assert (np.diff(columns["fraction"]) > 0).all()
    assert columns["fraction"][-2] == pytest.approx(1 - 1e-6)
