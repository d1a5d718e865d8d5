"""The restricted unpickler makes arrays and plain containers and nothing else."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from model.weights.unpickler import UnsafePickle, load_plain_pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_weights_are_read(tmp_path, protocol):
    value = {
        "model": OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.zeros((0, 4), np.int64)),
        "scalar": np.float32(2.5),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "__author__": "somebody",
        "list": [1, 2.0, None, True, (b"x", {"y"})],
    }
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    found = load_plain_pickle(path)
    assert found["list"] == value["list"] and found["__author__"] == "somebody" and found["scalar"] == 2.5
    for name in ("a", "b"):
        assert found["model"][name].dtype == value["model"][name].dtype
        np.testing.assert_array_equal(found["model"][name], value["model"][name])
    np.testing.assert_array_equal(found["fortran"], value["fortran"])


class Calls:
    """Pickles as a call of any function."""

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
def test_anything_else_is_refused(tmp_path, value, protocol):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": value}}, protocol))
    with pytest.raises(UnsafePickle):
        load_plain_pickle(path)


def test_an_array_of_any_size_out_of_nothing_is_refused(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"cnumpy\nndarray\n((I1000000000\ntR.")
    with pytest.raises(UnsafePickle):
        load_plain_pickle(path)


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x05"])
def test_what_is_no_pickle_is_named(tmp_path, data):
    path = tmp_path / "w.pkl"
    path.write_bytes(data)
    with pytest.raises(UnsafePickle, match=r"w\.pkl"):
        load_plain_pickle(path)
