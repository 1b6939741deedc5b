"""Inputs made at random and by damaging good ones: nothing but ``UserError`` may come of them.

    python -m tests.safety.fuzz --minutes 10               # all targets, in turn
    python -m tests.safety.fuzz --minutes 2 --only pickle  # one

in the project's folder. What fails is shrunk by hypothesis and printed; the exit status is 1 then.
``test_fuzz.py`` tries a few inputs of each target, the same ones each time.
"""

import argparse
import io
import json
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import get_cfg
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet_plugin import UserError, add_retinanet_config, get_config
from retinanet_plugin.data.coco_json import BAD_BOXES, read_coco
from retinanet_plugin.data.coco_rules import CocoDataset
from retinanet_plugin.data.image_rules import check_image_files
from retinanet_plugin.data.images import ReadableDatasetMapper
from retinanet_plugin.engine.checkpoint import SafeCheckpointer
from retinanet_plugin.engine.setup import check_names, choose_device
from retinanet_plugin.tools.convert_dataset import read
from tests.data.coco_sets import valid_content

_SECONDS = 20  # that one input may take
_ROOM = 2**31  # bytes of memory that it may take
SIZE = (24, 16)  # of the pictures that are damaged


@dataclass(frozen=True)
class Target:
    """What is made up, and what is done with it in a folder of its own."""

    inputs: st.SearchStrategy[Any]
    use: Callable[[Path, Any], None]


@contextmanager
def _limited() -> Iterator[None]:
    """What hangs becomes an error, and what takes too much memory a MemoryError."""

    def give_up(*_: object) -> None:
        raise AssertionError(f"not done after {_SECONDS} s")

    handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def attempt(target: Target, folder: Path, content: Any) -> None:
    """Uses one input; a UserError is as good as success.

    Raises:
        Exception: whatever else comes out, which is a fault of the plugin.
    """
    try:
        with _limited():
            target.use(folder, content)
    except UserError as error:
        assert str(error)


# ---------------------------------------------------------------- annotations

_NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2, 7, 10, 12, 2**31, 2**63, 10**400, 1e308, 5e-324, -0.0]),
)
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.text(max_size=8) | st.sampled_from(["a.png", ".."]),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4) | st.just("id"), inner)
    ),
    max_leaves=8,
)
_PLACES = [
    (name, i, key)
    for name, rows in valid_content().items()
    if isinstance(rows, list)
    for i, row in enumerate(rows)
    for key in (*row, "ignore", "segmentation", "keypoints")
]
_WORDS = [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"NaN", b"-Infinity", b"1e999", b"null"]


