"""Pascal VOC: an XML a picture, in ``Annotations``, pictures in ``JPEGImages``, lists in ImageSets.

VOC counts pixels from 1 and names the first and the last one within the box; a box here goes from
edge to edge. So ``xmin`` 1, ``xmax`` W is the whole width: x1 = xmin - 1, x2 = xmax.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ...data.coco_entries import show
from ...errors import UserError
from .files import (
    MAX_TEXT,
    PICTURES,
    SPLITS,
    files_below,
    pictures_of_stem,
    read_classes,
    read_text,
    split_of,
)
from .labelled import (
    LEFT_OUT,
    TRAIN,
    Box,
    Faults,
    LabelledSet,
    Options,
    Picture,
    assemble,
    found_picture,
    number,
)

_FOLDERS = ("JPEGImages", "images", "Images", "imgs")
_LISTED = (*SPLITS, "trainval")


def read_voc(path: Path, options: Options) -> LabelledSet:
    """Reads a folder that holds XMLs, however deep, or the folder of one XML.

    Raises:
        UserError: for the first fault, with file and line.
    """
    folder = path if path.is_dir() else path.parent
    files = list(files_below(folder, {".xml"}))
    if not files:
        raise UserError(f"{folder}: holds no .xml file; name the folder with VOC's Annotations")
    classes = None if options.classes_file is None else read_classes(options.classes_file)
    faults, notes = Faults(options.fix), list[str]()
    splits = _splits(folder, files, faults, notes)
    pictures: dict[Path, Picture] = {}
    xml_of: dict[Path, Path] = {}
    from_zero = 0
    for file in options.track(files):
        annotation = _Annotation(file)
        picture = _open(annotation, options, faults)
        if picture is None:
            continue
        if picture.file in pictures:
            raise UserError(
                f"{file}: its picture {picture.file} is that of {xml_of[picture.file]} too; leave "
                "one of the two XMLs"
            )
        xml_of[picture.file] = file
        picture.boxes += annotation.boxes(first_pixel=0 if options.zero_based else 1)
        picture.splits |= splits.get(file, set())
        from_zero += sum(min(box.corners[:2]) < 0 for box in picture.boxes)
        pictures[picture.file] = picture
    if from_zero:
        notes.append(
            f"{from_zero} boxes begin at pixel 0, though VOC counts from 1: where a tool wrote the "
            "XMLs that counts from 0, give --zero-based (zero_based=True in Python)"
        )
    return assemble("voc", list(pictures.values()), classes, faults, notes)


def _splits(
    folder: Path, files: Sequence[Path], faults: Faults, notes: list[str]
) -> dict[Path, set[str]]:
    """The splits of each XML: those of ImageSets/Main, or what its path says."""
    by_root: dict[Path, dict[str, Path]] = {}
    for file in files:
        root = next((x for x in file.parents if x.name == "Annotations"), file.parent)
        by_root.setdefault(root, {})[file.relative_to(root).with_suffix("").as_posix()] = file
    found: dict[Path, set[str]] = {}
    listed = False
    for root, known in by_root.items():
        lists = root.parent / "ImageSets" / "Main"
        present = [name for name in _LISTED if (lists / f"{name}.txt").is_file()]
        for name in present:
            if name == "trainval" and "train" in present:
                continue
            entries = _entries(lists / f"{name}.txt")
            if not any(entry in known for _, entry in entries):
                notes.append(f"{lists / name}.txt was passed over: none of its entries has an XML")
                continue
            listed = True
            split = name if name in SPLITS else TRAIN
            for line, entry in entries:
                if entry in known:
                    found.setdefault(known[entry], set()).add(split)
                else:
                    where = f"{lists / name}.txt, line {line}"
                    faults.add(LEFT_OUT, f"{where}: no {root / entry}.xml")
    if listed:
        return found
    named = {file: split_of(file.relative_to(folder).parent) for file in files}
    return {file: {split} for file, split in named.items() if split}


def _entries(file: Path) -> list[tuple[int, str]]:
    """Line and name of each entry; a second column, and a picture's suffix, are left out."""
    entries = []
    for line, text in enumerate(read_text(file).splitlines(), start=1):
        name = re.sub(r"\s+(-1|0|1)$", "", text.strip())
        if name:
            stem, dot, suffix = name.rpartition(".")
            entries.append((line, stem if f"{dot}{suffix}".lower() in PICTURES else name))
    return entries


