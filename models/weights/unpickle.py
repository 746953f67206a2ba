"""Read `.pth` files and training states without running anything that they contain.

A pickle is a program. The machine here follows it as far as it builds tensors, containers and plain values; whatever
else a file names is refused by that name, and nothing is ever imported. It depends on no list of PyTorch's, and checks
what PyTorch leaves to the writer of a file: that storages lie within the file, and tensors within their storages.
"""
from __future__ import annotations

import argparse
import io
import math
import mmap
import os
import pickletools
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import torch
from torch import Tensor, UntypedStorage

from utils.errors import UserError, first_line

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"  # first byte of a pickle of protocol 2 or later, and so of PyTorch's old format
OLD_MAGIC, OLD_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the old format
STRUCTURE, DATA, BYTE_ORDER = "data.pkl", "data/", "byteorder"  # entries of the zip format, in one folder
ENCRYPTED = 1  # flag of a zip entry
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: ends with the lengths of its name and extra field
ALIGNMENT = 8  # bytes; storages of archives that PyTorch wrote are aligned to 64
COUNT = struct.Struct("<q")  # elements of a storage, before its data in the old format

# What a file may cost. A training state of the published size has 4,000 tensors, 70 steps each.
MAX_PICKLE = 2 ** 24  # bytes of the pickle, without the tensors' data, and of a zip archive's directory
MAX_STEPS = 2 ** 20  # opcodes, items and characters that they copy, values that are found in the end
MAX_DEPTH = 64  # of containers in one another
MAX_DIMENSIONS = 16
MAX_BITS = 1024  # of an integer
MAX_REUSE = 4  # bytes of all tensors together, in sizes of the file: tied weights share a storage
SHOWN_NAME = 100  # characters of a refused type's name
BLOCK = 2 ** 22  # bytes that are read at once


class CheckpointError(UserError):
    """A weight file that cannot be used; the message names the file, the tensor or type, and the likely cause."""


class RefusedError(CheckpointError):
    """A file that holds more than tensors and plain values; nothing of it was run. `type_name`: what it holds."""

    def __init__(self, message: str, type_name: str) -> None:
        super().__init__(message)
        self.type_name = type_name


class TooLargeError(CheckpointError):
    """A file whose tensors do not fit into this machine's memory."""


class _Refused(Exception):
    """What a pickle names that may not be in it."""


class _Damaged(Exception):
    """A pickle that no writer makes: cut off, or forged."""


# What damaged or forged bytes make the parsers raise.
_BROKEN = (_Damaged, zipfile.BadZipFile, struct.error, ValueError, LookupError, TypeError, OverflowError, MemoryError,
           RecursionError, EOFError, OSError, RuntimeError, NotImplementedError)


def load_pickle(path: str | PathLike, mapped: bool = True, remedy: str = "download it again") -> Any:
    """The object in a `.pth` file: tensors on the CPU, containers, numbers, texts and the inert types of `_ALLOWED`.

    mapped: leave the tensors' data on the disk until they are used, where the file allows it; for files that nobody
    replaces or changes while the tensors live. Otherwise the data are read, and verified by their checksums.
    remedy: what the message says about a file that is damaged.
    Raises FileNotFoundError; RefusedError for a file that holds a type that is not allowed (named in the message;
    nothing of it has run); CheckpointError for one that is truncated or no PyTorch file, or too large.
    """
    path = Path(path)
    with _Sparing(io.FileIO(path)) as file:
        start = file.read(len(ZIP_MAGIC))
        file.seek(0)
        if start != ZIP_MAGIC and start[:1] != PICKLE_MAGIC:
            raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is no PyTorch file, perhaps an error page or "
                                  f"a pointer file: {remedy}")
        try:
            return (_ZipFormat(file, mapped) if start == ZIP_MAGIC else _OldFormat(file)).read()
        except _Refused as error:
            name = str(error)[:SHOWN_NAME]
            raise RefusedError(f"{path}: refused, because it holds an object of type {name}, which is neither a tensor "
                               "nor a plain value; nothing was run", name) from None
        except _BROKEN as error:
            if isinstance(error, MemoryError) or "not enough memory" in str(error):
                raise TooLargeError(f"{path}: not enough memory to read it") from error
            raise CheckpointError(f"{path}: truncated or damaged ({first_line(error)}): {remedy}") from error


