"""Speed and accuracy: which model is meant, whose turn it is, and what is written."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from coco_sets import forget_new_sets
from conftest import small_config, spread_logits
from detectron2.modeling import build_model

from projects.focal_loss_paper.commands import speed_accuracy as command
from projects.focal_loss_paper.speed_report import draw, markdown, report
from projects.focal_loss_paper.subjects import (
    Measured,
    Subject,
    build_subject,
    read_subject,
    with_unique_names,
)
from retinanet_plugin import UserError
from retinanet_plugin.data import register_own_datasets, synthetic
from retinanet_plugin.engine import Trainer
from retinanet_plugin.evaluation.timing import inference, noise_images, time_in_turn

CPU = torch.device("cpu")
MACHINE = {"device": "abacus", "threads": 1, "torch": "9"}
# PAPER.md, table e.
PAPER = {
    "R50": [(30.5, 64), (32.5, 72), (34.3, 98), (35.1, 121), (35.7, 153)],
    "R101": [(31.9, 81), (34.4, 90), (36.0, 122), (37.1, 154), (37.8, 198)],
}


@pytest.fixture(autouse=True)
def _catalogs() -> Iterator[None]:
    with forget_new_sets():
        yield


def tiny_config(*overrides: object) -> Any:
    sizes = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96)
    return small_config(*sizes, "SOLVER.MAX_ITER", 10, *overrides)


def write_run(folder: Path, cfg: Any, lines: list[object] | None = None) -> Path:
    """A folder as training leaves it, with a random model."""
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    if lines is not None:
        (folder / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def evaluation(ap: float, prefix: str = "bbox") -> dict[str, float]:
    return {f"{prefix}/AP": ap, f"{prefix}/AP50": ap + 20, f"{prefix}/AP75": ap + 5, "iteration": 9}


# ---------------------------------------------------------------- which model


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", tiny_config(), [evaluation(12.5)])
    found = read_subject(str(folder), ["MODEL.DEVICE", "cpu"])
    assert (found.name, found.metrics["AP"]) == ("mine", 12.5)
    assert found.cfg.MODEL.WEIGHTS == str(folder / "model_final.pth")
    assert found.backbone == "ResNet-18" and found.row is None
    assert read_subject(str(folder), ["INPUT.MIN_SIZE_TEST", "80"]).metrics is None
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS: given beside .*mine"):
        read_subject(str(folder), ["MODEL.WEIGHTS", "other.pth"])
    (folder / "model_final.pth").rename(folder / "model_0000004.pth")
    with pytest.raises(UserError, match=r"has no model_final.pth"):
        read_subject(str(folder))
    (folder / "last_checkpoint").write_text("model_0000004.pth")
    found = read_subject(str(folder))
    assert found.cfg.MODEL.WEIGHTS.endswith("model_0000004.pth")
    assert found.metrics is None  # those of the last step
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"mine: has no config.yaml"):
        read_subject(str(folder))


def test_a_config_and_its_weights(tmp_path: Path) -> None:
    found = read_subject("e_speed/R101_500.yaml")
    assert (found.name, found.backbone, found.cfg.MODEL.WEIGHTS) == ("R101_500", "ResNet-101", "")
    assert (found.row.ap, found.row.milliseconds) == (34.4, 90)
    assert read_subject("retinanet_X101_32x8d_FPN_1x.yaml").backbone == "ResNeXt-101-32x8d"
    weights = tmp_path / "w.pth"
    weights.touch()
    found = read_subject(f"quickstart.yaml={weights}")
    assert (found.name, found.cfg.MODEL.WEIGHTS) == ("quickstart=w.pth", str(weights))
    found = read_subject("quickstart.yaml", ["MODEL.WEIGHTS", str(weights)])
    assert found.cfg.MODEL.WEIGHTS == str(weights)
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS: no file absent.pth"):
        read_subject("quickstart.yaml=absent.pth")
    with pytest.raises(UserError, match=r"config file: no file quickstrat.yaml"):
        read_subject("quickstrat.yaml")


def test_names_tell_models_apart() -> None:
    words = ["/x/a/seed_1", "/x/b/seed_1", "c.yaml", "../x/d.yaml", "/x/b/seed_1"]
    subjects = [Subject(w, w.rpartition("/")[2], None) for w in words]
    names = [s.name for s in with_unique_names(subjects)]
    assert names == ["a/seed_1", "b/seed_1", "c.yaml", "d.yaml", "b/seed_1 (2)"]


def test_words_that_override_begin_at_the_first_key(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    words = ["RUN", "a.yaml", "SEED", "3", "TEST.DTYPE", "bfloat16"]
    assert command.split_words(words) == (words[:2], words[2:])
    assert command.split_words(words[:2]) == (words[:2], [])


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("rounds", [1, 3])
def test_models_take_turns(rounds: int) -> None:
    """Each picture of each model once to warm up, and then as often as asked for."""
    order: list[tuple[str, Any]] = []

    def model(name: str, pause: float) -> Any:
        def run(picture: Any) -> None:
            order.append((name, picture))
            time.sleep(pause)

        return run

    models = {"slow": model("slow", 0.02), "quick": model("quick", 0.0)}
    pictures = {"slow": ["s0", "s1"], "quick": ["q0", "q1"]}
    done: list[None] = []
    times = time_in_turn(models, pictures, CPU, rounds, lambda: done.append(None))
    turn = [("slow", "s0"), ("quick", "q0"), ("slow", "s1"), ("quick", "q1")]
    assert order == turn * (1 + rounds)
    assert len(done) == len(order)
    assert {name: len(t) for name, t in times.items()} == {"slow": 2 * rounds, "quick": 2 * rounds}
    assert min(times["slow"]) >= 0.02


def test_noise_is_resized_as_pictures_are() -> None:
    pictures = noise_images(tiny_config(), 100, 120, 2)
    assert [tuple(p["image"].shape) for p in pictures] == [(3, 64, 77)] * 2
    assert (pictures[0]["height"], pictures[0]["width"]) == (100, 120)
    assert not torch.equal(pictures[0]["image"], pictures[1]["image"])


def test_what_is_timed_finds_what_the_weights_find(tmp_path: Path) -> None:
    cfg = tiny_config("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    pictures = noise_images(cfg, 64, 80, 1)
    model = build_model(cfg).eval()
    spread_logits(model)
    cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    with torch.no_grad():
        (expected,) = model(pictures)
    built = build_subject(Subject("x", "x", cfg), pictures)
    (found,) = inference(built, cfg)(pictures[0])
    assert not built.training and len(expected["instances"]) > 20
    for field in ("scores", "pred_boxes"):
        a, b = (x["instances"].get(field) for x in (found, expected))
        a, b = (getattr(x, "tensor", x) for x in (a, b))
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_detect_something(dtype: str) -> None:
    """Without that, decoding and NMS would have no work; a random head's scores are 0.01."""
    cfg = tiny_config("TEST.DTYPE", dtype)
    pictures = noise_images(cfg, 90, 120, 3)
    plain = build_model(cfg).eval()
    with torch.no_grad():
        assert len(plain(pictures[:1])[0]["instances"]) == 0
    run = inference(build_subject(Subject("x", "x", cfg), pictures), cfg)
    found = [len(run(picture)[0]["instances"]) for picture in pictures]
    assert 0 < sum(found) < 3 * 100


