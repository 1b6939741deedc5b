"""Bad files given to ``retinanet train``: status 2, one line, and all other files unchanged.

One process imports the package, and runs each command in a child with little more memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.coco_sets import write_set
from tests.safety import known_bad

ROOT = Path(__file__).parents[2]
_MEMORY = 3 * known_bad.GIB // 2  # beyond the imports; a small model needs a third of it
_SECONDS = 300
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1", "SOLVER.MAX_ITER", "1"),
    *("SOLVER.IMS_PER_BATCH", "1", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "TEST.DRAW_IMAGES", "0"),
    *("DATASETS.OWN.TRAIN_JSON", "train.json", "DATASETS.OWN.TRAIN_IMAGES", "images"),
]
Files = dict[str, bytes]
Runs = dict[str, tuple[Path, dict[Path, bytes]]]  # by case: the folder, and files before


def _weights(case: str) -> bytes:
    return known_bad.WEIGHTS[case][1]()


def _annotations(case: str) -> Files:
    return {"train.json": known_bad.ANNOTATIONS[case][0]()}


COMMAND = known_bad.COMMAND_YAML.encode()
# What the error names, the files, and the overrides.
CASES: dict[str, tuple[str, Files, list[str]]] = {
    "command in YAML": ("mine.yaml", {"mine.yaml": COMMAND}, []),
    "command in a base": ("b.yaml", {"mine.yaml": b"_BASE_: b.yaml", "b.yaml": COMMAND}, []),
    "base outside": ("../outside.yaml", {"mine.yaml": b"_BASE_: ../outside.yaml"}, []),
    "laughs": ("mine.yaml", {"mine.yaml": known_bad.laughs().encode()}, []),
    "pickled command": ("w.pkl", {"w.pkl": _weights("command")}, ["MODEL.WEIGHTS", "w.pkl"]),
    "zip bomb": ("w.pth", {"w.pth": _weights("zip bomb")}, ["MODEL.WEIGHTS", "w.pth"]),
    "PNG of 60,000 x 60,000": ("a.png", {"images/a.png": known_bad.png(60_000)}, []),
    "program for Ghostscript": ("a.png", {"images/a.png": known_bad.EPS}, []),
    "deep JSON": ("train.json", _annotations("objects"), []),
    "image outside": ("file_name", _annotations("way out"), []),
    "output over a file": ("OUTPUT_DIR", {}, ["OUTPUT_DIR", "train.json"]),
    "null byte in OUTPUT_DIR": ("OUTPUT_DIR", {}, ["OUTPUT_DIR", r"'a\0b'"]),
    "remote OUTPUT_DIR": ("OUTPUT_DIR", {}, ["OUTPUT_DIR", "s3://bucket/run"]),
}
GOOD = "nothing is wrong"

RUNNER = """
import json, os, resource, signal, sys, traceback
from retinanet_plugin import cli
from retinanet_plugin.tools.train import command
pages = int(open("/proc/self/statm").read().split()[0])
for folder, args, memory, seconds in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number, name in ((1, "../stdout"), (2, "../stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(seconds)
        status = 1
        try:
            cli.main(args)
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)  # skips the slow shutdown of the interpreter
    _, status = os.waitpid(child, 0)
    with open(os.path.join(folder, "../status"), "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))
"""


def _make(folder: Path, files: Files) -> list[str]:
    """Writes a small valid dataset, then ``files`` over it; returns the command's arguments."""
    write_set(folder)
    (folder / "out").mkdir()
    (folder.parent / "outside.yaml").write_text("SOLVER: {MAX_ITER: 7}")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    config = "mine.yaml" if "mine.yaml" in files else "Base-Scratch-R18.yaml"
    return ["train", "--config-file", config, *SMALL, "OUTPUT_DIR", "out"]


def _content(folder: Path) -> dict[Path, bytes]:
    """All files that the command must not change."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and folder / "work" / "out" not in path.parents
        and path.name not in ("stdout", "stderr", "status")
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of each case after its command, and its files from before."""
    top = tmp_path_factory.mktemp("bad")
    cases = {**CASES, GOOD: ("", {}, [])}
    jobs, result = [], {}
    for i, (case, (_, files, overrides)) in enumerate(cases.items()):
        folder = top / str(i) / "work"
        args = _make(folder, files)
        jobs.append([str(folder), [*args, *overrides], _MEMORY, _SECONDS])
        result[case] = folder, _content(folder.parent)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", RUNNER]
    subprocess.run(command, input=json.dumps(jobs), text=True, check=True, cwd=top, env=environment)
    return result


@pytest.mark.parametrize("case", CASES)
def test_command(runs: Runs, case: str) -> None:
    work, before = runs[case]
    folder = work.parent
    stderr = (folder / "stderr").read_text()
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (folder / "status").read_text() == "2", stderr
    assert len(errors) == 1 and CASES[case][0] in errors[0]
    assert "Traceback" not in stderr + (folder / "stdout").read_text()
    assert _content(folder) == before
    assert not list(folder.rglob(known_bad.SENTINEL))


def test_good_files_train(runs: Runs) -> None:
    """Otherwise the limit of memory might be what stops the others."""
    folder, _ = runs[GOOD]
    assert (folder.parent / "status").read_text() == "0", (folder.parent / "stderr").read_text()
    assert (folder / "out" / "model_final.pth").is_file()
