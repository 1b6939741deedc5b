"""The command: what it writes, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from coco_sets import forget_new_sets
from faulty_set import plant, write_clean_set
from retinanet_plugin.tools.check_dataset.command.command import main

from retinanet_plugin import UserError

SMALL = ["--config-file", "Base-Scratch-R18.yaml", "INPUT.MIN_SIZE_TRAIN", "(144,)"]


def words(folder: Path, *more: str) -> list[str]:
    files = ["--json", str(folder / "train.json"), "--json", str(folder / "val.json")]
    return [*files, "--images", str(folder / "pictures"), "--out", str(folder / "out"), *more]


def test_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clean_set(tmp_path)
    assert main([*words(tmp_path), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "train: 5 pictures, 10 boxes, 2 classes, " in said
    assert "nothing found" in said
    assert json.loads((tmp_path / "out" / "check_dataset.json").read_text())["findings"] == []
    assert "nothing found" in (tmp_path / "out" / "check_dataset.html").read_text()
    with pytest.raises(UserError, match=r"--out: .* already holds check_dataset\.html"):
        main([*words(tmp_path), *SMALL])


def test_only_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path, "large box", "no boxes")
    assert main([*words(tmp_path), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "1 warning, 1 info" in said
    (warning, info) = json.loads((tmp_path / "out" / "check_dataset.json").read_text())["findings"]
    assert warning == {
        "severity": "warning",
        "kind": "large box",
        "file": str(tmp_path / "train.json"),
        "picture": str(tmp_path / "pictures" / "train_5.png"),
        "annotation": 11,
        "text": 'annotations[10] (id 11) in "train_5.png": bbox [0, 0, 96, 72] covers 100% of its '
        "picture",
    }
    assert info["kind"] == "no boxes"


def test_sets_of_a_config_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path, "empty box", "box outside")
    own = ["DATASETS.OWN.ROOT", str(tmp_path), "DATASETS.OWN.TRAIN_JSON", "train.json"]
    own += ["DATASETS.OWN.TRAIN_IMAGES", "pictures", "OUTPUT_DIR", str(tmp_path)]
    fixed = tmp_path / "fixed"
    with forget_new_sets():
        line = ["--fix", str(fixed), *SMALL, *own]
        assert main(line) == 1
    said = capsys.readouterr().out
    assert f"{fixed}/train.json, from {tmp_path}/train.json:" in said
    assert "  boxes dropped: empty: 1\n  boxes dropped: outside their picture: 1\n" in said
    assert "  boxes clipped to their picture: 1\n" in said
    assert f"DATASETS.OWN.TRAIN_JSON {fixed}/train.json" in said
    assert (tmp_path / "check_dataset" / "check_dataset.html").is_file()
    line = ["--json", str(fixed / "train.json"), "--images", str(tmp_path / "pictures")]
    assert main([*line, "--out", str(fixed), *SMALL]) == 0


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to check: give --config-file, or --json"):
        main([])
    with pytest.raises(UserError, match="--json and --images go together"):
        main(["--json", "train.json"])
    with pytest.raises(UserError, match="the config names no data set"):
        main(
            [
                "--config-file",
                "Base-RetinaNet.yaml",
                *("DATASETS.TRAIN", "()", "DATASETS.TEST", "()"),
            ]
        )


def test_exit_status(tmp_path: Path) -> None:
    plant(tmp_path, "empty box")
    command = [sys.executable, "-m", "retinanet_plugin.tools.check_dataset.command"]
    done = subprocess.run([*command, *words(tmp_path), *SMALL], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "2 errors" in done.stdout