@st.composite
def _damaged(draw: st.DrawFn, good: bytes, words: list[bytes]) -> bytes:
    """Good bytes with some replaced, taken out, doubled, moved, or cut off at the end."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 1, 2, 4, 8, 64, 1000])))
        new = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from(words),
                st.just(bytes(data[start:end]) * 2),
                st.sampled_from([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]),
            )
        )
        data[start:end] = new
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data)


@st.composite
def _annotations(draw: st.DrawFn) -> tuple[bytes, str]:
    content = valid_content()
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=1)):
        content[name] = draw(_VALUES)
    for name, i, key in draw(st.lists(st.sampled_from(_PLACES), max_size=4)):
        if isinstance(content[name], list) and i < len(content[name]):
            row = content[name][i]
            if isinstance(row, dict):
                row[key] = draw(_VALUES)
    return json.dumps(content).encode(), draw(st.sampled_from(BAD_BOXES))


def _use_annotations(folder: Path, content: tuple[bytes, str]) -> None:
    path = folder / "fuzzed.json"
    path.write_bytes(content[0])
    read_coco(path, bad_boxes=content[1])


_VOC = b"""<?xml version="1.0"?>
<annotation><filename>a.png</filename><size><width>24</width><height>16</height></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9.5</ymax></bndbox></object></annotation>"""
# Of other formats: where the annotations are, a good file of them, what else is there, and words
_FORMATS: dict[str, tuple[str, bytes, dict[str, bytes], list[bytes]]] = {
    "voc": (
        "Annotations/a.xml",
        _VOC,
        {},
        [b"<!ENTITY a 'b'>", b"<!DOCTYPE a [", b"]>", b"&a;", b"<object>", b"</object>", b"<!--"],
    ),
    "yolo": (
        "labels/a.txt",
        b"0 0.5 0.5 0.25 0.25\n1 0.5 0.5 0.2 0.1 0.3 0.3\n",
        {"classes.txt": b"cat\ndog\n"},
        [b"nan", b"inf", b"1e999", b"-1", b"\0", b"\r", b"9" * 5000],
    ),
    "yolo, yaml": (
        "data.yaml",
        b"path: .\ntrain: images\nval: [images]\nnames: {0: cat, 1: dog}\nnc: 2\n",
        {"labels/a.txt": b"0 0.5 0.5 0.25 0.25\n"},
        [b"../..", b"/dev/zero", b"[", b"{", b"null", b"!!python/name:os.system", b"9" * 5000],
    ),
    "csv": (
        "a.csv",
        b"path,x1,y1,x2,y2,class\nimages/a.png,1,2,9,9,cat\nimages/a.png,,,,,\n",
        {},
        [b'"', b",", b"nan", b"1e999", b"../../a", b"\0", b"\r", b"9" * 5000],
    ),
}


@st.composite
def _other_format(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(_FORMATS)))
    _, good, _, words = _FORMATS[name]
    return name, draw(_damaged(good, words))


def _use_other_format(folder: Path, content: tuple[str, bytes]) -> None:
    name, data = content
    place, _, others, _ = _FORMATS[name]
    root = folder / name
    for file, text in {"images/a.png": _pictures()["PNG"], **others, place: data}.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(text)
    read(root / place if place.startswith(("a.", "data.")) else root, name.split(",")[0])


# ---------------------------------------------------------------- configurations


@cache
def _keys() -> list[str]:
    cfg = get_cfg()
    add_retinanet_config(cfg)

    def leaves(node: dict[str, Any], prefix: str) -> Iterator[str]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            yield prefix + key

    return [*leaves(cfg, ""), "_BASE_", "UNKNOWN"]


_SCALARS = st.one_of(
    _NUMBERS,
    st.none() | st.booleans() | st.text(max_size=12) | st.dates() | st.binary(max_size=4),
    st.sampled_from(["focal", "cuda", "cpu", "()", "(1,", "[" * 300, "-" * 3000 + "1", "..", "~"]),
    st.sampled_from(["/dev/zero", "fuzzed.yaml", "Base-RetinaNet.yaml", "a.yaml", "\0", "\ud800"]),
)


@st.composite
def _config_text(draw: st.DrawFn) -> bytes:
    content: dict[str, Any] = {}
    for _ in range(draw(st.integers(0, 4))):
        node, parts = content, draw(st.sampled_from(_keys())).split(".")
        for part in parts[:-1]:
            below = node.setdefault(part, {})
            node = node[part] = below if isinstance(below, dict) else {}
        lists = st.lists(_SCALARS, max_size=4) | st.dictionaries(st.text(max_size=3), _SCALARS)
        node[parts[-1]] = draw(_SCALARS | lists)
    text = yaml.dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    words = [
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!int ",
        b"!!timestamp ",
        b"!!set ",
        b"!!omap ",
        b"!!binary ",
    ]
    words += [
        b"!!binary ",
        b"!!python/name:os.system ",
        b"---\n",
        b"? ",
        b"- ",
        b"|",
        b">",
        b"%YAML 9\n",
        b"\t",
    ]
    return draw(st.just(text) | _damaged(text, words))


def _use_config(folder: Path, content: tuple[bytes, list[str]]) -> None:
    path = folder / "fuzzed.yaml"
    path.write_bytes(content[0])
    cfg = get_config(path, content[1])
    cfg.OUTPUT_DIR = str(folder / "out") if not isinstance(cfg.OUTPUT_DIR, str) else cfg.OUTPUT_DIR
    choose_device(cfg)
    check_names(cfg)


# ---------------------------------------------------------------- pictures


@cache
def _pictures() -> dict[str, bytes]:
    """Small good ones of each format."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    picture, made = Image.fromarray(pixels), {}
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"):
        file = io.BytesIO()
        options = {"exif": exif} if kind in ("JPEG", "PNG") else {}
        picture.save(file, kind, **options)
        made[kind] = file.getvalue()
    return made


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums are right again, as far as it is one."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        end = at + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


