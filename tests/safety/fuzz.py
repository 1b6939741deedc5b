"""Random and damaged inputs: nothing but ``UserError`` may come of them.

    python -m tests.safety.fuzz --minutes 10               # all targets, one after another
    python -m tests.safety.fuzz --minutes 2 --only pickle  # one

Failing inputs are shrunk by hypothesis and printed; the exit status is 1 then. ``test_fuzz.py``
tries a few inputs of each target, the same ones each time.
"""

import argparse
import io
import json
import pickle
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet_plugin import UserError, get_config
from retinanet_plugin.data import ReadableDatasetMapper
from retinanet_plugin.data.coco_json import read_coco
from retinanet_plugin.engine.checkpoint import SafeCheckpointer
from retinanet_plugin.tools.convert_dataset import read_dataset
from tests.data.coco_sets import valid_content
from tests.safety.test_known_bad import limited

_SECONDS, _MEMORY = 20, 2**31  # that one input may take
SIZE = (24, 16)  # of the images


@dataclass(frozen=True)
class Target:
    """Random inputs, and what is done with each in a folder."""

    inputs: st.SearchStrategy[Any]
    use: Callable[[Path, Any], object]


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


@st.composite
def _damaged(draw: st.DrawFn, good: bytes, words: list[bytes]) -> bytes:
    """Good bytes with some replaced, removed, doubled, moved, or cut off at the end."""
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


def _use_file(name: str, use: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    """Writes the input to a file, and uses that."""

    def write_and_use(folder: Path, content: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        use(folder / name)

    return write_and_use


# Annotations

_ENTRIES = [
    (name, i, key)
    for name, rows in valid_content().items()
    if isinstance(rows, list)
    for i, row in enumerate(rows)
    for key in (*row, "ignore", "segmentation", "keypoints")
]
_JSON = [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"NaN", b"-Infinity", b"1e999", b"null"]


@st.composite
def _annotations(draw: st.DrawFn) -> bytes:
    """Valid content with other values in some places."""
    content = valid_content()
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=1)):
        content[name] = draw(_VALUES)
    for name, i, key in draw(st.lists(st.sampled_from(_ENTRIES), max_size=4)):
        if isinstance(content[name], list) and i < len(content[name]):
            row = content[name][i]
            if isinstance(row, dict):
                row[key] = draw(_VALUES)
    return json.dumps(content).encode()


def _read_annotations(path: Path) -> None:
    try:
        read_coco(path)
    finally:
        read_coco(path, bad_boxes="fix")


_VOC = b"""<?xml version="1.0"?>
<annotation><filename>a.png</filename><size><width>24</width><height>16</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9.5</ymax></bndbox>
</object></annotation>"""
_XML = [b"<!ENTITY a 'b'>", b"<!DOCTYPE a [", b"]>", b"&a;", b"<object>", b"</object>", b"<!--"]
_YOLO = b"0 0.5 0.5 0.25 0.25\n1 0.5 0.5 0.2 0.1 0.3 0.3\n"
_DATA_YAML = b"path: .\ntrain: images\nval: [images]\nnames: {0: cat, 1: dog}\nnc: 2\n"
_CSV = b"path,x1,y1,x2,y2,class\nimages/a.png,1,2,9,9,cat\nimages/a.png,,,,,\n"
_TEXT = [b"nan", b"inf", b"1e999", b"-1", b"\0", b"\r", b"9" * 5000, b"../..", b"/dev/zero", b'"']


def _other_format(
    name: str, good: bytes, words: list[bytes], data: str, format: str, **others: bytes
) -> Target:
    def use(path: Path) -> None:
        root = path.parents[name.count("/")]
        for file, text in {"images/a.png": _images()["PNG"], **others}.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(text)
        read_dataset(root / data, format)

    return Target(_damaged(good, words), _use_file(f"{format}/{name}", use))


# Configs


_TAGS = [
    b"!!int ",
    b"!!timestamp ",
    b"!!set ",
    b"!!omap ",
    b"!!binary ",
    b"!!python/name:os.system",
]
_YAML = [b"&a ", b"*a", b"<<: ", *_TAGS, b"---\n", b"? ", b"- ", b"|", b">", b"%YAML 9\n", b"\t"]
_CONFIG = b"""_BASE_: Base-RetinaNet.yaml
MODEL: {WEIGHTS: a.pth, RETINANET: {NUM_CLASSES: 7, FOCAL_LOSS_GAMMA: 2.0, CLS_LOSS: focal}}
DATASETS: {OWN: {TRAIN_JSON: a.json}, TRAIN: ("a",)}
SOLVER: {STEPS: [1, 2], BASE_LR: 0.01, AMP: {ENABLED: true}}
OUTPUT_DIR: "out"
"""


@st.composite
def _config(draw: st.DrawFn) -> bytes:
    """A good config with another value for a key, or damaged."""
    content = yaml.safe_load(_CONFIG)
    group = draw(st.sampled_from([content, content["MODEL"]["RETINANET"], content["SOLVER"]]))
    group[draw(st.sampled_from(sorted(group)))] = draw(_VALUES | st.dates() | st.binary())
    text = yaml.dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    return draw(st.just(text) | _damaged(_CONFIG, _YAML))


# Images


