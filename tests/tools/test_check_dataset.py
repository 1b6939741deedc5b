"""``check-dataset``: every kind of fault is found where it was planted, and fixed copies train."""

import json
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from coco_sets import any_faults, forget_new_sets, write_json
from conftest import small_config
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from faulty_set import PLANT, SOUND, Content, noise, plant, write_sound_sets
from hypothesis import HealthCheck, given, settings

from retinanet_plugin import UserError
from retinanet_plugin.data import ReadableDatasetMapper, register_own_datasets
from retinanet_plugin.data.coco_json import read_coco
from retinanet_plugin.data.findings import Rule
from retinanet_plugin.data.image_rules import check_image_files
from retinanet_plugin.tools.check_dataset import command
from retinanet_plugin.tools.check_dataset.check import Checked, check
from retinanet_plugin.tools.check_dataset.consequences import CONSEQUENCES
from retinanet_plugin.tools.check_dataset.draw import COLORS, draw
from retinanet_plugin.tools.check_dataset.fix import fix, paths_of_copies, write_copies
from retinanet_plugin.tools.check_dataset.page import html
from retinanet_plugin.tools.check_dataset.report import as_json, table
from retinanet_plugin.tools.check_dataset.sources import sources_of_config, sources_of_files


def checked(folder: Path) -> Checked:
    files = [folder / name for name in ("train.json", "val.json")]
    return check(sources_of_files(files, [folder / "images"]))


@pytest.mark.parametrize("rules", [(), *((name,) for name in PLANT), PLANT], ids=str)
def test_planted_faults_are_found_and_nothing_else(tmp_path: Path, rules: tuple[str]) -> None:
    planted = plant(tmp_path, *rules)
    result = checked(tmp_path)
    expected = Counter((severity, name) for name in rules for severity, _ in planted[name])
    found = Counter((finding.severity, finding.rule) for finding in result.findings)
    assert found == expected, [finding.message for finding in result.findings]
    for name in rules:
        messages = [(f.severity, f.message) for f in result.findings if f.rule == name]
        for severity, part in planted[name]:
            assert any(s == severity and part in message for s, message in messages), messages


def test_every_rule_has_its_consequence() -> None:
    assert list(CONSEQUENCES) == list(get_args(Rule))


def test_files_of_any_content(tmp_path: Path) -> None:
    write_sound_sets(tmp_path)
    for content in (
        *(b"", b"[]", b"{", b"\xff", b'{"images": 1}', b"1" * 5000, b"[" * 99_999, b"null"),
        *(b'{"images": [], "categories": [], "annotations": []}', b'{"images": [[[]], 1, null]}'),
        b'{"images": [{"id": 1, "file_name": "\\ud800/a\\u0000b.png"}], "annotations": [{"bbox": '
        + b"[" * 900
        + b"]" * 900
        + b'}], "categories": [{"id": [], "name": {}}]}',
    ):
        (tmp_path / "train.json").write_bytes(content)
        result = checked(tmp_path)
        train = [f for f in result.findings if f.file.name == "train.json"]
        assert any(f.rule == "unusable-file" for f in train), content[:50]
        assert "unusable-file" in table(result)
        json.dumps(as_json(result), allow_nan=False)
        html(result).encode()
        with pytest.raises(UserError, match=r"--fix: .*train\.json"):
            fix(result)


# ---------------------------------------------------------------- fixed copies


def fixed(folder: Path, result: Checked) -> Path:
    """Writes the copies into a folder beside the same images; returns it."""
    out = folder / "fixed"
    sources = [one.source for one in result.sets]
    write_copies(fix(result), paths_of_copies(sources, out, overwrite=True))
    (out / "images").exists() or (out / "images").symlink_to(folder / "images")
    return out