@st.composite
def _damaged_picture(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(sorted(_pictures())))
    words = [b"IHDR", b"IDAT", b"zTXt", b"eXIf", b"acTL", b"\xff\xd8", b"\xff\xe1", b"\xff\xc0"]
    data = draw(_damaged(_pictures()[kind], words))
    return _with_checksums(data) if kind == "PNG" and draw(st.booleans()) else data


def _use_picture(folder: Path, content: bytes) -> None:
    path = folder / "fuzzed.png"
    path.write_bytes(content)
    row = {"id": 1, "file_name": path.name, "width": SIZE[0], "height": SIZE[1]}
    dataset = CocoDataset(folder / "a.json", {"images": [row]})
    list(dataset.check())
    try:
        check_image_files(dataset, folder)
    finally:
        mapper = ReadableDatasetMapper(True, augmentations=[], image_format="BGR")
        mapper({**row, "file_name": str(path)})


# ---------------------------------------------------------------- weights


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)


@cache
def _content() -> dict[str, Any]:
    return {"model": _Model().state_dict(), "iteration": 3, "classes": ["cat", "dog"]}


@cache
def _pth() -> bytes:
    file = io.BytesIO()
    torch.save(_content(), file)
    return file.getvalue()


@cache
def _pth_parts() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(_pth())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@cache
def _old_pth() -> bytes:
    file = io.BytesIO()
    torch.save(_content(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@cache
def _pkl(protocol: int) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in _Model().state_dict().items()}
    content = {"model": arrays, "__author__": "me", "other": [np.float32(1), (1, "a", None)]}
    return pickle.dumps(content, protocol)


_OPCODES = [bytes([i]) for i in range(40, 0x99)]
_OPCODES += [b"cos\nsystem\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"\x8e" + bytes(6) + b"\1"]
_OPCODES += [b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"r\xff\xff\xff\x7f"]


@st.composite
def _zipped(draw: st.DrawFn) -> bytes:
    """A good archive with one of its entries damaged, which its checksum tells nothing of."""
    program = next(name for name in _pth_parts() if name.endswith("data.pkl"))
    name = draw(st.sampled_from([program] * 9 + list(_pth_parts())))
    parts = {**_pth_parts(), name: draw(_damaged(_pth_parts()[name], _OPCODES))}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for entry, data in parts.items():
            archive.writestr(entry, data)
    return file.getvalue()


_TENSORS = st.sampled_from(
    [
        *(torch.zeros(2, 3), torch.zeros(2), torch.zeros(()), torch.zeros(0), torch.zeros(1, 2, 3)),
        *(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.complex64)),
        *(torch.zeros(2, 3).to_sparse(), torch.full((2, 3), float("nan"))),
        *(torch.zeros(1).expand(10**6, 10**6), torch.zeros(2, 3).bool(), torch.zeros(2, 3).half()),
        torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.quint8),
    ]
)
_ARRAYS = st.sampled_from(
    [
        *(np.zeros((2, 3), code) for code in ("f4", ">f4", "i1", "u8", "c8", "S3", "U2", "f2")),
        *(np.zeros(()), np.zeros(0), np.asfortranarray(np.ones((2, 3))), np.float32(1)),
    ]
)
_NAMES = st.sampled_from(
    [
        *("layer.weight", "layer.bias", "module.layer.weight", "model", "classes", "iteration"),
        *("matching_heuristics", "__author__", "blobs", "x_momentum", "", "conv1_w", "fc1000_b"),
    ]
)


