"""Restricted unpickler: makes arrays and plain containers, and refuses all other classes and functions."""

import os
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from model.weights.unpickler import UnsafePickle, load_plain_pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_containers_are_read(tmp_path, protocol):
    value: dict[str, Any] = {
        "model": OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.zeros((0, 4), np.int64)),
        "scalar": np.float32(2.5),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "__author__": "somebody",
        "list": [1, 2.0, None, True, (b"x", {"y"})],
    }
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    loaded = load_plain_pickle(path)
    assert loaded["list"] == value["list"] and loaded["__author__"] == "somebody" and loaded["scalar"] == 2.5
    for name in ("a", "b"):
        assert loaded["model"][name].dtype == value["model"][name].dtype
        np.testing.assert_array_equal(loaded["model"][name], value["model"][name])
    np.testing.assert_array_equal(loaded["fortran"], value["fortran"])


class Calls:
    """An object that is pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Calls(os.system, "true"),
        Calls(eval, "1 + 1"),
        Calls(getattr, {}, "get"),
        Calls(memoryview, b"x"),
        Calls(np.dtype, "O"),
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("field", "f4")]),
        np.ma.masked_array([1.0]),
    ],
    ids=["system", "eval", "getattr", "memoryview", "dtype", "objects", "texts", "records", "subclass"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_calls_and_arrays_of_other_types_are_refused(tmp_path, value, protocol):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": value}}, protocol))
    with pytest.raises(UnsafePickle):
        load_plain_pickle(path)


def test_an_array_of_any_size_without_data_is_refused(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"cnumpy\nndarray\n((I1000000000\ntR.")
    with pytest.raises(UnsafePickle):
        load_plain_pickle(path)


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x05"])
def test_a_file_that_is_no_pickle_is_named(tmp_path, data):
    path = tmp_path / "w.pkl"
    path.write_bytes(data)
    with pytest.raises(UnsafePickle, match=r"w\.pkl"):
        load_plain_pickle(path)
