"""Known-bad files by command line: status 2, one sentence, and all other files as they were.

The commands are run by one process that has imported what they need, a child of it each, with
little more memory than it has itself.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.coco_sets import box
from tests.safety import known_bad

ROOT = Path(__file__).parents[2]
_ROOM = 3 * known_bad.GIB // 2  # beyond the imports: a small model needs a third of it
_SECONDS = 300
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1", "SOLVER.MAX_ITER", "1"),
    *("SOLVER.IMS_PER_BATCH", "1", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "TEST.DRAW_PICTURES", "0"),
    *("DATASETS.OWN.TRAIN_JSON", "train.json", "DATASETS.OWN.TRAIN_IMAGES", "images"),
]
# What is said, the files that are made, and the command line before "OUTPUT_DIR out".
Case = tuple[str, dict[str, bytes], list[str]]
Runs = tuple[dict[str, Path], dict[str, dict[str, str]]]  # folders, and their files' hashes
PLAIN = ["--config-file", "Base-Scratch-R18.yaml", *SMALL]
MINE = ["--config-file", "mine.yaml", *SMALL]


def _config(content: str) -> dict[str, bytes]:
    return {"mine.yaml": content.encode()}


def _annotations(case: str) -> dict[str, bytes]:
    return {"train.json": known_bad.ANNOTATIONS[case][0]()}


def _weights(case: str, name: str) -> dict[str, bytes]:
    return {name: known_bad.WEIGHTS[case][1]()}


CASES: dict[str, Case] = {
    "command in YAML": (
        "only plain YAML is read",
        _config("SOLVER: !!python/object/apply:os.system ['touch pwned']"),
        MINE,
    ),
    "command in a base": (
        "only plain YAML is read",
        _config("_BASE_: evil.yaml")
        | {"evil.yaml": b"SOLVER: !!python/object/apply:os.system ['touch pwned']"},
        MINE,
    ),
    "base outside": ("lies outside", _config("_BASE_: ../outside.yaml"), MINE),
    "base is a device": ("lies outside", _config("_BASE_: /dev/zero"), MINE),
    "laughs": ("more than 20000 values", _config(known_bad.laughs()), MINE),
    "pickled command": (
        "it asks for posix.system",
        _weights("command", "w.pkl"),
        [*PLAIN, "MODEL.WEIGHTS", "w.pkl"],
    ),
    "zip bomb": (
        "it unpacks from",
        _weights("zip bomb", "w.pth"),
        [*PLAIN, "MODEL.WEIGHTS", "w.pth"],
    ),
    "PNG of 60,000 x 60,000": (
        "decompression bomb",
        {"images/a.png": known_bad.png(60_000)},
        PLAIN,
    ),
    "picture for Ghostscript": ("it is none of JPEG", {"images/a.png": known_bad.EPS}, PLAIN),
    "NaN in a box": ("bbox is [0, NaN, 5, 5]", _annotations("NaN"), PLAIN),
    "1e308 in a box": ("it must be four finite numbers", _annotations("1e308"), PLAIN),
    "deep JSON": ("nested too deeply", _annotations("objects"), PLAIN),
    "picture outside": ("relative to the image folder", _annotations("way out"), PLAIN),
    "output over a file": (
        "OUTPUT_DIR: ",
        {},
        [*PLAIN, "OUTPUT_DIR", "train.json"],
    ),
    "null byte in OUTPUT_DIR": ("OUTPUT_DIR", {}, [*PLAIN, "OUTPUT_DIR", r"'a\0b'"]),
    "remote OUTPUT_DIR": ("OUTPUT_DIR: 's3://", {}, [*PLAIN, "OUTPUT_DIR", "s3://bucket/run"]),
}
GOOD = "nothing is wrong"

RUNNER = """
import json, os, resource, signal, sys, traceback
import retinanet_plugin.engine
from retinanet_plugin.cli import main
pages = int(open("/proc/self/statm").read().split()[0])
for folder, words, room, seconds in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number, name in ((1, "../stdout"), (2, "../stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(seconds)
        status = 1
        try:
            main(["train", *words])
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)  # without taking all down that was imported, which lasts longest
    _, status = os.waitpid(child, 0)
    with open(os.path.join(folder, "../status"), "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))
"""


def _make(folder: Path, files: dict[str, bytes]) -> None:
    """A small valid set, and then ``files`` in place of some of its."""
    (folder / "images").mkdir(parents=True)
    (folder / "out").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [box(1, 1, 1, [10, 10, 30, 30])],
    }
    (folder / "train.json").write_text(json.dumps(content))
    (folder.parent / "outside.yaml").write_text("SOLVER: {MAX_ITER: 7}")
    torch.save({"model": {"a": torch.zeros(1)}}, folder.parent / "outside.pth")
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _hashes(folder: Path) -> dict[str, str]:
    """Of all files but those that the run may write."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
        and folder / "work" / "out" not in path.parents
        and path.name not in ("stdout", "stderr", "status")
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of each case after its command, and the files' hashes before it."""
    top = tmp_path_factory.mktemp("bad")
    cases = {**CASES, GOOD: ("", {}, PLAIN)}
    folders = {case: top / str(i) / "work" for i, case in enumerate(cases)}
    jobs = []
    for case, (_, files, words) in cases.items():
        _make(folders[case], files)
        output = [] if "OUTPUT_DIR" in words else ["OUTPUT_DIR", "out"]
        jobs.append([str(folders[case]), [*words, *output], _ROOM, _SECONDS])
    before = {case: _hashes(folder.parent) for case, folder in folders.items()}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER],
        input=json.dumps(jobs),
        text=True,
        check=True,
        cwd=top,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return folders, before


@pytest.mark.parametrize("case", CASES)
def test_command(runs: Runs, case: str) -> None:
    folders, before = runs
    folder = folders[case]
    said = (folder.parent / "stderr").read_text()
    status = int((folder.parent / "status").read_text())
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2, said
    assert len(errors) == 1 and CASES[case][0] in errors[0]
    assert "Traceback" not in said + (folder.parent / "stdout").read_text()
    assert _hashes(folder.parent) == before[case]
    assert not list(folder.parent.rglob(known_bad.SENTINEL))


def test_nothing_is_refused_without_a_fault(runs: Runs) -> None:
    """Else the limit of memory would be what stops the others."""
    folder = runs[0][GOOD]
    status = int((folder.parent / "status").read_text())
    assert status == 0, (folder.parent / "stderr").read_text()
    assert (folder / "out" / "model_final.pth").is_file()


def test_a_process_of_its_own(tmp_path: Path) -> None:
    """As people start it, all imports included."""
    said, files, words = CASES["command in YAML"]
    _make(tmp_path / "work", files)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "train_net.py", *words, "OUTPUT_DIR", "out"],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "work" / known_bad.SENTINEL).exists()
