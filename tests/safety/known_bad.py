"""Files that would harm whoever trusts them, each made by a few lines; none is kept in the project.

What they would do, were they believed: make the file ``SENTINEL``, take all memory, never end,
or reach outside the folder that they are in.
"""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.data.coco_sets import valid_content

SENTINEL = "pwned"
GIB = 2**30


class Command:
    """Pickled, a program that makes the sentinel file in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {SENTINEL}",)


def png(side: int, *more: tuple[bytes, bytes], pixels: bytes = b"\0" * 99) -> bytes:
    """A few bytes that claim to be a picture of ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*x) for x in chunks)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"


def laughs(of_list: bool = True) -> str:
    """Ten aliases of ten aliases of ...: 10^9 values, as list items or as merged keys."""
    lines = ["a0: &a0 [1]" if of_list else "a0: &a0 {k: 1}"]
    for i in range(1, 10):
        aliases = ", ".join([f"*a{i - 1}"] * 10)
        lines.append(f"a{i}: &a{i} " + (f"[{aliases}]" if of_list else f"{{<<: [{aliases}]}}"))
    return "\n".join(lines)


Make = Callable[[Path], None]


def _text(content: str, name: str = "mine.yaml") -> Make:
    return lambda folder: (folder / name).write_text(content) and None


def _link(target: str, name: str, content: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).symlink_to(target)
        (folder / "mine.yaml").write_text(content)

    return make


def _pipe(name: str, content: str) -> Make:
    def make(folder: Path) -> None:
        os.mkfifo(folder / name)
        (folder / "mine.yaml").write_text(content)

    return make


def _circle(folder: Path) -> None:
    for one, other in (("mine", "b"), ("b", "c"), ("c", "b")):
        (folder / f"{one}.yaml").write_text(f"_BASE_: {other}.yaml")


def _many_bases(folder: Path) -> None:
    """2^40 readings."""
    for i in range(40):
        (folder / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]")
    (folder / "40.yaml").write_text("{}")
    (folder / "mine.yaml").write_text("_BASE_: 0.yaml")


def _evil_base(folder: Path) -> None:
    (folder / "evil.yaml").write_text(f"A: !!python/object/apply:os.system ['touch {SENTINEL}']")
    (folder / "mine.yaml").write_text("_BASE_: evil.yaml")


