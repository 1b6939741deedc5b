"""One COCO detection JSON, checked to its last entry before anything trains on it.

:func:`read_coco` goes from the outside in: the file, its three lists, the fields of their entries,
the ids that refer to other entries, the boxes. What is wrong stops it with one sentence; what is
merely left out, and can be known, is filled in.
"""

import codecs
import json
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .coco_entries import (
    Entries,
    check_annotations,
    check_boxes,
    check_categories,
    check_images,
    fill_in,
    show,
)

BAD_BOXES = ("error", "fix")
MAX_BYTES = (
    2 * 1024**3
)  # COCO's own largest file has 0.45 GB; reading one takes about 8 times its size
MAX_DEPTH = 50  # lists and objects within each other; COCO's have 5
_CHUNK = 2**24
_LISTS = ("categories", "images", "annotations")
_JSON_WORDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class CocoJson:
    """A checked file: its content, and in words what of it was mended (nothing: use the file)."""

    path: Path
    content: dict[str, Any]
    mended: tuple[str, ...]

    @property
    def images(self) -> Entries:
        return Entries(self.path, "images", self.content["images"])

    @property
    def num_boxes(self) -> int:
        return len(self.content["annotations"])

    @property
    def classes(self) -> dict[int, str]:
        """Category ids to names by rising id: the order of detectron2's class indices."""
        return dict(sorted((row["id"], row["name"]) for row in self.content["categories"]))

    def write(self, target: Path) -> None:
        """Writes the mended content to ``target``, whole or not at all.

        Raises:
            UserError: where the folder cannot be written to.
        """
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self.content), encoding="utf-8")
            os.replace(partial, target)
        except OSError as error:
            raise UserError(
                f"{target}: the mended copy of {self.path} cannot be written ({error.strerror}); "
                f"free the place or set OUTPUT_DIR to another folder"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink()


def read_coco(path: Path, *, for_training: bool = True, bad_boxes: str = "error") -> CocoJson:
    """Reads and checks a COCO detection JSON; the file itself is never written to.

    Args:
        path: the file.
        for_training: whether the set needs at least one box that is no crowd.
        bad_boxes: "error" refuses boxes that are empty or reach more than a pixel outside;
            "fix" clips those outside and drops the empty ones.

    Raises:
        UserError: for each fault, with the file and the first entry that has it.
    """
    content, mended = parse(path)
    if not isinstance(content.get("info"), dict):  # older pycocotools fail without
        content["info"] = {}
        mended.append('"info" filled in')
    categories, images, annotations = (_entries(path, content, name) for name in _LISTS)
    check_categories(categories)
    check_images(images)
    check_annotations(annotations, images, categories)
    mended += check_boxes(annotations, images, bad_boxes)
    mended += fill_in(annotations)
    if for_training and all(row["iscrowd"] for row in annotations.rows):
        raise UserError(
            f'{path}: "annotations" holds no box to train on; label some objects, or name this '
            f"file as DATASETS.OWN.TEST_JSON"
        )
    return CocoJson(path, content, tuple(mended))


def parse(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The file's top-level object, and what had to be mended to read it."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file; correct the path")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"{path}: {size / 1024**3:.1f} GiB is more than the {MAX_BYTES / 1024**3:.0f} GiB "
                f"that a COCO JSON may have; leave out what boxes do not need (segmentation)"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that") from error
    if not raw.strip():
        raise UserError(f"{path}: the file is empty; a COCO JSON is needed, export it again")
    marked = raw.startswith(codecs.BOM_UTF8)
    content = _decode(path, raw[len(codecs.BOM_UTF8) :] if marked else raw)
    if not isinstance(content, dict):
        found = _JSON_WORDS.get(type(content), "a number")
        raise UserError(
            f"{path}: the top level is {found}; it must be an object with "
            f'"images", "annotations" and "categories"'
        )
    return content, ["the byte order mark removed"] if marked else []


def _decode(path: Path, raw: bytes) -> object:
    if _depth(raw) > MAX_DEPTH:
        raise UserError(
            f"{path}: lists or objects are nested too deeply, more than {MAX_DEPTH} levels; a COCO "
            "JSON needs 5"
        )
    cut_short = f"{path}: the file ends in the middle, after {len(raw)} bytes; copy it again"
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise UserError(cut_short) from None
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8 text; save the file as JSON in UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        if not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string"):
            raise UserError(cut_short) from None
        raise UserError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            f"mend it there or export it again"
        ) from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{path}: not usable as JSON ({error}); export it again") from None
    except MemoryError:
        raise UserError(
            f"{path}: {len(raw)} bytes of JSON need more memory than this process may have, some 8 "
            "times their number; leave out what boxes do not need (segmentation)"
        ) from None


def _depth(raw: bytes) -> int:
    """How deeply the lists and objects of a JSON are nested, seen before anything is made of it."""
    if b"\\" in raw:
        raw = re.sub(rb"\\.", b"", raw, flags=re.DOTALL)  # what is escaped ends no text
    marks = raw.translate(None, bytes(set(range(256)) - set(b'"[]{}')))
    deepest = depth = 0
    in_text = False
    for start in range(0, len(marks), _CHUNK):
        part = np.frombuffer(marks, np.uint8, min(_CHUNK, len(marks) - start), start)
        text = np.logical_xor.accumulate(part == ord('"')) ^ in_text
        steps = np.isin(part, list(b"[{")).astype(np.int8) - np.isin(part, list(b"]}"))
        levels = depth + np.cumsum(np.where(text, 0, steps))
        deepest, depth, in_text = max(deepest, levels.max()), levels[-1], text[-1]
    return int(deepest)


def _entries(path: Path, content: dict[str, Any], name: str) -> Entries:
    if not isinstance(content.get(name), list):
        found = "is missing" if name not in content else f"is {show(content[name])}"
        raise UserError(f'{path}: "{name}" {found}; it must be a list of objects')
    if not content[name] and name != "annotations":
        raise UserError(f'{path}: "{name}" is empty; it must name at least one')
    entries = Entries(path, name, content[name])
    bad = (i for i, row in enumerate(entries.rows) if type(row) is not dict)
    entries.refuse(bad, lambda row: f"{show(row)} is not an object; write it as {{...}}")
    return entries
