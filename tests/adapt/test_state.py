"""State trees: copies, digests, and the split into JSON and arrays."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from driftway.adapt.state import all_finite, copy_state, digest, join, split, state_bytes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DTYPES = st.sampled_from(["bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64"])
ARRAYS = DTYPES.flatmap(lambda t: hnp.arrays(t, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ARRAYS
TREES = st.recursive(LEAVES, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=4), t, max_size=3))


def same(a: Any, b: Any) -> bool:
    """Equal in type, shape and every bit."""
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


@given(TREES)
def test_round_trip_through_json_text_is_bit_exact(tree: Any) -> None:
    skeleton, arrays = split(tree)
    back = join(json.loads(json.dumps(skeleton, allow_nan=False)), arrays)
    assert same(tree, back)
    assert digest(back) == digest(tree) == digest(copy_state(tree))


def test_numbers_past_the_double_range_survive() -> None:
    tree = {"n": 2**127 + 1, "f": 0.1 + 0.2, "z": -0.0, "tiny": 5e-324, "$array": "a key of ours", "a.b": 1}
    assert same(join(json.loads(json.dumps(split(tree)[0])), {}), tree)


def test_keys_with_dots_do_not_collide() -> None:
    tree = {"a": {"b": np.zeros(1)}, "a.b": np.ones(1)}
    assert same(join(*split(tree)), tree)


def test_numpy_scalars_become_python_numbers() -> None:
    tree = [np.int64(3), np.float32(0.5), np.bool_(True), np.float64(1.5)]
    assert same(copy_state(tree), [3, 0.5, True, 1.5])
    assert digest(tree) == digest([3, 0.5, True, 1.5])


def test_a_copy_shares_nothing() -> None:
    tree = {"a": [np.zeros(3)], "view": np.arange(10)[::2]}
    copy = copy_state(tree)
    tree["a"][0][0] = 1
    assert copy["a"][0][0] == 0
    assert copy["view"].flags.c_contiguous


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ([1, [2]], [1, 2]),
        ({"a": np.zeros(2)}, {"a": np.zeros((2, 1))}),
        ({"a": np.zeros(2, np.int64)}, {"a": np.zeros(2)}),
        ({"a": np.zeros(2)}, {"a": np.array([0.0, -0.0])}),
        ({"a": ["b", "c"]}, {"a": ["bc"]}),
        ([None], []),
        ("1", 1),
    ],
)
def test_digest_tells_apart(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


def test_digest_ignores_key_order_memory_order_and_byte_order() -> None:
    a = np.arange(6.0).reshape(2, 3)
    assert (
        digest({"x": 1, "y": a})
        == digest({"y": np.asfortranarray(a), "x": 1})
        == digest({"x": 1, "y": a.astype(">f8")})
    )


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"a": [1, {2, 3}]}, r"state\.a\[1\] is a set"),
        ({"a": (1, 2)}, r"state\.a is a tuple"),
        ({"a": {1: 2}}, r"state\.a has the key 1"),
        ({"o": np.array([None])}, r"state\.o is an array of dtype object"),
        ({"c": np.zeros(1, complex)}, r"state\.c is an array of dtype complex128"),
        ({"m": np.ma.zeros(1)}, r"state\.m is a MaskedArray"),
    ],
)
def test_anything_else_is_refused_by_path(tree: Any, path: str) -> None:
    for use in (copy_state, digest, split):
        with pytest.raises(TypeError, match=path):
            use(tree)


def test_all_finite_names_the_first_bad_place() -> None:
    assert all_finite({"a": [np.ones(3), 1.0, "nan", None], "i": np.array([2**62])}) is None
    assert all_finite({"big": np.full(10, 1e308)}) is None  # its sum overflows, its values do not
    assert all_finite({"a": [1.0, np.array([1.0, np.nan])]}) == "state.a[1]"
    assert all_finite({"a": {"b": float("inf")}}) == "state.a.b"
    assert all_finite({"a": np.array([np.inf, -np.inf], np.float32)}) == "state.a"


def test_state_bytes() -> None:
    assert state_bytes({"a": np.zeros((2, 3)), "b": [1, "xyz", None]}) == 1 + 48 + 1 + 8 + 3 + 8


def test_torch_tensors_round_trip() -> None:
    torch = pytest.importorskip("torch")
    tree = {
        "w": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
        "half": torch.tensor([1.5, -2.25, 3e38], dtype=torch.bfloat16),
        "scalar": torch.tensor(1.25, dtype=torch.bfloat16),
        "none": torch.zeros((0, 4), dtype=torch.int64),
        "flags": torch.tensor([True, False]),
    }
    skeleton, arrays = split(tree)
    back = join(json.loads(json.dumps(skeleton)), arrays)
    for key, value in tree.items():
        assert back[key].dtype == value.dtype
        assert torch.equal(back[key], value)
    assert digest(back) == digest(tree) == digest(copy_state(tree))
    assert digest(tree["flags"]) != digest(np.array([True, False]))
    assert all_finite(tree) is None
    assert all_finite({"w": torch.tensor([1.0, float("nan")])}) == "state.w"


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, numpy as np; from driftway.adapt.state import *; s = {'a': np.ones(2), 'b': [1, 'c']};"
        "copy_state(s), digest(s), all_finite(s), state_bytes(s), join(*split(s)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