@cache
def _images() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    image, files = Image.fromarray(pixels), {}
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"):
        file = io.BytesIO()
        image.save(file, name, **({"exif": exif} if name in ("JPEG", "PNG") else {}))
        files[name] = file.getvalue()
    return files


_CHUNKS = [b"IHDR", b"IDAT", b"zTXt", b"eXIf", b"acTL", b"\xff\xd8", b"\xff\xe1", b"\xff\xc0"]


def _map_image(path: Path) -> None:
    mapper = ReadableDatasetMapper(True, augmentations=[], image_format="BGR")
    mapper({"id": 1, "file_name": str(path), "width": SIZE[0], "height": SIZE[1]})


# Weights


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)


def _saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@cache
def _pth(zipped: bool = True) -> bytes:
    content = {"model": _Model().state_dict(), "iteration": 3, "classes": ["cat", "dog"]}
    return _saved(content, _use_new_zipfile_serialization=zipped)


@cache
def _pkl(protocol: int) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in _Model().state_dict().items()}
    content = {"model": arrays, "__author__": "me", "other": [np.float32(1), (1, "a", None)]}
    return pickle.dumps(content, protocol)


_OPCODES = [bytes([i]) for i in range(40, 0x99)]
_OPCODES += [b"cos\nsystem\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"\x8e" + bytes(6) + b"\1"]
_OPCODES += [b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"r\xff\xff\xff\x7f"]


@st.composite
def _damaged_entry(draw: st.DrawFn) -> bytes:
    """A good archive with a damaged entry, whose checksum is right."""
    with zipfile.ZipFile(io.BytesIO(_pth())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in parts if name.endswith("data.pkl"))
    name = draw(st.sampled_from([program] * 9 + list(parts)))
    parts[name] = draw(_damaged(parts[name], _OPCODES))
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
    """Good contents in part, with anything in any place."""
    values = arrays | _VALUES | st.sampled_from(["Caffe2", True, ["cat"], 10**30])
    models = st.dictionaries(_NAMES | st.integers(), values, max_size=4)
    good = arrays.map(lambda a: {"layer.weight": a, "layer.bias": a})
    contents = st.dictionaries(_NAMES | st.integers(), models | good | values, max_size=4)
    return contents | st.builds(lambda m, c: {**c, "model": m}, models | good, contents)


def _load(path: Path) -> None:
    SafeCheckpointer(_Model(), str(path.parent)).load(str(path), checkpointables=[])


def _resume(path: Path) -> None:
    SafeCheckpointer(_Model(), str(path.parent)).resume_or_load("", resume=True)


_use_pth, _use_pkl = _use_file("fuzzed.pth", _load), _use_file("fuzzed.pkl", _load)
_use_json = _use_file("fuzzed.json", _read_annotations)
TARGETS: dict[str, Target] = {
    "annotations": Target(_annotations(), _use_json),
    "annotations, bytes": Target(_damaged(json.dumps(valid_content()).encode(), _JSON), _use_json),
    "VOC": _other_format("Annotations/a.xml", _VOC, _XML, "", "voc"),
    "YOLO": _other_format(
        "labels/a.txt", _YOLO, _TEXT, "", "yolo", **{"classes.txt": b"cat\ndog\n"}
    ),
    "YOLO, YAML": _other_format(
        "data.yaml", _DATA_YAML, _TEXT + _YAML, "data.yaml", "yolo", **{"labels/a.txt": _YOLO}
    ),
    "CSV": _other_format("a.csv", _CSV, _TEXT, "a.csv", "csv"),
    "config": Target(_config(), _use_file("fuzzed.yaml", get_config)),
    "image": Target(
        st.deferred(lambda: st.sampled_from(sorted(_images().values()))).flatmap(
            lambda good: _damaged(good, _CHUNKS)
        ),
        _use_file("fuzzed.png", _map_image),
    ),
    "pickle": Target(
        st.integers(0, 5).flatmap(lambda protocol: _damaged(_pkl(protocol), _OPCODES)), _use_pkl
    ),
    "pickle, content": Target(_contents(_ARRAYS).map(pickle.dumps), _use_pkl),
    "checkpoint": Target(_damaged_entry(), _use_pth),
    "checkpoint, content": Target(_contents(_TENSORS).map(_saved), _use_pth),
    "checkpoint, bytes": Target(
        st.booleans().flatmap(lambda zipped: _damaged(_pth(zipped), _OPCODES)), _use_pth
    ),
    "checkpoint, resumed": Target(
        st.deferred(lambda: _damaged(_pth(), [b"PK\1\2", b"PK\3\4", b"\1\0"])),
        _use_file("model_0000001.pth", _resume),
    ),
}


def run(target: Target, folder: Path, *, number: int | None = None, examples: int = 200) -> int:
    """Tries inputs and returns their number; raises for the first, shrunk, that fails.

    Args:
        folder: for the files of the inputs.
        number: seed of the inputs; None: the same ones each time.
        examples: about how many.
    """
    tried = 0

    def attempt(content: Any) -> None:
        nonlocal tried
        tried += 1
        try:
            with limited(_SECONDS, _MEMORY):
                target.use(folder, content)
        except UserError as error:
            assert str(error)

    test = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(given(target.inputs)(attempt))
    (test if number is None else seed(number)(test))()
    return tried


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--only", choices=TARGETS, help="one target")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first batch")
    args = parser.parse_args()
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
