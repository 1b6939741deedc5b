"""Known-bad files one by one: a sentence each, no code run, nothing that hangs, nothing written."""

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
from PIL import EpsImagePlugin, Image

from retinanet_plugin import UserError, get_config
from retinanet_plugin.config_file import load_yaml
from retinanet_plugin.data import images
from retinanet_plugin.data.coco_json import read_coco
from retinanet_plugin.data.coco_rules import CocoDataset
from retinanet_plugin.data.image_rules import check_image_files
from retinanet_plugin.data.images import ReadableDatasetMapper
from retinanet_plugin.engine.checkpoint import SafeCheckpointer
from retinanet_plugin.engine.safe_pickle import load_arrays
from retinanet_plugin.errors import printable
from tests.safety import known_bad

_SECONDS = 60  # until what hangs is given up
_ROOM = 2 * known_bad.GIB  # of memory, beyond what the tests take anyway


@pytest.fixture(autouse=True)
def _bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory of its own, and limits of time and memory."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with limited(_SECONDS, _ROOM):
        yield
    assert not list(tmp_path.rglob(known_bad.SENTINEL))


@contextmanager
def limited(seconds: int, room: int) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def is_sentence(text: str) -> bool:
    return text == printable(text, 100_000) and len(text) < 1500


@pytest.mark.parametrize("case", known_bad.CONFIGS)
def test_config(case: str, tmp_path: Path) -> None:
    make, said = known_bad.CONFIGS[case]
    (tmp_path / "outside.yaml").write_text("SOLVER: {MAX_ITER: 7}")
    make(Path())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said) as caught:
        get_config("mine.yaml")
    assert is_sentence(printable(str(caught.value)))
    assert "mine.yaml" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("working", "config", "base"),
    [
        ("project", "experiments/a/mine.yaml", "../../Base.yaml"),
        ("project", "experiments/mine.yaml", "{project}/Base.yaml"),
        ("elsewhere", "configs/a/b/mine.yaml", "../../c/Base.yaml"),
        ("elsewhere", "x/mine.yaml", "below/Base.yaml"),
        ("elsewhere", "x/mine.yaml", "[below/Other.yaml, Base.yaml]"),
    ],
)
def test_bases_as_people_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, working: str, config: str, base: str
) -> None:
    base = base.format(project=tmp_path / "project")
    mine = tmp_path / "project" / config
    for name in base.strip("[]").split(", "):
        file = mine.parent / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("SOLVER: {MAX_ITER: 7, BASE_LR: 1.0}")
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(f"_BASE_: {base}\nSOLVER: {{BASE_LR: 2.0}}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / working)
    cfg = get_config(mine)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (7, 2.0)


def test_a_link_to_a_config_whose_base_is_beside_its_target(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for name, text in (("mine", "_BASE_: Base.yaml"), ("Base", "SOLVER: {MAX_ITER: 7}")):
        (tmp_path / "store" / f"{name}.yaml").write_text(text)
        Path(f"{name}.yaml").symlink_to(tmp_path / "store" / f"{name}.yaml")
    assert get_config("mine.yaml").SOLVER.MAX_ITER == 7


def test_aliases_as_people_use_them() -> None:
    Path("base.yaml").write_text(
        "A: &solver {MAX_ITER: 7, STEPS: [3]}\nSOLVER: {<<: *solver, BASE_LR: 2.0}\n"
    )
    Path("mine.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\nA: {STEPS: [4]}")
    assert load_yaml(Path("mine.yaml")) == {
        "A": {"MAX_ITER": 7, "STEPS": [4]},
        "SOLVER": {"MAX_ITER": 8, "STEPS": [3], "BASE_LR": 2.0},
    }


def test_merging_is_detectron2s(tmp_path: Path) -> None:
    Path("a.yaml").write_text("X: {P: 1, Q: {R: 2}}\nY: [1]\nZ: {P: 1}")
    Path("b.yaml").write_text("X: {Q: {S: 3}}\nZ: 4\nW: 5")
    Path("mine.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nX: {P: 6, Q: {R: 7}}\nV: {}")
    theirs = CfgNode.load_yaml_with_base("mine.yaml", allow_unsafe=False)
    assert load_yaml(Path("mine.yaml")) == theirs


@pytest.mark.parametrize("case", known_bad.ANNOTATIONS)
def test_annotations(case: str, tmp_path: Path) -> None:
    make, said = known_bad.ANNOTATIONS[case]
    path = tmp_path / "train.json"
    path.write_bytes(make())
    for bad_boxes in ("error", "fix"):
        with pytest.raises(UserError, match=said) as caught:
            read_coco(path, bad_boxes=bad_boxes)
        assert is_sentence(str(caught.value))


def test_ten_million_points_are_read(tmp_path: Path) -> None:
    """Ordinary JSON, only long: a tenth of it here."""
    points = "1," * 999_999 + "1"
    path = tmp_path / "train.json"
    path.write_bytes(known_bad.coco_with_outline(points))
    assert read_coco(path).changes == ()


def test_brackets_within_texts_nest_nothing(tmp_path: Path) -> None:
    """And a text ends where the JSON's does, whatever is escaped in it."""
    path = tmp_path / "train.json"
    name = "[{" * 100 + '"' + "\\" + '"\\'
    path.write_bytes(known_bad.coco_with_name(name))
    assert list(read_coco(path).classes.values()) == ["cat", name]


def _row() -> dict[str, object]:
    return {"id": 1, "file_name": "a.png", "width": 40, "height": 30}


@pytest.mark.parametrize("case", known_bad.PICTURES)
def test_picture(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = known_bad.PICTURES[case]
    _pretend_ghostscript(tmp_path, monkeypatch)
    make(Path("a.png"))
    dataset = CocoDataset(Path("t.json"), {"images": [_row()]})
    list(dataset.check())
    with pytest.raises(UserError, match=said) as caught:
        check_image_files(dataset, Path())
    assert is_sentence(str(caught.value))
    mapper = ReadableDatasetMapper(True, augmentations=[], image_format="BGR")
    with pytest.raises(UserError, match=said) as caught:
        mapper(_row())
    assert is_sentence(str(caught.value))
    with pytest.raises((OSError, ValueError, Image.DecompressionBombError), match=said):
        images.read_image("a.png", "RGB")


def _pretend_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/{known_bad.SENTINEL}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)


def test_detectron2_would_start_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the case above would show nothing."""
    _pretend_ghostscript(tmp_path, monkeypatch)
    Path("a.png").write_bytes(known_bad.EPS)
    with pytest.raises(OSError):
        read_image("a.png")
    (tmp_path / known_bad.SENTINEL).unlink()


class _Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize("case", known_bad.WEIGHTS)
def test_weights(case: str, tmp_path: Path) -> None:
    suffix, make, said = known_bad.WEIGHTS[case]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(make())
    with pytest.raises(UserError, match=said) as caught:
        SafeCheckpointer(_Small(), str(tmp_path)).load(str(path))
    assert is_sentence(str(caught.value))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("bytes_behind", "value"), [(8, 1), (10, 8), (10, 12), (10, 99)])
def test_a_checkpoint_damaged_in_its_directory(
    tmp_path: Path, bytes_behind: int, value: int
) -> None:
    """By it, entries are encrypted, compressed, or compressed in a way that nobody knows."""
    path = tmp_path / "model_0000001.pth"
    torch.save({"model": {"a": torch.zeros(4)}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + bytes_behind] = value
    data[data.index(b"PK\3\4") + bytes_behind - 2] = value
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"model_0000001.pth is damaged \(.*give another OUTPUT_DIR"
    ):
        SafeCheckpointer(_Small(), str(tmp_path)).resume_or_load("", resume=True)


def test_a_run_takes_no_checkpoint_from_elsewhere(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(4)}}, tmp_path / "outside.pth")
    Path("last_checkpoint").write_text("../outside.pth")
    model = _Small()
    SafeCheckpointer(model, ".").resume_or_load("", resume=True)
    assert model.a.equal(torch.zeros(4))


def test_the_programs_would_run(tmp_path: Path) -> None:
    """Else the cases above would show nothing."""
    pickle.loads(pickle.dumps(known_bad.Command()))
    Path(known_bad.SENTINEL).unlink()
    yaml.unsafe_load(f"!!python/object/apply:os.system ['touch {known_bad.SENTINEL}']")
    Path(known_bad.SENTINEL).unlink()


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_are_as_they_were_pickled(protocol: int) -> None:
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
    expected, found = pickle.loads(data), load_arrays(io.BytesIO(data))
    for name, array in expected.pop("model").items():
        ours = found["model"][name]
        assert ours.dtype == array.dtype and ours.shape == array.shape, name
        assert np.array_equal(ours, array), name
        if name in ("plain", "columns first", "no dimension"):
            assert torch.from_numpy(ours).equal(torch.from_numpy(array))
    found.pop("model")
    assert found == expected
    assert type(found["number"]) is np.float64
