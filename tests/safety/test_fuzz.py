"""Random and damaged files: nothing but ``UserError`` may come of them.

Each run tries the same few of each kind. ``FUZZ_EXAMPLES=20000 pytest tests/safety/test_fuzz.py``
tries other ones for hours. Hypothesis shrinks and prints what fails.
"""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from coco_sets import JSON_VALUES, valid_content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet_plugin import UserError, get_config
from retinanet_plugin.data.coco_json import read_coco
from retinanet_plugin.engine.checkpoint import SafeCheckpointer
from retinanet_plugin.tools.convert_dataset import read_dataset
from tests.safety.test_known_bad import limited, map_image

Inputs = st.SearchStrategy[bytes]


@st.composite
def damaged(draw: st.DrawFn, good: bytes | Inputs, tokens: list[bytes]) -> bytes:
    """Good bytes with some replaced, removed, doubled, or cut off at the end."""
    data = bytearray(good if isinstance(good, bytes) else draw(good))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 1, 2, 4, 8, 64, 1000])))
        numbers = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
        new = st.binary(max_size=8) | st.sampled_from([*tokens, *numbers, data[start:end] * 2])
        data[start:end] = draw(new)
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data)


@st.composite
def changed(draw: st.DrawFn, make: Callable[[], Any], values: st.SearchStrategy[Any]) -> Any:
    """Nested lists and dictionaries with other values, or more keys, in some places."""
    content = make()
    for _ in range(draw(st.integers(1, 4))):
        node = content
        while True:
            keys = [*node, "ignore", 3] if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from(keys))
            inner = node.get(key) if isinstance(node, dict) else node[key]
            if not (isinstance(inner, list | dict) and inner and draw(st.booleans())):
                break
            node = inner
        node[key] = draw(values)
    return content


def read_annotations(path: Path) -> None:
    try:
        read_coco(path)
    finally:
        read_coco(path, bad_boxes="fix")


JSON = [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"NaN", b"-Infinity", b"1e999", b"null"]
VOC = b"""<?xml version="1.0"?>
<annotation><filename>a.png</filename><size><width>40</width><height>30</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9.5</ymax></bndbox>
</object></annotation>"""
XML = [b"<!ENTITY a 'b'>", b"<!DOCTYPE a [", b"]>", b"&a;", b"<object>", b"</object>", b"<!--"]
YOLO = b"0 0.5 0.5 0.25 0.25\n1 0.5 0.5 0.2 0.1 0.3 0.3\n"
DATA_YAML = b"path: .\ntrain: images\nval: [images]\nnames: {0: cat, 1: dog}\nnc: 2\n"
CSV = b"path,x1,y1,x2,y2,class\nimages/a.png,1,2,9,9,cat\nimages/a.png,,,,,\n"
TEXT = [b"nan", b"inf", b"1e999", b"-1", b"\0", b"\r", b"9" * 5000, b"../..", b"/dev/zero", b'"']
YAML = [b"&a ", b"*a", b"<<: ", b"---\n", b"? ", b"- ", b"|", b">", b"%YAML 9\n", b"\t"]
YAML += [b"!!int ", b"!!timestamp ", b"!!set ", b"!!omap ", b"!!binary ", b"!!python/name:os.abort"]


def read_as(format: str, data: str, **others: bytes) -> Callable[[Path], object]:
    """Reads ``data`` beside the input, or the folder above it, with an image and ``others``."""

    def use(path: Path) -> None:
        root = path.parent if data else path.parents[1]
        for name, content in {"images/a.png": images()[0], **others}.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)
        read_dataset(root / data, format)

    return use


CONFIG = """_BASE_: Base-RetinaNet.yaml
MODEL: {WEIGHTS: a.pth, RETINANET: {NUM_CLASSES: 7, FOCAL_LOSS_GAMMA: 2.0, CLS_LOSS: focal}}
DATASETS: {OWN: {TRAIN_JSON: a.json}, TRAIN: ["a"]}
SOLVER: {STEPS: [1, 2], BASE_LR: 0.01, AMP: {ENABLED: true}}
OUTPUT_DIR: "out"
"""
IMAGE = [b"IHDR", b"IDAT", b"zTXt", b"eXIf", b"acTL", b"\xff\xd8", b"\xff\xe1", b"\xff\xc0"]


def images() -> list[bytes]:
    image, files = Image.effect_noise((40, 30), 50).convert("RGB"), []
    for name in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"):
        file = io.BytesIO()
        image.save(file, name)
        files.append(file.getvalue())
    return files


def weights() -> dict[str, Any]:
    arrays = {"layer.weight": np.ones((2, 3), np.float32), "layer.bias": np.zeros(2, np.float32)}
    return {"model": arrays, "__author__": "me", "classes": ["cat", "dog"], "iteration": 3}


