"""Experts in transformers: layers, padding, pieces of a batch, repeated passes, isolation, pictures, precision."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.models.dymoe import ExpertLinear
from driftway.streams.text_tasks import Examples, Layout, TextTask, text_stream
from driftway.streams.tokens import Prompt

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
WORDS = ("red", "green", "blue", "round", "square", "small", "large", "old", "new", "warm")
SMALL: dict[str, Any] = {"experts": 2, "expert_rank": 2, "top_k": 2, "expert_alpha": 8.0, "lr": 0.01}


@pytest.fixture(name="words", scope="module")
def words_fixture() -> tuple[dw.StreamSpec, list[Any]]:
    """Spec and events of three tasks of prompts of 2 to 8 words, whose answer is yes or no."""
    rng = np.random.default_rng(0)

    def examples(n: int, key: str) -> Examples:
        texts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(n)]
        return Examples([Prompt("", text, "") for text in texts], ["yes" if key in text else "no" for text in texts])

    tasks = [TextTask(key, examples(16, key), examples(4, key)) for key in WORDS[:3]]
    stream = dw.rebatch(text_stream("words", tasks, Layout(16, 300, "")), 8)
    return stream.spec, list(stream)


def made(spec: dw.StreamSpec, name: str = "dymoe", model: str = "t5:16-1-2", **settings: Any) -> Any:
    return dw.learner(name, spec, seed=3, model=model, **(SMALL | settings))


def adapted(learner: Any) -> dict[str, ExpertLinear]:
    return {n: m for n, m in learner.net.named_modules() if isinstance(m, ExpertLinear)}


PARTS = {
    "t5:16-1-2": {"q", "k", "v", "o", "wi", "wo"},
    "llama:16-1-2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.mark.parametrize("model", PARTS)
def test_every_linear_layer_of_every_block_and_nothing_else(words: Any, model: str) -> None:
    layers = adapted(made(words[0], model=model))
    assert PARTS[model] <= {name.rpartition(".")[2] for name in layers} | {"wi"}
    assert not any(word in name for name in layers for word in ("lm_head", "embed", "shared"))


@pytest.mark.parametrize("model", PARTS)
def test_old_banks_and_the_model_beneath_stay_bit_for_bit(words: Any, teach: Any, model: str) -> None:
    spec, events = words
    learner = made(spec, model=model, weight_decay=0.1, rsr=0.1)
    beneath = {n: w.detach().clone() for n, w in learner.net.named_parameters() if ".new_" not in n}
    teach(learner, events[:2])
    first = {n: layer.new_a.detach().clone() for n, layer in adapted(learner).items()}
    routers = {n: layer.new_router.detach().clone() for n, layer in adapted(learner).items()}
    teach(learner, events[2:])
    assert learner.task == 2
    for name, layer in adapted(learner).items():
        assert layer.banks == 3
        assert torch.equal(layer.old_a[:4], first[name])
        assert torch.equal(layer.old_router[:2], routers[name])
    assert all(torch.equal(w, beneath[n]) for n, w in learner.net.named_parameters() if n in beneath)
    found = learner.facts()["tokens"]
    assert len(found["layers"]) == len(found["new"][0]) == len(adapted(learner))
    assert learner.telemetry()["rsr_terms"] > 0


@pytest.mark.parametrize(
    ("model", "settings"), [("t5:16-1-2", {"checkpointing": True}), ("llama:16-1-2", {"micro_batch": 3})]
)
def test_repeated_passes_and_pieces_give_the_same_steps(
    words: Any, teach: Any, model: str, settings: dict[str, Any]
) -> None:
    """Regularisation, shares and masses too: the terms of the first pass are those that count."""
    spec, events = words
    plain, other = (
        teach(made(spec, model=model, rsr=1.0, rsr_from=0.0, **more), events[:6]) for more in ({}, settings)
    )
    assert plain.telemetry()["rsr_terms"] > 0
    for key, value in plain.telemetry().items():
        assert other.telemetry()[key] == pytest.approx(value, abs=2e-3), key
    for name, weight in plain.weights.items():
        torch.testing.assert_close(other.weights[name], weight, rtol=0, atol=4e-3)


def test_padding_changes_nothing(words: Any) -> None:
    """Shares and terms of prompts of several lengths together are those of each by itself."""
    spec, events = words
    learner = made(spec, model="llama:16-1-2", rsr=1.0, rsr_from=0.0)
    learner.boundary(dw.Boundary("second", 0.0))
    learner.seen = 16
    batch = events[0]
    lengths = (batch.x != spec.text.pad).sum(1)
    short = batch.rows(np.flatnonzero(lengths <= np.sort(lengths)[2])[:3])
    figures = []
    for pieces in ([short], [short.rows(slice(i, i + 1)) for i in range(len(short))]):
        part = learner.techniques[0]
        learner._mode(training=True)
        found = []
        for piece in pieces:
            now = learner._rows(piece)
            learner.logits(now)
            (layer,) = next(iter(part.shared.found.values()))
            found.append((layer.tokens, layer.shares, layer.rsr.detach()))
            part.penalty(now)
        tokens = torch.stack([f[0] for f in found])
        figures.append([(tokens @ torch.stack([f[i].view(-1) for f in found]) / tokens.sum()) for i in (1, 2)])
        figures[-1].append(tokens.sum())
    for one, other in zip(*figures):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_short_floats_learn_and_keep_old_banks(words: Any, teach: Any, precision: str) -> None:
    spec, events = words
    learner = made(spec, precision=precision)
    teach(learner, events[:2])
    first = {n: layer.new_b.detach().clone() for n, layer in adapted(learner).items()}
    teach(learner, events[2:])
    for name, layer in adapted(learner).items():
        assert torch.equal(layer.old_b[:4], first[name])
        assert layer.old_unit.dtype == torch.float32
    assert any(bool((layer.new_b != 0).any()) for layer in adapted(learner).values())


def test_pictures_go_through_the_language_blocks_alone(teach: Any) -> None:
    stream = dw.rebatch(dw.stream("vl-instruct"), 4)
    events = []
    for event in stream:
        events.append(event)
        if len(events) == 2:
            break
    learner = made(stream.spec, model="llava:16-1-2")
    layers = adapted(learner)
    assert {name.rpartition(".")[2] for name in layers} == PARTS["llama:16-1-2"]
    assert not any("vision" in name or "projector" in name for name in layers)
    before = {n: w.detach().clone() for n, w in learner.weights.items()}
    teach(learner, [events[0], dw.Boundary("second", 0.0), events[1]])
    moved = {n for n, w in learner.weights.items() if not torch.equal(w, before[n])}
    assert moved
    assert all(".new_" in name for name in moved)
    found = learner.facts()["tokens"]
    assert len(found["drift"]["own"]) == 2