# ---------------------------------------------------------------- what is written


def measured(name: str, times: list[float], ap: float | None, side: int = 64) -> Measured:
    metrics = None if ap is None else {"AP": ap, "AP50": ap + 20, "AP75": ap + 5}
    subject = Subject(name, name, tiny_config("MODEL.WEIGHTS", "" if ap is None else "w.pth"))
    return Measured(subject, "noise", (side, 80), times, metrics, "")


def test_numbers_are_those_that_were_planted() -> None:
    times = [0.010, 0.020, 0.030, 0.040, 0.090]
    results = [measured("a", times, 12.3), measured("b", times[::-1], None)]
    found = report(results, MACHINE)
    first, second = found["models"]
    assert first["milliseconds"]["median"] == pytest.approx(1000 * median(times))
    assert first["milliseconds"]["quartiles"] == pytest.approx([20, 40])
    assert first["metrics"]["AP"] == 12.3 and second["metrics"] is None
    assert second["weights"] == "random"
    for depth, rows in PAPER.items():
        sizes = (400, 500, 600, 700, 800)
        for size, (ap, milliseconds) in zip(sizes, rows, strict=True):
            expected = {"name": f"{depth}_{size}", "AP": ap, "milliseconds": milliseconds}
            assert expected in found["paper"]["rows"]
    text = markdown(results, MACHINE)
    assert "| a | ResNet-18 | 64 x 80, float32 | 30 (20 to 40) | 12.3 | 32.3 | 17.3 |" in text
    assert "as trained ones: b; no AP" in text
    assert "| 12,346 (12,346 to 12,346) |" in markdown([measured("c", [12.3456], 1.0)], MACHINE)


