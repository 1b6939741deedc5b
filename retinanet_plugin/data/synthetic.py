"""The dataset of the quick start: images of :mod:`.shapes`, drawn on disk instead of downloaded.

Image ``i`` of a split depends only on the seed, the split and ``i``: the same arguments give the
same bytes with the same numpy and OpenCV, however many images are drawn.
"""

import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from filelock import FileLock
from tqdm import tqdm

from ..errors import UserError
from .shapes import CLASSES, DEFAULT_DIFFICULTY, DRAWING, IMAGE_SIZE, draw_image

SPLITS = ("train", "test")
DATASET_NAME = "retinanet_quickstart"


def draw_dataset(
    root: str | os.PathLike[str],
    *,
    num_train: int = 1800,
    num_test: int = 150,
    size: int = IMAGE_SIZE,
    seed: int = 0,
) -> None:
    """Draws the dataset into the folder ``root``, unless it is already there.

    Writes ``{train,test}/NNNNNN.png`` of ``size`` x ``size`` pixels and the COCO JSONs
    ``annotations/{train,test}.json``, whose ``info`` holds all arguments. The folder appears when
    everything is drawn. Of several processes that call it, one draws and the others wait.

    Raises:
        UserError: if ``root`` holds anything except this very dataset, or cannot be written.
    """
    parameters = {
        "drawing": DRAWING,
        "pictures": {"train": num_train, "test": num_test},
        "size": size,
        "seed": seed,
        "difficulty": json.loads(json.dumps(asdict(DEFAULT_DIFFICULTY))),  # lists for tuples
    }
    folder = Path(root).expanduser().resolve()
    if _is_drawn(folder, parameters):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(folder.with_name(f".{folder.name}.lock")),
            TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch,
            tqdm(total=num_train + num_test, desc="drawing images", unit="image") as bar,
        ):
            if not _is_drawn(folder, parameters):
                for split in SPLITS:
                    _draw_split(Path(scratch) / "dataset", split, parameters, bar)
                Path(scratch, "dataset").rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the synthetic images there ({error.strerror or error}); make "
            "room, or set DETECTRON2_DATASETS to another folder."
        ) from error


def _is_drawn(folder: Path, parameters: dict[str, Any]) -> bool:
    """True if the dataset is there, False if nothing is, UserError if anything else is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        contents = [json.loads(_json_file(folder, split).read_text()) for split in SPLITS]
        if all(content["info"]["parameters"] == parameters for content in contents):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not drawn by this module
    raise UserError(
        f"{folder}: holds something other than this version's synthetic dataset; move it away to "
        "have the dataset drawn, or use another folder."
    )


def _draw_split(root: Path, split: str, parameters: dict[str, Any], bar: "tqdm[Any]") -> None:
    size = parameters["size"]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (root / split).mkdir(parents=True)
    for index in range(parameters["pictures"][split]):
        rng = np.random.default_rng([parameters["seed"], SPLITS.index(split), index])
        image, objects = draw_image(rng, size)
        file_name = f"{index:06d}.png"
        (root / split / file_name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
        image_id = index + 1
        images.append({"id": image_id, "file_name": file_name, "width": size, "height": size})
        for class_index, (x0, y0, x1, y1) in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for "no match"
                    "image_id": image_id,
                    "category_id": class_index + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
        bar.update()
    document = {
        "info": {
            "description": "Shapes among clutter, drawn by retinanet_plugin.data.synthetic",
            "parameters": parameters,
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
    }
    json_file = _json_file(root, split)
    json_file.parent.mkdir(exist_ok=True)
    json_file.write_text(json.dumps(document))


def _json_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"{split}.json"


def register() -> None:
    """Registers ``retinanet_quickstart_train`` and ``retinanet_quickstart_test`` in detectron2.

    Their folder is ``$DETECTRON2_DATASETS/retinanet_quickstart``. The dataset is drawn when it is
    first loaded, not here. A second call changes nothing.
    """
    datasets = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
    root = datasets / DATASET_NAME
    for split in SPLITS:
        name = f"{DATASET_NAME}_{split}"
        if name in DatasetCatalog:
            continue
        DatasetCatalog.register(name, partial(_load, root, split))
        MetadataCatalog.get(name).set(
            json_file=str(_json_file(root, split)),
            image_root=str(root / split),
            evaluator_type="coco",
            thing_classes=list(CLASSES),
            drawn_on_demand=True,  # its files may not exist yet
        )


def _load(root: Path, split: str) -> list[dict[str, Any]]:
    draw_dataset(root)
    json_file, image_root = str(_json_file(root, split)), str(root / split)
    return load_coco_json(json_file, image_root, f"{DATASET_NAME}_{split}")
