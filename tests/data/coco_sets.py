"""A small valid COCO dataset on disk, for tests that plant one fault in it."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import strategies as st
from PIL import Image

from retinanet_plugin import add_retinanet_config

SIZES = {"a.png": (40, 30), "b.png": (30, 40), "sub/c.png": (32, 32)}
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([0, 1, 2, 7, 10, 12, 2**31, 2**63, 10**400, 1e308, 5e-324, -0.0])
    | st.sampled_from(["a.png", "..", "\ud800"])
    | st.sampled_from([[90, 70, 30, 30], [-5, -5, 8, 8], [1, 1, 1e-9, 3], [1e308] * 4]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@st.composite
def any_faults(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """A copy of a COCO dict with any JSON in place of one to three fields."""
    content = copy.deepcopy(valid)
    rows = [row for name in ("categories", "images", "annotations") for row in content[name]]
    for row in draw(st.lists(st.sampled_from(rows), min_size=1, max_size=3)):
        key = draw(st.sampled_from([*row, "ignore", "segmentation", "keypoints"]))
        row[key] = draw(JSON_VALUES)
    return content


def valid_content() -> dict[str, Any]:
    """Three images, two classes with ids 2 and 7, four boxes, one of them a crowd."""
    return {
        "info": {"description": "test"},
        "categories": [{"id": 7, "name": "dög"}, {"id": 2, "name": "cat"}],
        "images": [
            {"id": 10 + i, "file_name": name, "width": width, "height": height}
            for i, (name, (width, height)) in enumerate(SIZES.items())
        ],
        "annotations": [
            box(1, 10, 2, [0, 0, 20, 30]),
            box(2, 10, 7, [5.5, 4.0, 10.0, 8.5]),
            box(3, 11, 7, [10, 10, 20, 30]) | {"segmentation": [[10, 10, 30, 10, 30, 40]]},
            box(4, 12, 2, [1, 1, 30, 30]) | {"iscrowd": 1},
        ],
    }


def box(number: int, image_id: int, category_id: int, bbox: list[float]) -> dict[str, Any]:
    row = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return {**row, "area": bbox[2] * bbox[3], "iscrowd": 0}


def write_json(folder: Path, content: object, name: str = "train.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_set(folder: Path, content: object = None, name: str = "train.json") -> Path:
    """Writes the JSON and, in ``folder/images``, the images of the valid dataset."""
    rng = np.random.default_rng(0)
    for file_name, (width, height) in SIZES.items():
        file = folder / "images" / file_name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return write_json(folder, content or valid_content(), name)


def own_config(folder: Path, num_classes: int = -1, /, **own: str) -> CfgNode:
    """A config whose DATASETS.OWN keys are ``own``, relative to ``folder``."""
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.DATASETS.OWN.ROOT = str(folder)
    for key, value in own.items():
        cfg.DATASETS.OWN[key] = value
    cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    cfg.OUTPUT_DIR = str(folder / "output")
    return cfg


@contextmanager
def forget_new_sets() -> Iterator[None]:
    """Removes what is registered within the block from detectron2's catalogs."""
    with pytest.MonkeyPatch.context() as patch:
        for catalog in (DatasetCatalog, MetadataCatalog):
            patch.setattr(catalog, "data", dict(catalog.data))
        yield
