"""What ACU is put together from: its feature map and its engine, by name; and the words of its guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.analytic import Statistics
from ...models.analytic_inverse import Inverse
from ...models.cholesky_update import CholeskyFactor
from ...models.feature_maps import DRAWN, FeatureMap, Plain
from ...streams import InputError, StreamSpec

if TYPE_CHECKING:
    from torch import nn

SLOTS = 64
"""Places that the categories of an open column share."""
GUARANTEES = {
    "bitwise": "every bit of the head's sums is as if these rows had never been learnt",
    "float": "the head is the one trained on the remaining rows, to the rounding of float64 sums",
    "float32": "the head approximates the one trained on the remaining rows in single precision: not exact",
}
HEAD_ONLY = "the head only: the backbone may hold these rows (provenance {}), so the model as a whole is not exact"
DECLARED = "the backbone is declared to be trained on other data ({}), which is not checked"


def feature_map(spec: StreamSpec, backbone: str, weights: str, provenance: str, seed: int) -> FeatureMap:
    """The map that ``backbone`` names; ``InputError`` for one that does not suit the stream's rows.

    identity: the rows. onnx:PATH: a model in a file. Anything else: the body of a network of ``models/networks.py``,
    drawn from the seed, or with the weights of a safetensors file.
    """
    if backbone == "identity":
        return plain_features(spec)
    fan = _fan(spec)
    said = provenance if provenance != "auto" else "unknown"
    try:
        if backbone.startswith("onnx:"):
            from ...models.backbones import OnnxMap

            return OnnxMap(backbone[5:], spec.shape or (spec.n_features,), said)
        return _torch_map(spec, fan, backbone, weights, said, seed)
    except ValueError as fault:
        raise InputError(f"{fault}") from None


def plain_features(spec: StreamSpec) -> Plain:
    """The rows themselves, as ``Plain`` has them."""
    return Plain(_fan(spec), squeeze=spec.shape is None)


def _fan(spec: StreamSpec) -> list[int]:
    """For each column 0 (a number) or how many places its categories share."""
    return [0 if c.categories is None else SLOTS if c.open else len(c.categories) for c in spec.columns]


def _torch_map(spec: StreamSpec, fan: list[int], backbone: str, weights: str, said: str, seed: int) -> FeatureMap:
    from ...models.backbones import TorchMap, plain_inputs
    from ...models.inputs import Pixels
    from ...models.networks import build

    inputs: Any = plain_inputs(fan)
    shape: tuple[int, ...] = (Plain(fan).width,)
    if spec.shape is not None:
        channels = spec.shape[0] if len(spec.shape) == 3 else 1
        scale = [spec.notes.get(k, [float(k == "std")] * channels) for k in ("mean", "std")]
        inputs, shape = Pixels(spec.shape, *scale).tensor, spec.shape
    body = build(backbone, shape, 2, seed=seed).body
    if weights:
        _load(body, weights)
    return TorchMap(body, inputs, said if weights else DRAWN).sized(spec.n_features)


def _load(body: nn.Module, path: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        body.load_state_dict(load(Path(path).read_bytes()))
    except OSError as fault:
        raise InputError(f"weights {path}: {fault.strerror}") from None
    except (SafetensorError, RuntimeError) as fault:
        raise InputError(f"weights {path}: not those of this backbone ({str(fault).splitlines()[0]})") from None


def engine(kind: str, d: int, classes: int, gamma: float, bits: int | None, weighted: bool) -> Any:
    """What keeps the head: see ``models/analytic.py`` and its neighbours."""
    if kind == "low-latency":
        return Inverse(d, classes, gamma)
    if kind == "float32":
        return CholeskyFactor(d, classes, gamma)
    return Statistics(d, classes, gamma, bits=bits, weighted=weighted)


def guarantee(exact: str, kind: str, provenance: str) -> str:
    """One sentence that promises no more than holds."""
    said = GUARANTEES["float32" if kind == "float32" else exact]
    if provenance == DRAWN:
        return said
    if provenance in ("public", "disjoint"):
        return f"{said}; {DECLARED.format(provenance)}"
    return f"{said}. This is {HEAD_ONLY.format(provenance)}"
