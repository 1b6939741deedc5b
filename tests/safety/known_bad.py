"""Files that would harm whoever trusts them, made by a few lines each; none is kept in the project.

If they were believed, they would create the file ``SENTINEL``, take all memory, never end, or reach
outside of their folder.
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
Make = Callable[[Path], object]


class Command:
    """A pickled program that creates the sentinel file in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {SENTINEL}",)


# Configs "mine.yaml", in a folder whose parent holds a valid "outside.yaml". More are in
# test_config.py and test_command_line.py.

COMMAND_YAML = f"SOLVER: !!python/object/apply:os.system ['touch {SENTINEL}']"


def laughs() -> str:
    """Ten aliases of ten aliases of ...: 10^9 merged keys."""
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    return "\n".join(lines)


def _files(mine: str, **others: str) -> Make:
    def make(folder: Path) -> None:
        for name, text in {"mine": mine, **others}.items():
            (folder / f"{name}.yaml").write_text(text)

    return make


def _base(make_base: Make) -> Make:
    """``b.yaml`` made in another way, as the base of ``mine.yaml``."""

    def make(folder: Path) -> None:
        make_base(folder / "b.yaml")
        (folder / "mine.yaml").write_text("_BASE_: b.yaml")

    return make


_MANY = {f"f{i}": f"_BASE_: [f{i + 1}.yaml, f{i + 1}.yaml]" for i in range(40)}  # 2^40 readings

CONFIGS: dict[str, Make] = {
    "module": _files("SOLVER: !!python/module:antigravity"),
    "object": _files("A: !!python/object/new:os.system [touch pwned]"),
    "brackets": _files("[" * 5_000),
    "huge": _files("A: '" + "x" * 2**20 + "'"),
    "digits": _files("A: " + "9" * 5000),
    "no date": _files("A: 2001-99-99"),
    "binary": lambda folder: (folder / "mine.yaml").write_bytes(bytes(range(256))),
    "parser's stack": _files(f"OUTPUT_DIR: {'-' * 100_000}1"),
    "parser's depth": _files(f"OUTPUT_DIR: {'1+' * 20_000}1"),
    "absolute base": _files("_BASE_: /etc/passwd"),
    "link outside": _base(lambda base: base.symlink_to("../outside.yaml")),
    "link to a device": _base(lambda base: base.symlink_to("/dev/zero")),
    "pipe": _base(os.mkfifo),
    "folder": _files("_BASE_: ."),
    "remote": _files("_BASE_: http://127.0.0.1:9/a.yaml"),
    "circle": _files("_BASE_: b.yaml", b="_BASE_: c.yaml", c="_BASE_: b.yaml"),
    "many bases": _files("_BASE_: f0.yaml", f40="{}", **_MANY),
    "number as base": _files("_BASE_: 3"),
    "null byte in base": _files('_BASE_: "a\\0b"'),
    "escape codes": _files('"\\e[31m\\nA": 1'),
}


# Annotations "train.json", and the key that the error names. More are in test_coco_rules.py.


def _with(name: str, /, **changes: Any) -> bytes:
    content = valid_content()
    content[name][0] |= changes
    return json.dumps(content).encode()


ANNOTATIONS: dict[str, tuple[Callable[[], bytes], str]] = {
    "objects": (lambda: b'{"a":' * 200_000, ""),
    "huge width": (lambda: _with("images", width=10**18), "width"),
    "way out": (lambda: _with("images", file_name="../../etc/passwd"), "file_name"),
    "null byte": (lambda: _with("images", file_name="a\0.png"), "file_name"),
    "escape codes": (lambda: _with("categories", name="\x1b[2J\x9b31mcat"), "name"),
    "line break": (lambda: _with("categories", name="cat\nINFO: ok"), "name"),
    "surrogate": (lambda: _with("categories", name="\ud800"), "name"),
    "long name": (lambda: _with("categories", name="x" * 10_000), "name"),
}


