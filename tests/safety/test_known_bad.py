"""Bad files one by one: an error that names the file, no code run, nothing written, no hang."""

import io
import os
import pickle
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from PIL import EpsImagePlugin

from retinanet_plugin import UserError, get_config
from retinanet_plugin.config_file import load_yaml
from retinanet_plugin.data import ReadableDatasetMapper
from retinanet_plugin.data.coco_json import read_coco
from retinanet_plugin.engine.checkpoint import SafeCheckpointer
from retinanet_plugin.engine.safe_pickle import load_arrays
from retinanet_plugin.errors import printable
from tests.safety import known_bad

_SECONDS = 60
_MEMORY = 2 * known_bad.GIB  # beyond what the process has


@pytest.fixture(autouse=True)
def _limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory of its own, and limits of time and memory."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with limited(_SECONDS, _MEMORY):
        yield
    assert not list(tmp_path.rglob(known_bad.SENTINEL))


@contextmanager
def limited(seconds: int, memory: int) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def check(error: pytest.ExceptionInfo[UserError], *named: str) -> None:
    """One printable line, not too long, with the names."""
    text = str(error.value)
    assert all(name in text for name in named)
    assert len(text) < 1500 and (text == printable(text) or named == ("mine.yaml",))


@pytest.mark.parametrize("case", known_bad.CONFIGS)
def test_config(case: str, tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text("SOLVER: {MAX_ITER: 7}")
    known_bad.CONFIGS[case](Path())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        get_config("mine.yaml")
    check(error, "mine.yaml")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "working, base",
    [
        ("project", "../../Base.yaml"),
        ("project", "{tmp_path}/project/Base.yaml"),
        ("elsewhere", "../b/Base.yaml"),
        ("elsewhere", "[below/Other.yaml, Base.yaml]"),
    ],
)
def test_usual_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, working: str, base: str
) -> None:
    """Bases of the project that is worked in, or near the config."""
    mine = tmp_path / "project" / "configs" / "a" / "mine.yaml"
    base = base.format(tmp_path=tmp_path)
    for name in base.strip("[]").split(", "):
        (mine.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (mine.parent / name).write_text("SOLVER: {MAX_ITER: 7, BASE_LR: 1.0}")
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(f"_BASE_: {base}\nSOLVER: {{BASE_LR: 2.0}}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / working)
    solver = get_config(mine).SOLVER
    assert (solver.MAX_ITER, solver.BASE_LR) == (7, 2.0)


def test_merging_is_detectron2s() -> None:
    Path("a.yaml").write_text("X: {P: 1, Q: {R: 2}}\nY: [1]\nZ: {P: 1}")
    Path("b.yaml").write_text("X: {Q: {S: 3}}\nW: 5")
    Path("mine.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nX: {P: 6, Q: {R: 7}}\nV: {}")
    theirs = CfgNode.load_yaml_with_base("mine.yaml", allow_unsafe=False)
    assert load_yaml(Path("mine.yaml")) == theirs


@pytest.mark.parametrize("case", known_bad.ANNOTATIONS)
def test_annotations(case: str) -> None:
    make, key = known_bad.ANNOTATIONS[case]
    Path("train.json").write_bytes(make())
    for bad_boxes in ("error", "fix"):
        with pytest.raises(UserError) as error:
            read_coco(Path("train.json"), bad_boxes=bad_boxes)
        check(error, "train.json", key)


@pytest.mark.parametrize("case", known_bad.IMAGES)
def test_image(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_ghostscript(tmp_path, monkeypatch)
    known_bad.IMAGES[case](Path("a.png"))
    with pytest.raises(UserError) as error:
        map_image(Path("a.png"))
    check(error, "a.png")


def map_image(path: Path) -> None:
    mapper = ReadableDatasetMapper(True, augmentations=[], image_format="BGR")
    mapper({"id": 1, "file_name": str(path), "width": 40, "height": 30})


def _fake_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/{known_bad.SENTINEL}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)


def test_the_programs_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the cases above would show nothing."""
    pickle.loads(pickle.dumps(known_bad.Command()))
    Path(known_bad.SENTINEL).unlink()
    yaml.unsafe_load(known_bad.COMMAND_YAML)
    Path(known_bad.SENTINEL).unlink()
    _fake_ghostscript(tmp_path, monkeypatch)
    Path("a.png").write_bytes(known_bad.EPS)
    with pytest.raises(OSError):
        read_image("a.png")  # detectron2's
    (tmp_path / known_bad.SENTINEL).unlink()


@pytest.mark.parametrize("case", known_bad.WEIGHTS)
def test_weights(case: str, tmp_path: Path) -> None:
    suffix, make = known_bad.WEIGHTS[case]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(make())
    model = torch.nn.ParameterDict({"a": torch.zeros(4)})
    with pytest.raises(UserError) as error:
        SafeCheckpointer(model, str(tmp_path)).load(str(path))
    check(error, "MODEL.WEIGHTS: ", str(path))


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_are_read(protocol: int) -> None:
    arrays = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "big endian": np.arange(6, dtype=">i8"),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "no dimension": np.array(True),
        "nothing": np.zeros((0, 3), np.float16),
        "text": np.array(["ä", "bcd"]),
        "bytes": np.array([b"a", b"bcd"]),
    }
    content = {"model": arrays, "number": np.float64(2.5), 3: [None, ("x", b"\xff"), True]}
    data = pickle.dumps(content, protocol)
    loaded, expected = load_arrays(io.BytesIO(data)), pickle.loads(data)
    for name, array in expected.pop("model").items():
        ours = loaded["model"][name]
        assert ours.dtype == array.dtype and ours.shape == array.shape, name
        assert np.array_equal(ours, array), name
    torch.from_numpy(loaded.pop("model")["columns first"])
    assert loaded == expected and type(loaded["number"]) is np.float64