# Configurations "mine.yaml", in a folder whose parent holds a good "outside.yaml": the fault, how
# it is made, and what is said.
CONFIGS: dict[str, tuple[Make, str]] = {
    "command": (
        _text(f"SOLVER: !!python/object/apply:os.system ['touch {SENTINEL}']"),
        "only plain YAML is read",
    ),
    "command in the base": (_evil_base, r"only plain YAML is read"),
    "name": (_text("SOLVER: !!python/name:os.system"), "only plain YAML is read"),
    "module": (_text("SOLVER: !!python/module:antigravity"), "only plain YAML is read"),
    "object": (_text("A: !!python/object/new:os.system [touch pwned]"), "only plain YAML is read"),
    "laughs": (_text(laughs()), r"more than 20000 values, with all that aliases repeat \(line 5"),
    "merged laughs": (_text(laughs(of_list=False)), "more than 20000 values"),
    "alias of itself": (_text("A: &a [1, *a]"), r"an alias stands within what it repeats \(line 1"),
    "key of itself": (_text("? &a {b: *a}\n: 1"), "an alias stands within what it repeats"),
    "brackets": (_text("[" * 5_000), "nested more than 50 levels deep"),
    "braces": (_text("{a: " * 5_000), "nested more than 50 levels deep"),
    "indents": (_text("- " * 5_000), "nested more than 50 levels deep"),
    "questions": (_text("? " * 5_000), "nested more than 50 levels deep"),
    "huge": (_text("A: '" + "x" * 2**20 + "'"), "more than the 1 MiB"),
    "many values": (_text("A: [" + "1," * 25_000 + "]"), "more than 20000 values"),
    "digits": (_text("A: " + "9" * 5000), "what looks like a date or number and is none"),
    "no date": (_text("A: 2001-99-99"), "what looks like a date or number and is none"),
    "no number": (_text("A: !!int x"), "what looks like a date or number and is none"),
    "binary": (lambda f: (f / "mine.yaml").write_bytes(bytes(range(256))) and None, "not valid"),
    "null byte": (_text("A: \0"), "not valid YAML"),
    "list": (_text("- 1"), "not a mapping"),
    "list below": (_text("_BASE_: [outside.yaml, [1]]"), "its _BASE_"),
    "parser's stack": (_text(f"OUTPUT_DIR: {'-' * 100_000}1"), "OUTPUT_DIR is .*too complex"),
    "parser's depth": (_text(f"OUTPUT_DIR: {'1+' * 20_000}1"), "OUTPUT_DIR is .*recursion"),
    "base outside": (_text("_BASE_: ../outside.yaml"), r"_BASE_ ../outside.yaml lies outside"),
    "base two outside": (_text("_BASE_: ../../../../../../etc/passwd"), "lies outside"),
    "absolute base": (_text("_BASE_: /etc/passwd"), "_BASE_ /etc/passwd lies outside"),
    "home": (_text("_BASE_: ~/../../etc/passwd"), "lies outside|no file"),
    "link outside": (_link("../outside.yaml", "b.yaml", "_BASE_: b.yaml"), "b.yaml lies outside"),
    "shipped, and out": (_text("_BASE_: nowhere/../setup.py"), "no file nowhere/../setup.py"),
    "device": (_text("_BASE_: /dev/zero"), "lies outside"),
    "link to a device": (_link("/dev/zero", "b.yaml", "_BASE_: b.yaml"), "lies outside"),
    "pipe": (_pipe("b.yaml", "_BASE_: b.yaml"), "no file, or not an ordinary one"),
    "folder": (_text("_BASE_: ."), "no file, or not an ordinary one"),
    "remote": (_text("_BASE_: http://127.0.0.1:9/a.yaml"), "is remote; save it here"),
    "file scheme": (_text("_BASE_: file:///etc/passwd"), "is remote"),
    "itself": (_text("_BASE_: mine.yaml"), r"leads back to itself \(mine.yaml -> mine.yaml\)"),
    "circle": (_circle, r"back to itself \(b.yaml -> c.yaml -> b.yaml\)"),
    "many bases": (_many_bases, "more than 100 _BASE_ files"),
    "number as base": (_text("_BASE_: 3"), "its _BASE_ is 3, not a file's name"),
    "null byte in base": (_text('_BASE_: "a\\0b"'), r"no file a\\x00b"),
    "long base": (_text(f"_BASE_: {'x' * 100_000}"), "no file xxxx"),
    "escape codes": (_text('"\\e[31m\\nA": 1'), "unknown key"),
}


def _coco(**changes: Any) -> bytes:
    return json.dumps(valid_content() | changes).encode()


def _with(name: str, row: dict[str, Any]) -> bytes:
    content = valid_content()
    content[name][0] |= row
    return json.dumps(content).encode()


def _box(numbers: str) -> bytes:
    return _with("annotations", {"bbox": "HERE"}).replace(b'"HERE"', numbers.encode())


