"""Restricted unpickler: reads pickled weights (detectron2's model zoo) without running code that is in them.

A pickle is a program that calls functions by name. This one may call only the functions that NumPy's arrays need, each
replaced by one that makes just an array, a dtype, a number or a plain container.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np


class UnsafePickle(ValueError):
    """A pickle holds, or calls, something other than arrays and plain containers."""


def load_plain_pickle(path: str | Path) -> Any:
    """The content of a pickle of dicts, lists, tuples, sets, numbers, strings and numeric NumPy arrays.

    Raises:
        UnsafePickle: It names any other class or function, or is no pickle.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        try:
            # Strings of Python 2, in the oldest files of the zoo, are bytes in Python 3.
            return _PlainUnpickler(file, encoding="latin1").load()
        except UnsafePickle:
            raise
        except OSError:
            raise
        except Exception as error:
            raise UnsafePickle(f"{path} is no readable pickle of weights: {error!r}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # NumPy moved its core from numpy.core to numpy._core; Python 2 called builtins __builtin__.
        current_name = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        allowed = _ALLOWED.get((current_name, name))
        if allowed is None:
            raise UnsafePickle(f"the pickle asks for {module}.{name}; allowed are plain arrays")
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle("the pickle asks for an object from outside; allowed are plain arrays")


# Stands for numpy.ndarray, which the pickle has to name but may not call.
_ARRAY_TYPE = object()


def _new_array(kind: object, shape: tuple[int, ...], _type_code: object) -> np.ndarray:
    if kind is not _ARRAY_TYPE or tuple(shape) != (0,):
        raise UnsafePickle("the pickle asks for an array that is none of numpy's own")
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _new_dtype(name: str, align: bool = False, copy: bool = True) -> np.dtype:
    dtype = np.dtype(str(name), align=bool(align), copy=bool(copy))
    _check_dtype(dtype)
    return dtype


def _check_dtype(dtype: object) -> None:
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufc":
        raise UnsafePickle(f"the pickle asks for an array of {dtype}; allowed are numbers")


def _array_of_bytes(data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    _check_dtype(dtype)
    return np.frombuffer(data, dtype).reshape(tuple(shape), order=order)


def _new_scalar(dtype: np.dtype, data: bytes | str) -> Any:
    _check_dtype(dtype)
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype, count=1)[0]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise UnsafePickle(f"the pickle asks for the codec {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy.core.multiarray", "scalar"): _new_scalar,
    ("numpy", "ndarray"): _ARRAY_TYPE,
    ("numpy", "dtype"): _new_dtype,
    ("numpy.core.numeric", "_frombuffer"): _array_of_bytes,
    ("builtins", "set"): set,
    # Old protocols write empty bytes as a call of bytes().
    ("builtins", "bytes"): lambda: b"",
    ("_codecs", "encode"): _latin1_bytes,
    ("collections", "OrderedDict"): OrderedDict,
}
