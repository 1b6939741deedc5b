"""The distribution of losses against sorting all samples, and against detectron2 and fvcore."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_sets import forget_new_sets
from conftest import random_image, small_config, spread_logits
from detectron2.modeling import build_model
from fvcore.nn import sigmoid_focal_loss
from small_training import SMALL
from torch import nn

from projects.focal_loss_paper import loss_distribution as command
from projects.focal_loss_paper.loss_distribution import HARDEST, measure
from projects.focal_loss_paper.loss_histogram import LossHistogram
from retinanet_plugin import UserError
from retinanet_plugin.data import synthetic

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)


def focal_losses(wrong: np.ndarray, gamma: float) -> np.ndarray:
    """Losses of negatives, without alpha."""
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
        if name == "extreme":  # logits of 70, 90 and 1000 are in one bin
            continue
        error = (1 + gamma) / 8192
        cumulated = np.concatenate([[0], losses.cumsum() / losses.sum()])
        fractions = np.arange(len(losses) + 1) / len(losses)
        interpolated = histogram.cumulative(gamma, fractions)
        assert np.abs(interpolated - cumulated).max() <= error + 1e-12
        for share in HARDEST:
            expected = losses[-round(share * len(losses)) :].sum() / losses.sum()
            assert histogram.hardest(gamma, share) == pytest.approx(expected, abs=error + 1e-12)


def test_the_bound_is_reached_by_the_worst_samples() -> None:
    """Half of them at one end of a bin, half at the other."""
    ends = torch.tensor([-12.0, -12 + 1 / 2048 - 1e-9], dtype=torch.float64)
    histogram = LossHistogram([2.0])
    histogram.add(ends.repeat(500))
    low, high = focal_losses(ends.numpy(), 2.0)
    off = histogram.cumulative(2.0, np.array([0.5]))[0] - low / (low + high)
    assert off == pytest.approx(3 / 8192, rel=1e-3)


def spread_model(*overrides: object) -> nn.Module:
    """A model whose logits are spread out as a trained one's, also in eval mode."""
    model = build_model(small_config(*overrides))
    spread_logits(model)
    with torch.no_grad():
        model.train().backbone(torch.randn(4, 3, 128, 128))
    return model


def test_samples_are_those_of_detectron2() -> None:
    """Its labels, dense targets and fvcore's focal loss on the same logits."""
    model = spread_model()
    images = [random_image(96, 160, 6), random_image(128, 96, 25), random_image(96, 96, 0)]
    theirs_cfg = small_config("MODEL.META_ARCHITECTURE", "RetinaNet")
    theirs_cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    sizes = [[8 * 2**i * 4 * 2 ** (j / 3) for j in range(3)] for i in range(5)]
    theirs_cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    theirs = build_model(theirs_cfg).eval()
    theirs.load_state_dict(model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured = measure(model, [images[:2], images[2:]], [0.0, 2.0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    expected = {"positives": 0.0, "negatives": 0.0}
    counts = {"positives": 0, "negatives": 0, "ignored": 0}
    with torch.no_grad():
        for batch in (images[:2], images[2:]):
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
    assert measured.ignored_anchors == counts["ignored"]
    assert measured.images == 3
    for name in expected:
        side = getattr(measured, name)
        assert side.count == counts[name] > 0
        assert side.total(2.0) == pytest.approx(expected[name], rel=1e-5)


def test_models_and_images_without_samples() -> None:
    model = spread_model()
    with pytest.raises(UserError, match="--num-images"):
        measure(model, [[random_image(64, 64, 0)]], [2.0])
    nn.init.constant_(model.head.cls_score.bias, float("nan"))
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS"):
        measure(model, [[random_image(64, 64, 3)]], [2.0])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Runs the command in a folder with a small dataset and weights."""
    monkeypatch.chdir(tmp_path)
    synthetic.draw_dataset(tmp_path / "data", num_train=6, num_test=4, size=64)
    model = spread_model("MODEL.RETINANET.NUM_CLASSES", 4)
    torch.save({"model": model.state_dict()}, "model.pth")

    def run_it(*args: str) -> None:
        given = ["--config-file", "Base-Scratch-R18.yaml", "--weights", "model.pth"]
        command.main([*given, "--output", "out", *SMALL, *args])

    with forget_new_sets():
        yield run_it


def test_the_command(run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    run("--gammas", "2,0")
    shown = capsys.readouterr()
    report = json.loads(Path("out/loss_distribution.json").read_text())
    assert (report["images"], report["datasets"]) == (4, ["own_test"])
    easy, focal = report["negatives"]["gammas"]
    assert (easy["gamma"], focal["gamma"]) == (0, 2)
    assert easy["held_by_hardest"]["0.1"] < focal["held_by_hardest"]["0.1"] < 1
    assert f"| {report['negatives']['samples']:,} negatives | 2 |" in shown.out
    assert Path("out/loss_distribution.png").read_bytes().startswith(b"\x89PNG")
    names, *rows = csv.reader(Path("out/loss_distribution.csv").read_text().splitlines())
    assert names[:3] == ["fraction", "positives gamma=0", "positives gamma=2"]
    table = np.array(rows, float)
    assert (np.diff(table, axis=0) >= 0).all() and (np.diff(table[:, 0]) > 0).all()
    assert table[0].tolist() == [0] * 5 and table[-1] == pytest.approx(1)
    assert table[-2, 0] == pytest.approx(1 - 1e-6)  # finer towards the hardest
    at_90 = table[np.isclose(table[:, 0], 0.9)][0]
    assert 1 - at_90[4] == pytest.approx(focal["held_by_hardest"]["0.1"], abs=1e-6)
    with pytest.raises(UserError, match="--overwrite"):
        run()
    run("--overwrite", "--dataset", "train", "--num-images", "5", "--gammas", "1")
    report = json.loads(Path("out/loss_distribution.json").read_text())
    assert (report["images"], report["datasets"]) == (5, ["own_train"])


@pytest.mark.parametrize(
    "args, named",
    [
        (["--dataset", "own_tset"], '--dataset.*"own_test"'),
        (["--weights", "no.pth"], "no.pth"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], r"MODEL\.META_ARCHITECTURE"),
        (["MODEL.RETINANET.NUM_CONVS", "2"], r"MODEL\.WEIGHTS"),
        (["--gammas", "0,1e3"], "--gammas"),
    ],
)
def test_mistakes(run: Callable, args: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        run(*args)
    assert not Path("out/loss_distribution.json").exists()