def test_fixed_copies_are_accepted_and_train_a_step(tmp_path: Path) -> None:
    plant(tmp_path, *PLANT)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    out = fixed(tmp_path, checked(tmp_path))
    again = checked(out)
    # What --fix leaves to people
    assert Counter(f.rule for f in again.findings if f.severity != "info") == {
        "unused-class": 2,
        "duplicate-image": 2,
        "large-box": 1,
    }
    assert not again.count("error")
    content = json.loads((out / "train.json").read_text())
    boxes = {i: [r["bbox"] for r in content["annotations"] if r["image_id"] == i] for i in (3, 4)}
    assert boxes[3][2:] == [[60, 40, 36, 20]]  # clipped
    assert [4, 5, 40, 30] in boxes[4] and len(boxes[4]) == 2  # no duplicates
    names = {row["id"]: row["name"] for row in content["categories"]}
    assert names == {1: "cat", 2: "dog", 31: "emu", 21: "cow"}
    assert {row["category_id"] for row in content["annotations"]} == {1, 2}
    read = [read_coco(out / "train.json"), read_coco(out / "val.json", for_training=False)]
    assert not any(coco.changes for coco in read)
    assert read[0].classes == read[1].classes
    assert before == {path: path.read_bytes() for path in before}
    cfg = small_config(
        *("DATASETS.OWN.ROOT", out, "DATASETS.OWN.TRAIN_JSON", "train.json"),
        *("DATASETS.OWN.TRAIN_IMAGES", "images", "DATASETS.OWN.TEST_JSON", "val.json"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.RETINANET.NUM_CLASSES", "-1"),
        *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", tmp_path),
    )
    with forget_new_sets():
        register_own_datasets(cfg)
        mapper = ReadableDatasetMapper(cfg, is_train=True)
        batch = [mapper(entry) for entry in DatasetCatalog.get("own_train")]
        losses = build_model(cfg)(batch[::4])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(any_faults(SOUND))
def test_no_errors_means_that_training_accepts_it(
    tmp_path_factory: pytest.TempPathFactory, content: Content
) -> None:
    """Anything in place of anything: the command and the check before training agree."""
    folder = tmp_path_factory.getbasetemp() / "wild"
    folder.exists() or write_sound_sets(folder)
    file = write_json(folder, content)
    result = checked(folder)
    refused = None
    try:
        check_image_files(read_coco(file), folder / "images")
    except UserError as error:
        refused = str(error)
    errors = [f for f in result.findings if f.severity == "error" and f.rule != "classes-differ"]
    assert bool(errors) == bool(refused), (refused, errors)
    json.dumps(as_json(result), allow_nan=False)
    table(result)
    try:
        out = fixed(folder, result)
    except UserError:
        return
    read_coco(out / "train.json")
    assert not checked(out).count("error")


def test_originals_are_never_replaced(tmp_path: Path) -> None:
    write_sound_sets(tmp_path)
    files = [tmp_path / name for name in ("train.json", "val.json")]
    sources = sources_of_files(files, [tmp_path / "images"])
    with pytest.raises(UserError, match=r"--fix: .*train\.json"):
        paths_of_copies(sources, tmp_path, overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "val.json").touch()
    with pytest.raises(UserError, match=r"--fix: .*val\.json"):
        paths_of_copies(sources, tmp_path / "out", overwrite=False)


# ---------------------------------------------------------------- sources and page


def test_registered_datasets(tmp_path: Path) -> None:
    plant(tmp_path)
    with forget_new_sets():
        register_coco_instances("mine", {}, str(tmp_path / "train.json"), str(tmp_path / "images"))
        DatasetCatalog.register("other", list)
        cfg = small_config("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "()")
        (source,) = sources_of_config(cfg)
        cfg.DATASETS.TEST = ("other",)
        with pytest.raises(UserError, match=r'DATASETS\.TEST: "other"'):
            sources_of_config(cfg)
    assert (source.json_file, source.images) == (tmp_path / "train.json", tmp_path / "images")


def test_page_shows_every_rule_and_runs_nothing_of_the_data(tmp_path: Path) -> None:
    plant(tmp_path, *PLANT)
    file = tmp_path / "train.json"
    hostile = "<script>alert(1)</script>\"'&.png"
    content = json.loads(file.read_text())
    content["images"][-1]["file_name"] = hostile
    content["images"].append({"id": 99, "file_name": "\u001b[31m", "width": 1, "height": 1})
    content["categories"][0]["name"] = hostile
    file.write_text(json.dumps(content))
    result = checked(tmp_path)
    document = html(result)
    assert document.count("<script>") == document.count("<script></script>") == 1
    assert "\x1b" not in document + table(result)
    for name in PLANT:
        assert f'-{name}"' in document
    assert document.count("<img ") > len(PLANT)
    assert len(document) < 5e6


@pytest.mark.parametrize("box", [(-300.0, -9.0, 700.0, 20.0), (0.0, 0.0, 1e9, 1e9), (5, 5, 5, 9)])
def test_any_box_can_be_drawn(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    noise(0).save(tmp_path / "a.png")
    drawn = draw(str(tmp_path / "a.png"), "error", box, [box, (1, 1, 9, 9)])
    assert (drawn == COLORS["error"]).all(axis=2).any()


# ---------------------------------------------------------------- the command


def arguments(folder: Path) -> list[str]:
    files = ["--json", str(folder / "train.json"), "--json", str(folder / "val.json")]
    return [*files, "--images", str(folder / "images"), "--output", str(folder / "out")]


def test_command_on_warnings(tmp_path: Path) -> None:
    plant(tmp_path, "large-box", "no-boxes")
    assert command.main(arguments(tmp_path)) == 0
    assert (tmp_path / "out" / "check_dataset.html").is_file()
    written = json.loads((tmp_path / "out" / "check_dataset.json").read_text())
    assert written["counts"] == {"error": 0, "warning": 1, "info": 1}
    warning, info = written["findings"]
    warning.pop("message")
    assert warning == {
        "severity": "warning",
        "rule": "large-box",
        "file": str(tmp_path / "train.json"),
        "entry": "annotations[10]",
        "image": str(tmp_path / "images" / "train_5.png"),
    }
    assert info["rule"] == "no-boxes"
    with pytest.raises(UserError, match=r"--output: .*check_dataset\.html"):
        command.main(arguments(tmp_path))


def test_command_fixes_the_datasets_of_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path, "empty-box", "box-outside")
    own = ["DATASETS.OWN.ROOT", str(tmp_path), "DATASETS.OWN.TRAIN_JSON", "train.json"]
    own += ["DATASETS.OWN.TRAIN_IMAGES", "images", "OUTPUT_DIR", str(tmp_path)]
    out = tmp_path / "fixed"
    with forget_new_sets():
        assert (
            command.main(["--config-file", "Base-Scratch-R18.yaml", "--fix", str(out), *own]) == 1
        )
    printed = capsys.readouterr().out
    assert "annotations removed (empty-box): 2\n" in printed
    assert "annotations changed (box-outside): 1\n" in printed
    assert f"DATASETS.OWN.TRAIN_JSON {out}/own_train.json" in printed
    assert (tmp_path / "check_dataset" / "check_dataset.html").is_file()
    args = ["--json", str(out / "own_train.json"), "--images", str(tmp_path / "images")]
    assert command.main([*args, "--output", str(out)]) == 0


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], "--config-file"),
        (["--json", "a.json"], "--json and --images"),
        (["--json", "b.json", "--images", "images"], r'--json: b\.json .*"a\.json"'),
        (["--json", "a.json", "--images", "image"], r'--images: image .*"images"'),
        (["--json", "a.json", *["--images", "images"] * 2], "--images: given 2 times for 1"),
        (["--config-file", "Base-RetinaNet.yaml", "DATASETS.TEST", "()"], "DATASETS"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "a.json").touch()
    with pytest.raises(UserError, match=named):
        command.main([*args, "DATASETS.TRAIN", "()"] if "DATASETS.TEST" in args else args)
