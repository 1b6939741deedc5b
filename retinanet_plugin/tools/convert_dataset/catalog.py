"""Registers datasets of any format in detectron2's catalogs."""

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import get_cache_dir

from ...errors import UserError
from ...utils import write_text
from .formats import read_dataset


def register(
    name: str,
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    split: str | None = None,
    **options: Any,
) -> Any:
    """Registers a dataset for detectron2's loaders and COCO evaluator.

    The dataset is read and checked at once, and written as COCO JSON to detectron2's cache folder
    (``$FVCORE_CACHE``, else ``~/.torch/iopath_cache``). VOC's difficult boxes are trained on if
    the split is "train" or None; in other splits they are crowds, which evaluation ignores.

    Args:
        split: "train", "val" or "test"; None: all images.
        path, format, options: see :func:`~.formats.read_dataset`.

    Returns:
        detectron2's metadata, with ``thing_classes``, ``json_file``, ``image_root`` and others.

    Raises:
        UserError: if the dataset has a fault, or ``name`` is registered already.
    """
    if name in DatasetCatalog:
        raise UserError(f'register: the name "{name}" is taken; choose another')
    dataset = read_dataset(path, format, **options)
    content = dataset.of_split(split)
    text = json.dumps(content)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = Path(get_cache_dir(), "retinanet_plugin", f"{digest}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    categories = sorted(content["categories"], key=lambda row: row["id"])
    folder = str(dataset.images)
    DatasetCatalog.register(name, partial(load_coco_json, str(file), folder, name))
    return MetadataCatalog.get(name).set(
        json_file=str(file),
        image_root=folder,
        evaluator_type="coco",
        thing_classes=[row["name"] for row in categories],
        thing_dataset_id_to_contiguous_id={row["id"]: i for i, row in enumerate(categories)},
    )