# Images.


def png(side: int, *more: tuple[bytes, bytes]) -> bytes:
    """A few bytes that claim to be an image of ``side`` x ``side`` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*x) for x in chunks)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"
_TEXT_BOMB = (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**23), 9))

IMAGES: dict[str, Make] = {
    "60,000 x 60,000": lambda path: path.write_bytes(png(60_000)),
    "2^31 - 1": lambda path: path.write_bytes(png(2**31 - 1)),
    "compressed text": lambda path: path.write_bytes(png(40, _TEXT_BOMB)),
    "program for Ghostscript": lambda path: path.write_bytes(EPS),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "script": lambda path: path.write_text("#!/bin/sh\ntouch pwned\n"),
}


# Weights: the suffix of the file, and its bytes.


def _part(value: object) -> bytes:
    """Pickled, without what begins and ends a whole pickle."""
    return pickle.dumps(value, 3)[2:-1]


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


def _zip_bomb(size: int) -> bytes:
    """A ``.pth`` whose only tensor is ``size`` compressed zeros."""
    archive = zipfile.ZipFile(io.BytesIO(_saved({"model": {"a": torch.zeros(4)}})))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in archive.namelist():
            data = archive.read(entry)
            target.writestr(entry, bytes(size) if entry.endswith("/data/0") else data)
    return bomb.getvalue()


def _tar() -> bytes:
    """As PyTorch wrote before 0.4; it would unpickle the storages first."""
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


_LONG = struct.pack("<Q", 2**40)

WEIGHTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "command": (".pkl", lambda: pickle.dumps({"model": Command()})),
    "getattr": (".pkl", lambda: b"cbuiltins\ngetattr\n."),
    "dots": (".pkl", lambda: b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93."),
    "control characters": (".pkl", lambda: b"ca\x1b[2J\nb\n."),
    "instance": (".pkl", lambda: b"(ios\nsystem\n."),
    "array of pointers": (".pkl", lambda: _array((2,), "O", b"A" * 16)),
    "array of any size": (".pkl", lambda: _array((10**6, 10**6), "f4", b"abcd")),
    "array of negative size": (".pkl", lambda: _array((-1, -4), "u1", b"abcd")),
    "empty array": (".pkl", lambda: b"cnumpy\nndarray\n" + _part(((10**6, 10**6),)) + b"R."),
    "fields": (".pkl", lambda: _array((1,), "f4,O", b"A" * 12)),
    "codec": (".pkl", lambda: b"c_codecs\nencode\n(S'a'\nS'zip'\ntR."),
    "function changed": (".pkl", lambda: b"c_codecs\nencode\n}S'a'\nI1\nsb."),
    "claimed bytes": (".pkl", lambda: b"\x80\x05\x96" + _LONG + b"ab."),
    "claimed memo": (".pkl", lambda: b"\x80\x02}r\xf0\xff\xff\x7f."),
    "claimed frame": (".pkl", lambda: b"\x80\x04\x95" + _LONG + b"}."),
    "nested key": (".pkl", lambda: b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."),
    # A tuple of 2^100 elements, whose hash would never end.
    "doubled key": (".pkl", lambda: b"\x80\x02})" + b"2\x86" * 100 + b"K\x01s."),
    "command in .pth": (".pth", lambda: _saved({"model": Command()})),
    "command in old .pth": (".pth", lambda: pickle.dumps({"model": Command()}, 2)),
    "command in .pyth": (".pyth", lambda: _saved({"model_state": Command()})),
    "command in a tar": (".pth", _tar),
    "zip bomb": (".pth", lambda: _zip_bomb(2**24)),
    "no weights": (".pth", lambda: _saved({"model": 3})),
    "a list": (".pth", lambda: _saved([1, 2])),
    "text": (".pth", lambda: b"not weights at all"),
    "nothing": (".pth", lambda: b""),
}
