"""Sets of any format as data sets of detectron2."""

import hashlib
import json
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import get_cache_dir

from ...errors import UserError
from .files import absolute
from .labelled import Options
from .reading import read_set


def register(
    name: str,
    path: str | os.PathLike[str],
    kind: str | None = None,
    *,
    split: str | None = None,
    images: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | None = None,
    fix: bool = False,
    zero_based: bool = False,
    json_file: str | os.PathLike[str] | None = None,
) -> Any:
    """Makes a set known to detectron2 under ``name``, for its loaders and its COCO evaluator.

    It is read and checked now, once a process, and written as COCO JSON, which is what is loaded.
    VOC's difficult boxes are trained on in split "train" and None; in others they are crowds,
    which evaluation ignores.

    Args:
        path: see :func:`.reading.read_set`, also for ``kind``.
        split: "train", "val" or "test", as the files name them; None: all pictures.
        images, classes, fix, zero_based: see :class:`.labelled.Options`.
        json_file: where the JSON goes; it must not be there with another content. None: a file of
            its own by its content in the cache folder of detectron2 (``$FVCORE_CACHE``, else
            ``~/.torch/iopath_cache``).

    Returns:
        detectron2's metadata: ``thing_classes``, ``json_file``, ``image_root`` ...

    Raises:
        UserError: for a fault in the set, and where ``name`` is taken.
    """
    if name in DatasetCatalog:
        raise UserError(
            f'register: a data set "{name}" is registered already; give another name, or remove '
            f'it first by DatasetCatalog.remove("{name}") and MetadataCatalog.remove("{name}")'
        )
    options = Options(images, classes, fix, zero_based)
    found = read_set(path, kind, options)
    content = found.of_split(split)
    text = json.dumps(content)
    if json_file is None:
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        target = Path(get_cache_dir(), "retinanet_plugin", f"{digest}.json")
    else:
        target = absolute(json_file)
    _write(target, text)
    rows = sorted(content["categories"], key=lambda row: row["id"])
    load = partial(load_coco_json, str(target), str(found.images), name)
    DatasetCatalog.register(name, load)
    return MetadataCatalog.get(name).set(
        json_file=str(target),
        image_root=str(found.images),
        evaluator_type="coco",
        thing_classes=[row["name"] for row in rows],
        thing_dataset_id_to_contiguous_id={row["id"]: i for i, row in enumerate(rows)},
    )


def _write(target: Path, text: str) -> None:
    """Whole or not at all, so that several processes can do it at once."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        if target.exists():
            if target.read_text(encoding="utf-8") == text:
                return
            raise UserError(f"{target}: is there with another content; name another json_file")
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{target}: cannot be written ({error}); name another json_file") from None
    finally:
        part.unlink(missing_ok=True)
