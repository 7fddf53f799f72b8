"""What one can do with a ``State``, the tree of plain values that every learner, evaluator and the loop keep.

A node is a dict with string keys, a list, a NumPy array (bool, integer or float of up to 64 bits), a torch tensor, a
number, a string, a boolean or None. NumPy scalars count as numbers and come back as Python's. Anything else is a
``TypeError`` that names the path, such as ``state.trees[3].root``. Torch is never imported on behalf of a state that
holds no tensor.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..streams import Array
from .learner import State

_TORCH_AS = {"bfloat16": "int16"}
"""Torch dtypes that NumPy lacks, and the integers of the same width that carry their bits."""


def is_tensor(node: Any) -> bool:
    """Whether ``node`` is a torch tensor, found out without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(node, torch.Tensor)


def copy_state(state: State) -> State:
    """A deep copy that shares no memory with ``state``; arrays come out contiguous, tensors detached."""
    return _copy(state, "state")


def _copy(node: Any, path: str) -> Any:
    kind = type(node)
    if kind is dict:
        return {_key(k, path): _copy(v, f"{path}.{k}") for k, v in node.items()}
    if kind is list:
        return [_copy(v, f"{path}[{i}]") for i, v in enumerate(node)]
    if kind is np.ndarray:
        return np.array(_checked(node, path), order="C")
    if is_tensor(node):
        return node.detach().clone()
    return _scalar(node, path)


def digest(state: State) -> str:
    """sha256 (hex) over every value, dtype, shape and byte of the tree; the order of dict keys does not matter."""
    sha = hashlib.sha256()
    for tag, body in _leaves(state):
        sha.update(f"{tag}\0{len(body)}\0".encode())
        sha.update(body)
    return sha.hexdigest()


def _leaves(node: Any, path: str = "state") -> Iterator[tuple[str, Any]]:
    """(tag, bytes) of every node in canonical order; container tags carry their length, so no two trees read alike."""
    kind = type(node)
    if kind is dict:
        yield f"dict {len(node)}", b""
        for k in sorted(_key(k, path) for k in node):
            yield "key", k.encode("utf-8", "surrogatepass")
            yield from _leaves(node[k], f"{path}.{k}")
    elif kind is list:
        yield f"list {len(node)}", b""
        for i, v in enumerate(node):
            yield from _leaves(v, f"{path}[{i}]")
    elif kind is np.ndarray:
        array = np.asarray(_checked(node, path), dtype=node.dtype.newbyteorder("<"), order="C")
        yield f"array {array.dtype.name} {array.shape}", array.reshape(-1).view(np.uint8).data
    elif is_tensor(node):
        array, name = _tensor_to_array(node)
        yield f"tensor {name} {array.shape}", array.reshape(-1).view(np.uint8).data
    else:
        value = _scalar(node, path)
        body = value if isinstance(value, str) else repr(value)
        yield type(value).__name__, body.encode("utf-8", "surrogatepass")