class _Sparing(io.BufferedReader):
    """A file that gives nobody more than `MAX_PICKLE` bytes at once, such as a zip archive's directory of millions."""

    def read(self, size: int | None = -1, /) -> bytes:
        whole = size is None or size < 0  # all that is left
        data = super().read(min(MAX_PICKLE + 1 if whole else size, MAX_PICKLE + 1))
        _require(len(data) <= MAX_PICKLE, f"more than {MAX_PICKLE} bytes at once")
        return data


# --- what a pickle may hold ---

@dataclass(frozen=True)
class _Function:
    """Stands for what a pickle calls; builds the same, or an inert likeness, from its arguments."""

    build: Callable[..., Any]


@dataclass(frozen=True)
class _Elements:
    """Stands for a class of storages: the type of their elements."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    """The data of tensors."""

    data: UntypedStorage
    dtype: torch.dtype


class _NumberType:
    """Stands for a NumPy type of plain numbers: how `struct` reads one."""

    FORMATS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
               "f2": "e", "f4": "f", "f8": "d"}

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or code not in self.FORMATS:
            raise _Refused(f"numpy.dtype {code}")
        self.format, self.order = self.FORMATS[code], "<"

    def restore(self, state: object) -> None:
        """Take the byte order from what NumPy pickles beside the code."""
        _require(isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "=", "|"),
                 "an impossible number type")
        self.order = state[1].replace("|", "<")

    def number(self, raw: object) -> float:
        """The number that some bytes say."""
        _require(isinstance(raw, bytes), "an impossible number")
        return struct.unpack(self.order + self.format, raw)[0]


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise _Damaged(fault)


def _whole(value: object) -> bool:
    return type(value) is int


def _sides(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(
        _whole(side) and side >= 0 for side in value)


def _tensor(storage: object, offset: object, shape: object, strides: object, requires_grad: object = False,
            hooks: object = None, metadata: object = None) -> Tensor:
    """A tensor whose elements lie within its storage, no two in one place: many more than there are bytes could be
    claimed, and kernels may take strides for granted."""
    _require(isinstance(storage, _Storage) and _whole(offset) and offset >= 0 and _sides(shape) and _sides(strides)
             and len(shape) == len(strides) and not metadata, "an impossible tensor")
    if 0 in shape:
        return torch.empty(shape, dtype=storage.dtype)
    room = storage.data.nbytes() // storage.dtype.itemsize
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides))
    _require(last < room and math.prod(shape) <= last + 1 - offset, "a tensor beyond its storage")
    return torch.empty(0, dtype=storage.dtype).set_(storage.data, offset, shape, strides)


def _parameter(data: object, *_: object) -> Tensor:
    _require(isinstance(data, Tensor), "an impossible parameter")
    return data


def _size(sides: object) -> torch.Size:
    _require(_sides(sides), "an impossible shape")
    return torch.Size(sides)


def _device(*parts: object) -> torch.device:
    _require(0 < len(parts) <= 2 and isinstance(parts[0], str) and all(map(_whole, parts[1:])), "an impossible device")
    return torch.device(*parts)


def _bytes(text: object, encoding: object) -> bytes:
    _require(isinstance(text, str) and encoding in ("latin1", "latin-1"), "impossible bytes")
    return text.encode("latin-1")


def _set(items: object = ()) -> set:
    _require(isinstance(items, (list, tuple)), "an impossible set")
    return set(map(_key, items))


def _path(kind: type[PurePosixPath | PureWindowsPath], *parts: object) -> PurePosixPath | PureWindowsPath:
    _require(all(isinstance(part, str) for part in parts), "an impossible path")
    return kind(*parts)


def _number(kind: object, raw: object) -> float:
    _require(isinstance(kind, _NumberType), "an impossible number")
    return kind.number(raw)


def _key(value: object) -> object:
    """A key of a dictionary or a member of a set: quickly hashed, and no two alike by design."""
    _require(value is None or type(value) in (bool, float, str, bytes)
             or _whole(value) and abs(value) < sys.hash_info.modulus, "an impossible key")
    return value


_DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
_STORAGES = {"Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64,
             "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
             "Bool": torch.bool}
_PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}  # pure ones: they cannot touch the disk
# Name in a pickle: what stands for it.
_ALLOWED: dict[str, object] = {
    **{f"torch.{name}": getattr(torch, name) for name in _DTYPES},
    **{f"torch.{name}Storage": _Elements(dtype) for name, dtype in _STORAGES.items()},
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    "torch.Size": _Function(_size),
    "torch.device": _Function(_device),
    "collections.OrderedDict": _Function(lambda: OrderedDict()),  # without arguments: what follows fills it
    "argparse.Namespace": _Function(lambda: argparse.Namespace()),
    **{f"{module}.set": _Function(_set) for module in ("builtins", "__builtin__")},
    "_codecs.encode": _Function(_bytes),  # of what protocol 2 has no opcode for
    **{f"{module}.{pure}{name}": _Function(partial(_path, kind)) for name, kind in _PATHS.items()
       for pure in ("", "Pure") for module in ("pathlib", "pathlib._local")},
    "numpy.dtype": _Function(_NumberType),
    **{f"numpy.{core}.multiarray.scalar": _Function(_number) for core in ("core", "_core")},
}
_PLAIN = (type(None), bool, int, float, str, bytes, set, Tensor, torch.Size, torch.dtype, torch.device, PurePosixPath,
          PureWindowsPath, _NumberType)
_LITERALS = frozenset((  # opcodes whose argument is the value
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"))


class _Machine:
    """Runs the opcodes of pickles (see `pickletools`) as far as they build what is allowed."""

    def __init__(self, storage: Callable[[tuple], _Storage], size: int) -> None:
        """storage: gives the storage of a persistent id. size: bytes of the file."""
        self.storage, self.room, self.steps = storage, MAX_REUSE * size, MAX_STEPS
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # what lies on the stack before each mark
        self.memo: dict[int, Any] = {}

    def run(self, pickle: BinaryIO) -> Any:
        """The object in the next pickle of a stream, which is left behind it."""
        self.stack, self.outer, self.memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(pickle):
            self._spend(1)
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        result = self.stack.pop()
        self._require_plain(result)
        return result

    def _spend(self, steps: int) -> None:
        """Bounds what a file costs: else a few bytes could copy a long list again and again."""
        self.steps -= steps
        if self.steps < 0:
            raise _Damaged(f"more than {MAX_STEPS} steps")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "TUPLE":
                items = self._marked()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple([stack.pop() for _ in range(int(name[-1]))][::-1]))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "APPEND":
                self._fill(list, [stack.pop()])
            case "APPENDS":
                self._fill(list, self._marked())
            case "ADDITEMS":
                self._fill(set, self._marked())
            case "SETITEM":
                self._fill(dict, [stack.pop(), stack.pop()][::-1])
            case "SETITEMS":
                self._fill(dict, self._marked())
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_named(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(self._called(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                self._restore(stack[-1], state)
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case _:
                if name not in _LITERALS:
                    raise _Refused(str(argument).replace(" ", ".") if name == "INST" else f"opcode {name}")
                _require(not _whole(argument) or argument.bit_length() <= MAX_BITS, "an endless integer")
                stack.append(argument)

    def _marked(self) -> list[Any]:
        """What lies on the stack after the last mark, taken away with it."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _fill(self, kind: type, items: list[Any]) -> None:
        """Add to the container on the top of the stack."""
        target = self.stack[-1]
        _require(isinstance(target, kind), f"items of no {kind.__name__}")
        if kind is list:
            target.extend(items)
        elif kind is set:
            target.update(map(_key, items))
        else:
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _called(self, function: Any, arguments: Any) -> Any:
        _require(isinstance(function, _Function) and isinstance(arguments, tuple), "an impossible call")
        self._spend(sum(len(each) if isinstance(each, (str, bytes, list, tuple)) else 1 for each in arguments))
        return function.build(*arguments)

    def _restore(self, target: Any, state: Any) -> None:
        """Give an object its attributes: those of containers and tensors say nothing that anybody reads."""
        if isinstance(target, argparse.Namespace):
            _require(isinstance(state, dict) and all(isinstance(name, str) for name in state),
                     "an impossible namespace")
            self._spend(len(state))
            vars(target).update(state)
        elif isinstance(target, _NumberType):
            target.restore(state)
        else:
            _require(isinstance(target, (OrderedDict, Tensor)), "attributes of a plain value")

    def _require_plain(self, root: Any) -> None:
        """Whoever reads it may walk through all of it: no function, no loop, no forest grown from a few twigs."""
        waiting = [(root, 0)]
        while waiting:
            value, depth = waiting.pop()
            if isinstance(value, Tensor):
                self.room -= value.nbytes
                _require(self.room >= 0, "tensors of more bytes than the file")
            if isinstance(value, _PLAIN):
                continue
            if isinstance(value, (_Function, _Elements, _Storage)):
                raise _Refused("function, class or storage")
            inner = vars(value) if isinstance(value, argparse.Namespace) else value
            self._spend(len(inner))
            _require(depth < MAX_DEPTH, "containers in containers")
            waiting += [(each, depth + 1) for each in (inner.values() if isinstance(inner, dict) else inner)]