# Annotations, and what is said of them.
ANNOTATIONS: dict[str, tuple[Callable[[], bytes], str]] = {
    "lists": (lambda: b"[" * 1_000_000, "nested too deeply"),
    "objects": (lambda: b'{"a":' * 200_000, "nested too deeply"),
    "NaN": (lambda: _box("[0, NaN, 5, 5]"), r"bbox is \[0, NaN, 5, 5\]; it must be four finite"),
    "infinity": (lambda: _box("[0, 0, Infinity, 5]"), "it must be four finite numbers"),
    "1e308": (lambda: _box("[0, 0, 1e308, 1e308]"), "it must be four finite numbers"),
    "1e999": (lambda: _box("[0, 0, 1e999, 5]"), "it must be four finite numbers"),
    "4,000 digits": (lambda: _box(f"[0, 0, {'9' * 4000}, 5]"), "it must be four finite numbers"),
    "5,000 digits": (lambda: _box(f"[0, 0, {'9' * 5000}, 5]"), "not usable as JSON"),
    "texts": (lambda: _box('["0", "0", "5", "5"]'), "it must be four finite numbers"),
    "width of NaN": (lambda: _with("images", {"width": float("nan")}), "width is NaN"),
    "huge width": (lambda: _with("images", {"width": 10**18}), "whole number of pixels"),
    "key that comes twice": (
        lambda: (
            _coco()
            .replace(b'"id": 10', b'"id": 10, "file_name": "../../x"', 1)
            .replace(b'"file_name": "a.png", ', b"")
        ),
        r'"../../x"; it must be relative',
    ),
    "way out": (lambda: _with("images", {"file_name": "../../etc/passwd"}), "must be relative"),
    "absolute": (lambda: _with("images", {"file_name": "/etc/passwd"}), "must be relative"),
    "null byte": (lambda: _with("images", {"file_name": "a\0.png"}), "without line breaks"),
    "escape codes": (
        lambda: _with("categories", {"name": "\x1b[2J\x9b31mcat"}),
        r'name is "\\u001b\[2J\\x9b31mcat"; it must be a non-empty string',
    ),
    "line break": (lambda: _with("categories", {"name": "cat\nINFO: ok"}), "without line breaks"),
    "turned text": (lambda: _with("categories", {"name": "\u202egnp.exe"}), "without line breaks"),
    "surrogate": (lambda: _with("categories", {"name": "\ud800"}), "without line breaks"),
    "long name": (lambda: _with("categories", {"name": "x" * 10_000}), "of at most 250 characters"),
}


# Pictures of 40 x 30 pixels, as their annotations say, and what is said of them.
PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "60,000 x 60,000": (lambda f: f.write_bytes(png(60_000)), "decompression bomb"),
    "2^31 - 1": (lambda f: f.write_bytes(png(2**31 - 1)), "decompression bomb"),
    "compressed text": (
        lambda f: f.write_bytes(png(40, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**23), 9)))),
        r"Decompressed data too large",
    ),
    "program for Ghostscript": (lambda f: f.write_bytes(EPS), "it is none of JPEG, PNG"),
    "pipe": (lambda f: os.mkfifo(f), "not a regular file"),
    "device": (lambda f: f.symlink_to("/dev/zero"), "not a regular file"),
    "folder": (lambda f: f.mkdir(), "Is a directory"),
    "script": (lambda f: f.write_text("#!/bin/sh\ntouch pwned\n"), "it is none of"),
}


def _claims(length: int) -> bytes:
    """A bytearray of which only the claimed length is there."""
    return b"\x80\x05\x96" + struct.pack("<Q", length) + b"ab."


def _nested_key(levels: int) -> bytes:
    """A dictionary whose key is a tuple in a tuple in ..."""
    return b"\x80\x02})" + b"\x85" * levels + b"K\x01s."


def _doubled_key(levels: int) -> bytes:
    """A key that holds itself twice over, 2^levels times: hashing it ends never."""
    return b"\x80\x02})" + b"2\x86" * levels + b"K\x01s."


def _array(shape: tuple[int, ...], code: str, data: object) -> bytes:
    """An array as numpy pickles it, whose parts need not fit each other."""

    return b"".join(
        (
            b"\x80\x03}X\x05\0\0\0model}X\x01\0\0\0a",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R",
            b"(K\x01" + _part(shape),
            b"cnumpy\ndtype\n" + _part((code, False, True)) + b"R",
            b"\x89" + _part(data) + b"tbss.",
        )
    )


def _part(value: object) -> bytes:
    """Pickled, without what begins and ends a whole pickle."""
    return pickle.dumps(value, 3)[2:-1]