def all_finite(state: State) -> str | None:
    """The path of the first array, tensor or number that holds NaN or infinity; None where all is finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _non_finite(state, "state")


def _non_finite(node: Any, path: str) -> str | None:
    kind = type(node)
    if kind is dict:
        found = (_non_finite(v, f"{path}.{k}") for k, v in node.items())
    elif kind is list:
        found = (_non_finite(v, f"{path}[{i}]") for i, v in enumerate(node))
    else:
        return None if _finite_leaf(node, path) else path
    return next((p for p in found if p is not None), None)


def _finite_leaf(node: Any, path: str) -> bool:
    if type(node) is np.ndarray:
        if _checked(node, path).dtype.kind != "f" or math.isfinite(node.sum()):
            return True
        return bool(np.isfinite(node).all())  # the cheap sum may overflow over finite values: look again
    if is_tensor(node):
        return not node.is_floating_point() or bool(node.isfinite().all())
    value = _scalar(node, path)
    return not isinstance(value, float) or math.isfinite(value)


def state_bytes(state: State) -> int:
    """How much the tree holds, in bytes: array and tensor data, text, and eight for every number."""
    kind = type(state)
    if kind is dict:
        return sum(len(k) + state_bytes(v) for k, v in state.items())
    if kind is list:
        return sum(map(state_bytes, state))
    if kind is np.ndarray or is_tensor(state):
        return int(state.nbytes)
    return len(state) if isinstance(state, str) else 8


def split(state: State) -> tuple[Any, dict[str, Array]]:
    """A JSON skeleton and the arrays it refers to by name; ``join`` undoes it bit for bit.

    An array becomes ``{"$array": name}``, a tensor ``{"$tensor": name, "dtype": ...}`` and a non-finite float
    ``{"$float": "nan"}``; a dict with a key that starts with ``$`` becomes ``{"$dict": [[key, value], ...]}``. Names
    are paths, so that a saved file can be read by eye.
    """
    arrays: dict[str, Array] = {}
    return _split(state, "state", arrays), arrays


def _split(node: Any, path: str, arrays: dict[str, Array]) -> Any:
    kind = type(node)
    if kind is dict:
        items = [[_key(k, path), _split(v, f"{path}.{k}", arrays)] for k, v in node.items()]
        return {"$dict": items} if any(k.startswith("$") for k in node) else dict(items)
    if kind is list:
        return [_split(v, f"{path}[{i}]", arrays) for i, v in enumerate(node)]
    if kind is np.ndarray:
        _checked(node, path)
        return {"$array": _keep(arrays, path, np.asarray(node, dtype=node.dtype.newbyteorder("="), order="C"))}
    if is_tensor(node):
        array, name = _tensor_to_array(node)
        return {"$tensor": _keep(arrays, path, array), "dtype": name}
    value = _scalar(node, path)
    return {"$float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _keep(arrays: dict[str, Array], path: str, array: Array) -> str:
    """Files ``array`` under its path; a number is added where keys with dots in them make two paths read alike."""
    name, n = path, 1
    while name in arrays:
        name, n = f"{path}~{n}", n + 1
    arrays[name] = array
    return name


def join(skeleton: Any, arrays: dict[str, Array]) -> State:
    """The state that ``split`` took apart. Arrays are used as they are; a missing one is a ``KeyError``."""
    if isinstance(skeleton, list):
        return [join(v, arrays) for v in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "$array" in skeleton:
        return arrays[skeleton["$array"]]
    if "$tensor" in skeleton:
        return _array_to_tensor(arrays[skeleton["$tensor"]], skeleton["dtype"])
    if "$float" in skeleton:
        return float(skeleton["$float"])
    items = skeleton["$dict"] if "$dict" in skeleton else skeleton.items()
    return {k: join(v, arrays) for k, v in items}


def _key(key: Any, path: str) -> str:
    if type(key) is not str:
        raise TypeError(f"{path} has the key {key!r}: a state's keys are strings")
    return key


def _checked(array: Array, path: str) -> Array:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{path} is an array of dtype {array.dtype}: a state's arrays are bool, integer or float")
    return array


def _scalar(node: Any, path: str) -> bool | int | float | str | None:
    if node is None or isinstance(node, bool | np.bool_):
        return None if node is None else bool(node)
    for kinds, plain in (((int, np.integer), int), ((float, np.floating), float), ((str,), str)):
        if isinstance(node, kinds):
            return plain(node)
    raise TypeError(f"{path} is a {type(node).__name__}: a state holds dicts, lists, arrays, numbers, strings and None")


def _tensor_to_array(tensor: Any) -> tuple[Array, str]:
    """The tensor's bits as an array on the CPU, and the name of its torch dtype."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.detach().cpu().contiguous()
    if name in _TORCH_AS:
        plain = plain.view(getattr(torch, _TORCH_AS[name]))
    return plain.numpy(), name


def _array_to_tensor(array: Array, name: str) -> Any:
    import torch

    return torch.from_numpy(np.array(array)).view(getattr(torch, name))