def saved(content: dict[str, Any], zipped: bool = True) -> bytes:
    """As a ``.pth``, with tensors in place of the arrays."""
    model, file = content.get("model"), io.BytesIO()
    if isinstance(model, dict):
        arrays = {
            k: v for k, v in model.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiu"
        }
        content["model"] = model | {k: torch.from_numpy(v.astype("f4")) for k, v in arrays.items()}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


SAVED = [saved(weights(), zipped) for zipped in (True, False)]
OPCODES = [bytes([i]) for i in range(40, 0x99)]
OPCODES += [b"cos\nsystem\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"\x8e" + bytes(6) + b"\1"]
OPCODES += [b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"r\xff\xff\xff\x7f"]
ARRAYS = [np.zeros((2, 3), code) for code in ("f4", ">f4", "i1", "u8", "c8", "S3", "U2", "f2")]
ARRAYS += [np.zeros(()), np.zeros(0), np.asfortranarray(np.ones((2, 3))), np.float32(1)]
TENSORS = [torch.zeros(()), torch.zeros(1, 2, 3), torch.zeros(2, 3, dtype=torch.complex64)]
TENSORS += [torch.zeros(2, 3).to_sparse(), torch.zeros(1).expand(10**6, 10**6)]


@st.composite
def damaged_entry(draw: st.DrawFn) -> bytes:
    """A good ``.pth`` with a damaged entry, whose checksum is right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(SAVED[0])) as good, zipfile.ZipFile(file, "w") as bad:
        program = next(name for name in good.namelist() if name.endswith("data.pkl"))
        chosen = draw(st.sampled_from([program] * 9 + good.namelist()))
        for name in good.namelist():
            data = good.read(name)
            bad.writestr(name, draw(damaged(data, OPCODES)) if name == chosen else data)
    return file.getvalue()


def checkpointer(path: Path) -> SafeCheckpointer:
    return SafeCheckpointer(torch.nn.ModuleDict({"layer": torch.nn.Linear(3, 2)}), str(path.parent))


def load(path: Path) -> None:
    checkpointer(path).load(str(path), checkpointables=[])


def resume(path: Path) -> None:
    checkpointer(path).resume_or_load("", resume=True)


config = changed(lambda: yaml.safe_load(CONFIG), JSON_VALUES | st.dates() | st.binary())
pickles = st.integers(0, 5).map(lambda protocol: pickle.dumps(weights(), protocol))
anything = st.sampled_from([*ARRAYS, *TENSORS, {}, True, "Caffe2"]) | JSON_VALUES
read_data_yaml = read_as("yolo", "data.yaml", **{"labels/a.txt": YOLO})
read_yolo = read_as("yolo", "", **{"classes.txt": b"cat\ndog\n"})

# Of each kind: the name of the file, its content, and what reads it.
KINDS: dict[str, tuple[str, Inputs, Callable[[Path], object]]] = {
    "JSON": ("a.json", damaged(json.dumps(valid_content()).encode(), JSON), read_annotations),
    "VOC": ("Annotations/a.xml", damaged(VOC, XML), read_as("voc", "")),
    "YOLO": ("labels/a.txt", damaged(YOLO, TEXT), read_yolo),
    "YOLO, YAML": ("data.yaml", damaged(DATA_YAML, TEXT + YAML), read_data_yaml),
    "CSV": ("a.csv", damaged(CSV, TEXT), read_as("csv", "a.csv")),
    "config": ("a.yaml", config.map(lambda x: yaml.dump(x).encode()), get_config),
    "YAML": ("a.yaml", damaged(CONFIG.encode(), YAML), get_config),
    "image": ("a.png", damaged(st.sampled_from(images()), IMAGE), map_image),
    "pickle": ("a.pkl", damaged(pickles, OPCODES), load),
    "pickled weights": ("a.pkl", changed(weights, anything).map(pickle.dumps), load),
    "checkpoint": ("a.pth", damaged(st.sampled_from(SAVED), OPCODES), load),
    "entry of a checkpoint": ("a.pth", damaged_entry(), load),
    "saved weights": ("a.pth", changed(weights, anything).map(saved), load),
    "run": ("model_0000001.pth", damaged(SAVED[0], [b"PK\1\2", b"PK\3\4", b"\1\0"]), resume),
}


@pytest.mark.filterwarnings("ignore")  # PIL's and PyTorch's, about damaged files
@pytest.mark.parametrize("kind", KINDS)
def test_only_user_errors(kind: str, tmp_path: Path) -> None:
    name, inputs, use = KINDS[kind]
    (tmp_path / name).parent.mkdir(exist_ok=True)

    @settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", 20)),
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def attempt(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        try:
            with limited(seconds=20, memory=2**31):
                use(tmp_path / name)
        except UserError as error:
            assert str(error)

    attempt()