def _open(annotation: "_Annotation", options: Options, faults: Faults) -> Picture | None:
    picture = found_picture(_find(annotation, options), f"{annotation.file}: ", faults)
    if picture is None:
        return None
    line, size = annotation.size()
    if size is not None and size != picture.size:
        raise UserError(
            f"{annotation.file}, line {line}: <size> is {size[0]} x {size[1]}, but its picture "
            f"{picture.file} is {picture.size[0]} x {picture.size[1]}, after its EXIF rotation if "
            "it has one; correct <size> and boxes, or the picture"
        )
    return picture


def _find(annotation: "_Annotation", options: Options) -> Path:
    """The picture that has the XML's name, else the one that <filename> says.

    Its folders are left out: many XMLs name those of the machine that they were made on.
    """
    file = annotation.file
    named = Path(annotation.text("filename").replace("\\", "/")).name
    beside = [file.parent, *(place / x for place in file.parents[:3] for x in _FOLDERS)]
    folders = beside if options.images_folder is None else [options.images_folder]
    for folder in folders:
        found = pictures_of_stem(folder, file.stem)
        if len(found) == 1 or folder / named in found:
            return folder / named if folder / named in found else found[0]
        if found:
            raise UserError(
                f"{file}: {folder} has several pictures of its name "
                f"({', '.join(x.name for x in found)}); name one of them in <filename>"
            )
    for folder in folders:
        if named and os.path.isfile(folder / named):
            return folder / named
    expected = next((x for x in folders if x.name in _FOLDERS and x.is_dir()), folders[0])
    return expected / (named or f"{file.stem}.jpg")


class _Annotation:
    """One XML file, its elements with their lines."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines: dict[Element, int] = {}
        self._root = self._parse()
        if self._root.tag != "annotation":
            raise UserError(
                f"{file}, line {self._lines[self._root]}: the root is <{self._root.tag}>; it must "
                "be VOC's <annotation>"
            )

    def _parse(self) -> Element:
        try:
            raw = self.file.read_bytes()
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read ({error.strerror}); mend that") from None
        # Entities, which can grow to gigabytes, come only after a DOCTYPE, which no VOC file needs.
        # In UTF-16 its letters lie between null bytes.
        if b"<!DOCTYPE" in raw or b"\0" in raw or len(raw) > MAX_TEXT:
            raise UserError(
                f"{self.file}: has a DOCTYPE, null bytes or more than {MAX_TEXT} bytes; save it as "
                "plain XML in UTF-8 without DOCTYPE"
            )
        parser, builder = expat.ParserCreate(), TreeBuilder()

        def start(tag: str, attributes: dict[str, str]) -> None:
            self._lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

        parser.StartElementHandler = start
        parser.EndElementHandler = builder.end
        parser.CharacterDataHandler = builder.data
        try:
            parser.Parse(raw, True)
        except (expat.ExpatError, LookupError, ValueError) as error:
            line = getattr(error, "lineno", 1)
            raise UserError(
                f"{self.file}, line {line}: not valid XML ({str(error).split(':')[0]}); mend it "
                "there or export it again"
            ) from None
        return builder.close()

    def text(self, path: str, element: Element | None = None) -> str:
        """The text of the element's child, or nothing."""
        return ((self._root if element is None else element).findtext(path) or "").strip()

    def _where(self, element: Element) -> str:
        return f"{self.file}, line {self._lines[element]}"

    def size(self) -> tuple[int, tuple[int, int] | None]:
        """Line, and width and height as the XML has them; None where it has not, or 0."""
        size = self._root.find("size")
        if size is None:
            return 1, None
        where = self._where(size)
        sides = [number(self.text(x, size) or "0", f"<{x}>", where) for x in ("width", "height")]
        return self._lines[size], (int(sides[0]), int(sides[1])) if min(sides) > 0 else None

    def boxes(self, *, first_pixel: int) -> list[Box]:
        return [self._box(element, first_pixel) for element in self._root.iterfind("object")]

    def _box(self, element: Element, first_pixel: int) -> Box:
        label, flag = self.text("name", element), self.text("difficult", element) or "0"
        where = self._where(element)
        if not label:
            raise UserError(f"{where}: <object> has no <name>; name its class")
        if flag not in {"0", "1"}:
            raise UserError(f"{where}: <difficult> is {show(flag)}; it must be 0 or 1")
        box = element.find("bndbox")
        if box is None:
            raise UserError(
                f"{where}: <object> has no <bndbox>; give it one with xmin, ymin, xmax and ymax"
            )
        x1, y1, x2, y2 = (
            number(self.text(side, box), f"<{side}>", self._where(box))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        corners = (x1 - first_pixel, y1 - first_pixel, x2, y2)
        return Box(label, corners, self.file, self._lines[box], flag == "1")