@pytest.mark.parametrize("aps", [(None, None), (12.0, None), (12.0, 15.0)])
def test_the_figure_holds_the_papers_curves_and_ours(aps: tuple[float | None, ...]) -> None:
    results = [
        measured(name, [0.01 * i, 0.012 * i], ap, 64 * i)
        for i, (name, ap) in enumerate(zip("ab", aps, strict=True), start=1)
    ]
    left, right = draw(results, MACHINE).axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    for depth, rows in PAPER.items():
        assert curves[f"ResNet-{depth[1:]}"] == [[x, y] for y, x in rows]
    texts = " ".join(text.get_text() for text in left.texts)
    if aps == (None, None):
        assert [bar.get_width() for bar in left.patches] == pytest.approx([11, 22])
        return
    assert ("b (no AP)" in texts) == (aps[1] is None)
    courses = [
        line.get_xydata().ravel().tolist() for line in left.lines if line.get_linestyle() == "-"
    ]
    joined = pytest.approx([11, 12.0, 22, 15.0]) in courses
    assert joined == (aps[1] is not None)


def run(*words: object) -> None:
    command.main([*map(str, words)])


def test_the_command_on_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "mine", tiny_config(), [evaluation(12.5)])
    out = tmp_path / "out"
    words = ["--size", "60x80", "--pictures", 2, "--rounds", 2, "--out", out]
    run(folder, folder / "config.yaml", *words, "MODEL.DEVICE", "cpu")
    printed = capsys.readouterr().out
    assert "| mine | ResNet-18 | 64 x 85, float32 |" in printed
    assert (out / "speed_accuracy.png").read_bytes().startswith(b"\x89PNG")
    mine, random = json.loads((out / "speed_accuracy.json").read_text())["models"]
    assert mine["metrics"] == {"AP": 12.5, "AP50": 32.5, "AP75": 17.5}
    assert mine["metrics_from"] == "metrics.json"
    assert (mine["timed_on"], mine["evaluated_on"]) == ("noise", "coco_2017_val")
    assert len(mine["milliseconds"]["all"]) == 4
    assert (random["name"], random["metrics"]) == ("config", None)
    with pytest.raises(UserError, match=r"already holds speed_accuracy.png"):
        run(folder, *words)


def test_a_broken_checkpoint_is_found_before_anything_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, broken = (write_run(tmp_path / name, tiny_config()) for name in ("good", "broken"))
    (broken / "model_final.pth").write_bytes(b"no checkpoint")
    monkeypatch.setattr(command, "register_data", lambda *given: None)
    monkeypatch.setattr(command, "evaluate", lambda *given: pytest.fail("evaluated"))
    words = ["--size", "64x64", "--evaluate", "--out", tmp_path / "out", "MODEL.DEVICE", "cpu"]
    with pytest.raises(UserError, match=r"broken/model_final.pth is no checkpoint"):
        run(good, broken, *words)


def test_the_command_evaluates_as_train_net(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.draw_dataset(tmp_path / "data", num_train=1, num_test=3, size=96)
    cfg = tiny_config(
        *("DATASETS.OWN.ROOT", tmp_path / "data", "DATASETS.OWN.TEST_IMAGES", "test"),
        *("DATASETS.OWN.TEST_JSON", "annotations/test.json", "MODEL.RETINANET.NUM_CLASSES", 4),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.DRAW_PICTURES", 0),
        *("DATALOADER.NUM_WORKERS", 0),
        *("OUTPUT_DIR", tmp_path / "mine"),
    )
    folder = write_run(tmp_path / "mine", cfg)
    run(
        *(folder, "--evaluate", "--pictures", 2, "--rounds", 1, "--out", tmp_path / "out"),
        *("MODEL.DEVICE", "cpu"),
    )
    printed = capsys.readouterr().out
    assert printed.startswith("| model |") and "own_test" in printed
    (mine,) = json.loads((tmp_path / "out" / "speed_accuracy.json").read_text())["models"]
    assert mine["metrics_from"] == "evaluation"
    cfg = read_subject(str(folder), ["MODEL.DEVICE", "cpu"]).cfg
    register_own_datasets(cfg, training=False)
    expected = Trainer.evaluate(cfg, resume=False)["bbox"]
    assert mine["metrics"] == pytest.approx({key: expected[key] for key in mine["metrics"]})
    assert len(mine["metrics"]) == 3


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["SEED", 3], "no model given"),
        (["quickstart.yaml", "--evaluate"], "--evaluate: quickstart has no weights"),
        (["quickstart.yaml", "--size", "60"], '--size: "60" given; give height x width'),
        (["quickstart.yaml", "MODEL.DEVICE", "cpuu"], 'MODEL.DEVICE: "cpuu" is no device'),
        (["bccd_R18_FPN.yaml"], r"or give --size 480x640"),
        (["bccd_R18_FPN.yaml", "--size", "64x64"], "give MODEL.RETINANET.NUM_CLASSES"),
    ],
)
def test_mistakes(
    words: list[object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        run(*words, "--out", "out")