def _named(module: object, attribute: object) -> object:
    """What stands for a name in a pickle."""
    _require(isinstance(module, str) and isinstance(attribute, str), "an impossible name")
    name = f"{module}.{attribute}"
    if name not in _ALLOWED:
        raise _Refused(name.replace("__builtin__.", "builtins."))
    return _ALLOWED[name]


# --- the two formats ---

def _identified(identity: Any, length: int) -> tuple[str, torch.dtype, int]:
    """Key, type and bytes of the storage that a persistent id means."""
    _require(isinstance(identity, tuple) and len(identity) == length and identity[0] == "storage"
             and isinstance(identity[1], _Elements) and isinstance(identity[2], str) and _whole(identity[4])
             and identity[4] >= 0, "an impossible storage")
    dtype = identity[1].dtype
    return identity[2], dtype, identity[4] * dtype.itemsize


class _ZipFormat:
    """A zip archive of one folder: the pickle, and each storage as an entry of its own, not compressed."""

    def __init__(self, file: BinaryIO, mapped: bool) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self.archive, self.folder = zipfile.ZipFile(file), ""
        self.entries = {entry.filename: entry for entry in self.archive.infolist()}
        self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if mapped else None
        self.storages: dict[str, UntypedStorage] = {}
        self._check()

    def _check(self) -> None:
        entries = self.archive.infolist()
        _require(len(self.entries) == len(entries), "several entries of one name")
        _require(not any(entry.flag_bits & ENCRYPTED or entry.compress_type != zipfile.ZIP_STORED
                         or entry.compress_size != entry.file_size for entry in entries), "compressed entries")
        _require(sum(entry.file_size for entry in entries) <= self.size, "entries larger than the file")

    def read(self) -> Any:
        """The object in the file."""
        folders = [name.removesuffix(STRUCTURE) for name in self.entries if name.endswith("/" + STRUCTURE)]
        _require(len(folders) == 1, f"{len(folders)} x {STRUCTURE}")
        self.folder = folders[0]
        order = self.entries.get(self.folder + BYTE_ORDER)
        if order is not None and self._small(order) != sys.byteorder.encode():
            raise _Damaged("written on a machine of another byte order")
        structure = io.BytesIO(self._small(self.entries[self.folder + STRUCTURE]))
        return _Machine(self.storage, self.size).run(structure)

    def _small(self, entry: zipfile.ZipInfo) -> bytes:
        _require(entry.file_size <= MAX_PICKLE, f"{entry.file_size} bytes in {entry.filename}")
        return self.archive.read(entry)

    def storage(self, identity: tuple) -> _Storage:
        """The storage of a persistent id."""
        key, dtype, size = _identified(identity, 5)
        if key not in self.storages:
            entry = self.entries[f"{self.folder}{DATA}{key}"]
            maps = self.mapping is not None and entry.file_size > 0
            self.storages[key] = self._mapped(entry) if maps else self._read(entry)
        data = self.storages[key]
        _require(data.nbytes() == size, "a storage of another size")
        return _Storage(data, dtype)

    def _mapped(self, entry: zipfile.ZipInfo) -> UntypedStorage:
        names = LOCAL_HEADER.unpack_from(self.mapping, entry.header_offset)
        place = entry.header_offset + LOCAL_HEADER.size + sum(names)
        data = torch.frombuffer(self.mapping, dtype=torch.uint8, count=entry.file_size, offset=place).untyped_storage()
        return data.clone() if place % ALIGNMENT else data

    def _read(self, entry: zipfile.ZipInfo) -> UntypedStorage:
        data = torch.empty(entry.file_size, dtype=torch.uint8)
        with self.archive.open(entry) as stream:
            _fill_from(stream, data)
        return data.untyped_storage()