def _contents(arrays: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Good in part, with what may be anything in any place."""
    values = arrays | _VALUES | st.sampled_from(["Caffe2", True, ["cat"], 10**30])
    models = st.dictionaries(_NAMES | st.integers(), values, max_size=4)
    good = arrays.map(lambda a: {"layer.weight": a, "layer.bias": a})
    contents = st.dictionaries(_NAMES | st.integers(), models | good | values, max_size=4)
    return contents | st.builds(lambda m, c: {**c, "model": m}, models | good, contents)


def _torch_saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _use_weights(suffix: str) -> Callable[[Path, bytes], None]:
    def use(folder: Path, content: bytes) -> None:
        path = folder / f"fuzzed{suffix}"
        path.write_bytes(content)
        SafeCheckpointer(_Model(), str(folder)).load(str(path), checkpointables=[])

    return use


def _use_run(folder: Path, content: bytes) -> None:
    """As ``--resume`` does with the newest checkpoint of a run."""
    (folder / "model_0000001.pth").write_bytes(content)
    SafeCheckpointer(_Model(), str(folder)).resume_or_load("", resume=True)


TARGETS: dict[str, Target] = {
    "annotations": Target(_annotations(), _use_annotations),
    "annotations, bytes": Target(
        st.tuples(_damaged(json.dumps(valid_content()).encode(), _WORDS), st.just("error")),
        _use_annotations,
    ),
    "annotations, other formats": Target(_other_format(), _use_other_format),
    "config": Target(
        st.tuples(
            st.deferred(_config_text),
            st.lists(
                st.tuples(st.deferred(lambda: st.sampled_from(_keys())), st.text(max_size=9))
            ).map(lambda pairs: [word for pair in pairs for word in pair]),
        ),
        _use_config,
    ),
    "picture": Target(st.deferred(_damaged_picture), _use_picture),
    "pickle": Target(
        st.integers(0, 5).flatmap(lambda protocol: _damaged(_pkl(protocol), _OPCODES)),
        _use_weights(".pkl"),
    ),
    "checkpoint": Target(st.deferred(_zipped), _use_weights(".pth")),
    "checkpoint, content": Target(_contents(_TENSORS).map(_torch_saved), _use_weights(".pth")),
    "pickle, content": Target(_contents(_ARRAYS).map(pickle.dumps), _use_weights(".pkl")),
    "checkpoint, resumed": Target(
        st.deferred(lambda: _zipped() | _damaged(_pth(), [b"PK\1\2", b"PK\3\4", b"\1\0"])), _use_run
    ),
    "checkpoint, bytes": Target(
        st.sampled_from([_pth, _old_pth]).flatmap(lambda make: _damaged(make(), _OPCODES)),
        _use_weights(".pth"),
    ),
}


def run(target: Target, folder: Path, *, number: int | None = None, examples: int = 200) -> int:
    """Tries inputs and says how many; raises for the first, shrunk, that does what none may.

    Args:
        folder: for the files of the inputs.
        number: which inputs; None: the same each time.
        examples: about how many.
    """
    tried = 0

    def try_one(content: Any) -> None:
        nonlocal tried
        tried += 1
        attempt(target, folder, content)

    test = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(given(target.inputs)(try_one))
    (test if number is None else seed(number)(test))()
    return tried


def main() -> int:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    words.add_argument("--only", choices=TARGETS, help="one target")
    words.add_argument("--seed", type=int, default=int(time.time()), help="of the first batch")
    args = words.parse_args()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    names = [args.only] if args.only else list(TARGETS)
    failed = []
    for name in names:
        until, tried, number = time.monotonic() + 60 * args.minutes / len(names), 0, args.seed
        with tempfile.TemporaryDirectory() as folder:
            while time.monotonic() < until and name not in failed:
                try:
                    tried += run(TARGETS[name], Path(folder), number=number)
                except Exception:
                    print(f"{name}, --seed {number}:", file=sys.stderr)
                    traceback.print_exc()
                    failed.append(name)
                number += 1
        print(f"{name}: {tried} inputs, {'FAILED' if name in failed else 'no failure'}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
