"""Pickles taken apart without running them."""

import collections
import io
import os
import pickle

import numpy as np
import pytest

from microplastics.utils.pickles import PickleError, array_of, read_pickle

ARRAYS = {
    "big endian": np.arange(12, dtype=">u4").reshape(3, 4),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "bits": np.array([True, False]),
    "half": np.float16([1, 2]),
    "single": np.array(3),
}
OTHERS = [np.array(["x"]), np.array([None]), np.datetime64(0, "s"), np.zeros(2, "i4,f4"), 1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol):
    plain = {
        "a": [1, (2, 3, 4, 5), None, True, 1.5, "é", 10**30, -7],
        3: collections.OrderedDict(b=()),
    }
    data = {"arrays": ARRAYS, "others": OTHERS, "plain": plain, (1, 2): "left out"}
    found = read_pickle(io.BytesIO(pickle.dumps(data, protocol)))
    assert found["plain"] == plain and set(found) == {"arrays", "others", "plain"}
    for name, array in ARRAYS.items():
        read = array_of(found["arrays"][name])
        assert read.dtype == array.dtype and np.array_equal(read, array), name
    assert [array_of(each) for each in found["others"]] == [None] * 5


class Evil:
    def __init__(self, called, *arguments):
        self.call = called, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", (0, 2, 4))
@pytest.mark.parametrize("evil", [Evil(os.system, "touch pwned"), Evil(eval, "1"), Evil(open, "x")])
def test_what_is_not_an_array_is_refused(evil, protocol):
    with pytest.raises(PickleError, match="refers to"):
        read_pickle(io.BytesIO(pickle.dumps([evil], protocol)))


def test_numpy_s_functions_are_not_called(tmp_path):
    path = tmp_path / "x"
    call = read_pickle(io.BytesIO(pickle.dumps(Evil(np.savetxt, str(path), [1]))))
    assert array_of(call) is None and not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}" + b")" + b"\x85" * 200_000 + b"Ns.",  # a key that crashes pickle
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # a memo of 16 GiB
    ],
)
def test_what_breaks_pickle_is_harmless(content):
    read_pickle(io.BytesIO(content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04.",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\0.",  # bytes of 2^56
        b"\x80\x04t.",
        b"\x80\x04}(K\x01u.",
        b"\x80\x04Pid\n.",
        b"\x80\x04\x82\x01.",
        b"\x80\x04h\x05.",
        b"\x80\x05\x97.",
        b"L" + b"9" * 10_000 + b"L\n.",
    ],
)
def test_damaged_pickles(content):
    with pytest.raises(PickleError):
        read_pickle(io.BytesIO(content))


def test_a_shape_that_claims_more_than_the_file_has():
    content = pickle.dumps(np.zeros(3, np.uint8), 4)
    shape = content.index(b"K\x03\x85")
    huge = content[:shape] + b"J\xff\xff\xff\x7f\x85" + content[shape + 3 :]
    frame = len(content) - 11
    huge = huge.replace(frame.to_bytes(8, "little"), (frame + 3).to_bytes(8, "little"))
    with pytest.raises(PickleError, match="shape"):
        array_of(read_pickle(io.BytesIO(huge)))
