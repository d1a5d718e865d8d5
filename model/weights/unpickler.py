"""Pickled weights, read without running anything that is in them.

detectron2's model zoo is a set of pickles. A pickle is a program; the one here may call nothing but the few
functions that numpy's own arrays need, each replaced by one that does just that.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np


class UnsafePickle(ValueError):
    """A pickle that wants more than arrays and plain containers."""


def load_plain_pickle(path: str | Path) -> Any:
    """What is in a pickle of dicts, lists, tuples, sets, numbers, texts and numeric numpy arrays.

    Raises:
        UnsafePickle: It asks for any other class or function, or is no pickle.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        try:
            # Python 2's texts, in the oldest files of the zoo, are bytes to Python 3.
            return _PlainUnpickler(file, encoding="latin1").load()
        except UnsafePickle:
            raise
        except OSError:
            raise
        except Exception as error:
            raise UnsafePickle(f"{path} is no readable pickle of weights: {error!r}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy moved its core from numpy.core to numpy._core; Python 2 had its built-ins elsewhere.
        today = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        allowed = _ALLOWED.get((today, name))
        if allowed is None:
            raise UnsafePickle(f"the pickle asks for {module}.{name}; allowed are plain arrays")
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle("the pickle asks for an object from outside; allowed are plain arrays")


# Stands for numpy.ndarray, which the pickle must be able to name but not to call.
_ARRAY_TYPE = object()


def _new_array(kind: object, shape: tuple, _type_code: object) -> np.ndarray:
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


def _array_of_bytes(data: bytes, dtype: np.dtype, shape: tuple, order: Literal["C", "F"]) -> np.ndarray:
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
    # How old protocols write empty bytes.
    ("builtins", "bytes"): lambda: b"",
    ("_codecs", "encode"): _latin1_bytes,
    ("collections", "OrderedDict"): OrderedDict,
}