class _OldFormat:
    """Pickles one behind the other: magic number, version, system, object, keys of storages; then their data."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.room = self.size
        self.storages: dict[str, tuple[Tensor, torch.dtype]] = {}

    def read(self) -> Any:
        """The object in the file."""
        machine, pickles = _Machine(self.storage, self.size), io.BytesIO(self.file.read(MAX_PICKLE))
        for known in (OLD_MAGIC, OLD_PROTOCOL):
            found = machine.run(pickles)
            _require(_whole(found) and found == known, "no PyTorch file")
        system = machine.run(pickles)
        _require(isinstance(system, dict) and system.get("little_endian") is (sys.byteorder == "little"),
                 "another byte order")
        found, keys = machine.run(pickles), machine.run(pickles)
        _require(isinstance(keys, list) and all(isinstance(key, str) for key in keys)
                 and len(keys) == len(self.storages) and set(keys) == set(self.storages), "storages without data")
        self.file.seek(pickles.tell())
        for data, dtype in map(self.storages.__getitem__, keys):
            count, = COUNT.unpack(self.file.read(COUNT.size))
            _require(count * dtype.itemsize == data.nbytes, "a storage of another size")
            _fill_from(self.file, data)
        return found

    def storage(self, identity: tuple) -> _Storage:
        """The storage of a persistent id, to be filled later."""
        key, dtype, size = _identified(identity, 6)
        if key not in self.storages:
            self.room -= size
            _require(self.room >= 0, "storages larger than the file")
            self.storages[key] = torch.empty(size, dtype=torch.uint8), dtype
        data, written = self.storages[key]
        _require(data.nbytes == size and written is dtype and identity[5] is None, "a storage of two kinds or sizes")
        return _Storage(data.untyped_storage(), dtype)


def _fill_from(stream: BinaryIO, data: Tensor) -> None:
    """Read as many bytes as a uint8 tensor has, and its checksum where the stream knows one."""
    view = memoryview(data.numpy())
    for start in range(0, len(view), BLOCK):
        part = view[start:start + BLOCK]
        read = stream.read(len(part))
        _require(len(read) == len(part), "an end too early")
        part[:] = read
