"""Reads pickles of numpy arrays and plain containers, as in detectron2's model zoo, and no others.

A pickle is a program. The functions and classes it may name are replaced by those below, which
check their arguments; numpy's own would let it make arrays of pointers, or of any size.
"""

import io
import math
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ..errors import printable

_KEYS = (str, bytes, int, float, type(None))  # hashing nested tuples may never end
_NUMBERS_AND_TEXT = "biufcSU"  # kinds of dtype


def load_arrays(file: BinaryIO) -> Any:
    """Returns the content of a pickle, in time and memory bounded by the size of the file.

    Raises:
        pickle.UnpicklingError: if it asks for anything else; a damaged file raises nearly anything.
    """
    return _Unpickler(io.BytesIO(file.read()), encoding="latin1").load()


def check_archive(file: BinaryIO) -> None:
    """Refuses a ``.pth`` that is compressed, as PyTorch's never are, or a tar archive.

    PyTorch wrote tar archives before 0.4, and unpacks them unsafely before 2.6.

    Raises:
        pickle.UnpicklingError: for either.
    """
    if tarfile.is_tarfile(file):
        raise pickle.UnpicklingError("it is a tar archive, as PyTorch wrote before version 0.4")
    size = file.seek(0, io.SEEK_END)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise pickle.UnpicklingError(f"it unpacks from {size} to {unpacked} bytes")
    file.seek(0)


class _DType:
    """Stands for ``numpy.dtype``: numbers or text, by name and byte order."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        self.plain = np.dtype(name if type(name) is str else "O")
        if self.plain.kind not in _NUMBERS_AND_TEXT:
            raise pickle.UnpicklingError(f"it asks for numpy.dtype {printable(repr(name), 80)}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if parts[:3] != [None, None, None]:
            raise pickle.UnpicklingError("it asks for a numpy.dtype of several fields")
        if order in ("<", ">"):
            self.plain = self.plain.newbyteorder(order)


class _Array(np.ndarray):
    """Stands for ``numpy.ndarray``: filled once, with as many bytes as shape and dtype need."""

    def __new__(cls, *_: Any) -> "_Array":
        raise pickle.UnpicklingError("it asks for numpy.ndarray without its content")

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if type(data) is str else data  # as Python 2 wrote it
        fits = len(data) == math.prod(shape) * dtype.plain.itemsize and min(shape, default=0) >= 0
        if type(data) is not bytes or not fits:
            raise pickle.UnpicklingError("it has an array whose size differs from its content")
        state = (1, shape, dtype.plain, bool(fortran), data)
        super().__setstate__(state)


def _reconstruct(cls: type, shape: tuple[int, ...], code: object) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _from_buffer(data: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    array = np.frombuffer(data, dtype.plain)
    return array.reshape(shape, order="F" if order == "F" else "C").copy()


def _scalar(dtype: _DType, data: bytes | str) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.plain, 1)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {printable(repr(encoding), 80)}")
    return text.encode("latin1")


def _empty() -> bytes:
    return b""


class _Dict(dict[Any, Any]):
    """Stands for ``OrderedDict``, without the attributes that PyTorch's state dicts have."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]] = ()) -> None:
        super().__init__()
        for key, value in pairs:
            self[_key(key)] = value

    def __setstate__(self, state: object) -> None:
        pass


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty,
    ("collections", "OrderedDict"): _Dict,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer


def _key(key: Any) -> Any:
    if not isinstance(key, _KEYS):
        raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a dictionary key")
    return key


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, with a check before each step that changes an existing object."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    metastack: list[list[Any]]
    read: Callable[[int], bytes]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {printable(f'{module}.{name}', 80)}")
        return _STAND_INS[module, name]

    def load_bytearray8(self) -> None:
        """Reads before it allocates, so that a false length cannot exhaust memory.

        The base class allocates first.
        """
        length = int.from_bytes(self.read(8), "little")
        data = self.read(length)
        if len(data) < length:
            raise pickle.UnpicklingError("pickle data was truncated")
        self.stack.append(bytearray(data))


def _check_items(target: object, keys: list[Any]) -> None:
    if not isinstance(target, dict):
        raise pickle.UnpicklingError(f"it puts keys into a {type(target).__name__}")
    for key in keys:
        _key(key)


def _check_state(target: object) -> None:
    if type(target) not in (_Array, _DType, _Dict):
        raise pickle.UnpicklingError(f"it sets the state of a {type(target).__name__}")


def _refuse_set(unpickler: _Unpickler) -> None:
    raise pickle.UnpicklingError("it has a set")


def _first(check: Callable[[Any], None], step: Callable[[Any], None]) -> Callable[[Any], None]:
    def checked(unpickler: Any) -> None:
        check(unpickler)
        step(unpickler)

    return checked


_Unpickler.dispatch[pickle.BYTEARRAY8[0]] = _Unpickler.load_bytearray8
for _code in (pickle.EMPTY_SET, pickle.FROZENSET, pickle.ADDITEMS):
    _Unpickler.dispatch[_code[0]] = _refuse_set
for _code, _check in {
    pickle.SETITEM: lambda x: _check_items(x.stack[-3], [x.stack[-2]]),
    pickle.SETITEMS: lambda x: _check_items(x.metastack[-1][-1], x.stack[::2]),
    pickle.DICT: lambda x: _check_items({}, x.stack[::2]),
    pickle.BUILD: lambda x: _check_state(x.stack[-2]),
}.items():
    _Unpickler.dispatch[_code[0]] = _first(_check, _Unpickler.dispatch[_code[0]])
