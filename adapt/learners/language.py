"""What a gradient learner does differently on a language stream, where a network writes its answers.

Its loss is the answers' next-token cross-entropy, its answer the class of the text that it writes. There are no scores
of classes: what rests on those is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models.language import LanguageNetwork, by_length
from ...models.language_build import SIZES, build_language, language_network
from ...models.networks import Network
from ...streams import Array, InputError, StreamSpec
from ..pretraining import Pretraining, pretrained

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 1 << 16}
"""Prompt tokens of rows that are answered in one piece: more at once leave a processor's caches."""
REFUSED = {
    "ERACE": "it leaves classes out of the loss",
    "DERpp": "it keeps scores of classes",
    "LwF": "it compares scores of classes",
}
"""Parts that need a score for every class, which a network that writes does not give."""


def text_network(spec: StreamSpec, model: str | nn.Module, classes: int, seed: int, plan: Pretraining) -> Any:
    """The network of this name, or around this model, for a language stream; trained on its source where asked to."""
    assert spec.text is not None
    try:
        if not isinstance(model, str):
            return _own(model, spec, classes)
        name = f"t5:{SIZES['t5']}" if model == "auto" else model
        net = build_language(name, spec.text, classes, seed=plan.seed if plan.updates else seed)
    except ValueError as fault:
        raise InputError(f"{fault}") from None
    return pretrained(net, name, spec, plan) if plan.updates else net


def _own(model: nn.Module, spec: StreamSpec, classes: int) -> LanguageNetwork | Network:
    if isinstance(model, LanguageNetwork | Network):
        return model
    if not hasattr(model, "get_input_embeddings"):
        raise InputError(f"model must be one of transformers, a Network or a name, not {type(model).__name__}")
    assert spec.text is not None
    return language_network(model, spec.text, classes)


def check_written(names: Sequence[str], spec: StreamSpec, params: Any) -> None:
    """Raise ``InputError`` for parts and settings that need scores of classes."""
    for name in names:
        if name in REFUSED:
            raise InputError(f"{name} cannot be combined with a network that writes its answers: {REFUSED[name]}")
    for setting in ("single_head", "head_only"):
        if getattr(params, setting):
            raise InputError(f"{setting} is for networks with a head that knows the classes, not for one that writes")
    if spec.notes.get("scenario") == "task":
        raise InputError("scenario task picks among scores of classes; a network that writes its answers has none")


def written_probe(net: LanguageNetwork, rows: Tensor, around: Callable[[], Any]) -> Callable[[], Array]:
    """A function that answers these rows as the network is at each call: int8[n, C], 1 at the answer.

    around: what every pass goes on in (its precision).
    """
    pieces = [(where, rows[where]) for where in by_length(rows, net.layout, TOKENS_AT_ONCE[rows.device.type])]
    places = torch.cat([where for where, _ in pieces]) if pieces else torch.zeros(0, dtype=torch.int64)

    def score() -> Array:
        with torch.inference_mode(), around():
            found = [net.answer(piece) for _, piece in pieces]
        scores = np.zeros((len(rows), net.classes), np.int8)
        if found:
            scores[places.numpy(force=True), torch.cat(found).numpy(force=True)] = 1
        return scores

    return score