def _zip(compress: int, size: int) -> bytes:
    """A ``.pth`` whose only tensor has become ``size`` zeros."""
    out = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(4)}}, out)
    archive = zipfile.ZipFile(io.BytesIO(out.getvalue()))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", compress) as target:
        for entry in archive.namelist():
            data = archive.read(entry)
            target.writestr(entry, bytes(size) if entry.endswith("/data/0") else data)
    return bomb.getvalue()


def _tar() -> bytes:
    """As PyTorch wrote before 0.4; its storages are read first."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Command())
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _saved(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


# Weights: the name's suffix, their bytes, and what is said of them.
WEIGHTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "command": (".pkl", lambda: pickle.dumps({"model": Command()}), "it asks for posix.system"),
    "command, old": (".pkl", lambda: b"cos\nsystem\n(S'touch pwned'\ntR.", "it asks for os.system"),
    "eval": (".pkl", lambda: b"cbuiltins\neval\n(S'1'\ntR.", "it asks for builtins.eval"),
    "getattr": (".pkl", lambda: b"cbuiltins\ngetattr\n.", "it asks for builtins.getattr"),
    "load of numpy": (".pkl", lambda: b"cnumpy\nload\n(S'x.npy'\ntR.", "it asks for numpy.load"),
    "dots": (".pkl", lambda: b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93.", "numpy.os.system"),
    "control characters": (".pkl", lambda: b"ca\x1b[2J\nb\n.", r"a\\x1b\[2J.b"),
    "instance": (".pkl", lambda: b"(ios\nsystem\n.", "it asks for os.system"),
    "extension": (".pkl", lambda: b"\x80\x02\x82\x01.", "unregistered extension code"),
    "persistent": (".pkl", lambda: b"Px\n.", "persistent"),
    "array of pointers": (".pkl", lambda: _array((2,), "O", b"A" * 16), "numpy.dtype 'O'"),
    "array of any size": (".pkl", lambda: _array((10**6, 10**6), "f4", b"abcd"), "more or less"),
    "array of negative size": (".pkl", lambda: _array((-1, -4), "u1", b"abcd"), "more or less"),
    "empty array": (
        ".pkl",
        lambda: b"cnumpy\nndarray\n" + _part(((10**6, 10**6),)) + b"R.",
        "without its content",
    ),
    "fields": (".pkl", lambda: _array((1,), "f4,O", b"A" * 12), "numpy.dtype 'f4,O'"),
    "codec": (".pkl", lambda: b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.", "the encoding 'zip'"),
    "function refilled": (".pkl", lambda: b"c_codecs\nencode\n}S'a'\nI1\nsb.", "it fills a"),
    "claimed bytes": (".pkl", lambda: _claims(2**40), "truncated|exhausted|out of input"),
    "claimed memo": (".pkl", lambda: b"\x80\x02}r\xf0\xff\xff\x7f.", "no checkpoint"),
    "claimed frame": (".pkl", lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.", "no ch"),
    "nested key": (".pkl", lambda: _nested_key(100_000), "a tuple as a dictionary's key"),
    "doubled key": (".pkl", lambda: _doubled_key(100), "a tuple as a dictionary's key"),
    "command in .pth": (".pth", lambda: _saved({"model": Command()}), "read safely"),
    "command in old .pth": (
        ".pth",
        lambda: pickle.dumps({"model": Command()}, 2),
        "read safely",
    ),
    "command in .pyth": (".pyth", lambda: _saved({"model_state": Command()}), "read safely"),
    "command in a tar": (".pth", _tar, "it is a tar archive"),
    "zip bomb": (".pth", lambda: _zip(zipfile.ZIP_DEFLATED, 2**24), "it unpacks from .* to"),
    "zip of nothing": (".pth", lambda: b"PK\x05\x06" + bytes(18), "read safely"),
    "passwords": (".pth", lambda: b"root:x:0:0:root:/root:/bin/sh\n", "read safely"),
}


def coco_with_outline(points: str) -> bytes:
    row = {"segmentation": ["HERE"]}
    return _with("annotations", row).replace(b'"HERE"', f"[{points}]".encode())


def coco_with_name(name: str) -> bytes:
    return _with("categories", {"name": name})
