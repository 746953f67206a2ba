"""Pickles that would do something as they are read, and the archives that carry them.

Every gadget of `GADGETS` makes the file or folder whose path it is given; `test_weights.py` shows that they do.
"""
from __future__ import annotations

import builtins
import ctypes
import functools
import importlib
import io
import operator
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import timeit
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

HANG = 20  # seconds within which even a busy machine refuses a file


class Call:
    """Pickled, it is the result of a call; `function` may be such a result itself."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple]:
        return self.function, self.arguments

    def __call__(self) -> None:
        """Only so that `pickle` takes it for a function."""
        raise NotImplementedError


def _script(mark: Path) -> str:
    return f"open({str(mark)!r}, 'w').close()"


def _written_script(mark: Path) -> str:
    path = mark.with_name("script.py")
    path.write_text(_script(mark))
    return str(path)


def _inner_file(mark: Path) -> str:
    path = mark.with_name("inner.pt")
    torch.save(Call(os.mkdir, str(mark)), path)
    return str(path)


def _empty_file(mark: Path) -> str:
    path = mark.with_name("empty")
    path.touch()
    return str(path)


GADGETS: dict[str, Callable[[Path], Call]] = {
    "os.system": lambda mark: Call(os.system, f"mkdir '{mark}'"),
    "subprocess": lambda mark: Call(subprocess.call, ["mkdir", str(mark)]),
    "Popen": lambda mark: Call(operator.methodcaller("wait"), Call(subprocess.Popen, ("mkdir", str(mark)))),
    "eval": lambda mark: Call(eval, _script(mark)),
    "exec": lambda mark: Call(exec, _script(mark)),
    "open": lambda mark: Call(builtins.open, str(mark), "w"),
    "io.FileIO": lambda mark: Call(io.FileIO, str(mark), "w"),
    "__import__": lambda mark: Call(Call(getattr, Call(__import__, "os"), "mkdir"), str(mark)),
    "importlib": lambda mark: Call(Call(operator.attrgetter("mkdir"), Call(importlib.import_module, "os")), str(mark)),
    "getattr": lambda mark: Call(Call(getattr, Path(mark), "touch")),
    "partial": lambda mark: Call(functools.partial(os.mkdir, str(mark))),
    "methodcaller": lambda mark: Call(operator.methodcaller("write_text", "x"), Path(mark)),
    "map": lambda mark: Call(list, Call(map, os.mkdir, [str(mark)])),
    "pathlib": lambda mark: Call(Path.touch, Path(mark)),
    "shutil": lambda mark: Call(shutil.copyfile, _empty_file(mark), str(mark)),
    "ctypes": lambda mark: Call(Call(getattr, Call(ctypes.CDLL, None), "mkdir"), os.fsencode(mark), 0o700),
    "runpy": lambda mark: Call(runpy.run_path, _written_script(mark)),
    "timeit": lambda mark: Call(timeit.timeit, _script(mark), "pass", timeit.default_timer, 1),
    "pickle": lambda mark: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(mark)))),
    "torch.load": lambda mark: Call(functools.partial(torch.load, weights_only=False), _inner_file(mark)),
    "numpy": lambda mark: Call(np.savetxt, str(mark), [1.0]),
}


class Opcodes:
    """Pieces of pickles that no pickler writes."""

    START, STOP = b"\x80\x02", b"."
    MARK, TUPLE, LIST, DICT, SET = b"(", b"t", b"]", b"}", b"\x8f"
    ONE, TWO, REDUCE, BUILD, NEW, APPEND, APPENDS, SETITEM = b"\x85", b"\x86", b"R", b"b", b"\x81", b"a", b"e", b"s"
    NONE, EMPTY, STORAGE = b"N", b")", b"Q"

    @staticmethod
    def name(module: str, attribute: str) -> bytes:
        return f"c{module}\n{attribute}\n".encode()

    @staticmethod
    def text(text: str) -> bytes:
        return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()

    @staticmethod
    def number(number: int) -> bytes:
        size = number.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)

    @staticmethod
    def put(index: int) -> bytes:
        return b"r" + index.to_bytes(4, "little")

    @staticmethod
    def get(index: int) -> bytes:
        return b"j" + index.to_bytes(4, "little")

    @classmethod
    def numbers(cls, *numbers: int) -> bytes:
        return cls.MARK + b"".join(map(cls.number, numbers)) + cls.TUPLE

    @classmethod
    def storage(cls, key: str, count: int, kind: str = "FloatStorage") -> bytes:
        """A storage of the zip format."""
        return (cls.MARK + cls.text("storage") + cls.name("torch", kind) + cls.text(key) + cls.text("cpu")
                + cls.number(count) + cls.TUPLE + cls.STORAGE)

    @classmethod
    def tensor(cls, count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str = "0") -> bytes:
        return (cls.name("torch._utils", "_rebuild_tensor_v2") + cls.MARK + cls.storage(key, count)
                + cls.number(offset) + cls.numbers(*shape) + cls.numbers(*strides) + b"\x89" + cls.DICT + cls.TUPLE
                + cls.REDUCE)


def archive(path: Path, body: bytes, data: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED,
            whole: bool = False) -> Path:
    """A file of PyTorch's zip format with a hand-made pickle. whole: `body` has its start and end."""
    with zipfile.ZipFile(path, "w", compression) as written:
        written.writestr("x/data.pkl", body if whole else Opcodes.START + body + Opcodes.STOP)
        written.writestr("x/byteorder", "little")
        written.writestr("x/version", "3\n")
        for key, content in (data or {}).items():
            written.writestr(f"x/data/{key}", content)
    return path


@contextmanager
def no_hang() -> Iterator[None]:
    """Fail what takes longer than any refusal does."""
    def fail(*_: object) -> None:
        raise AssertionError(f"still busy after {HANG} seconds")
    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
