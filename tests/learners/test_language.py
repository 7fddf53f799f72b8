"""Gradient learners on a language stream: what they learn, keep, take over and refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.state import copy_state, digest
from driftway.evaluation.continual import Answers
from driftway.streams.spec import Source, Text

WORDS = ["<pad>", "</s>", "yes", "no", "very", "good", *(f"w{i}" for i in range(34))]
LENGTH = 8
ANSWERS = np.array([[2, 1, 0], [3, 1, 0], [4, 5, 1]], np.int32)  # yes; no; very good
SMALL: dict[str, Any] = {"model": "t5:16-1-2", "lr": 0.01}


def questions(task: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of 3 to 8 tokens; the second one says the answer, another one in each task."""
    rng = np.random.default_rng([seed, task])
    y = rng.integers(0, 3, n)
    x = np.zeros((n, LENGTH), np.int32)
    for i, size in enumerate(rng.integers(3, LENGTH + 1, n)):
        x[i, :size] = rng.integers(20, 40, size)
    x[:, 0], x[:, 1] = 6 + task, 10 + (y + task) % 3
    return x, y


def stream(rows: int = 48, *, seed: int = 0) -> dw.Stream:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>")).to_str()
    train = [(f"task {k}", *questions(k, rows, 0)) for k in range(2)]
    made = dw.from_experiences(train, [questions(k, 20, 1) for k in range(2)], scenario="domain", seed=seed)
    source = Source("mix", (0, 1, 2), lambda: questions(2, 200, 2), lambda: questions(2, 20, 3))
    made.spec = replace(
        made.spec,
        classes=("yes", "no", "very good", "(another text)"),
        source=source,
        text=Text(LENGTH, len(WORDS), 0, 1, ANSWERS, tokenizer),
    )
    return made


def right(learner: dw.Learner, task: int = 0) -> float:
    held = learner.spec.experiences[task]
    return float((learner.probe(held.x)().argmax(1) == held.y).mean())


@pytest.mark.parametrize(("name", "model"), [("finetune", "t5:32-1-2"), ("er", "llama:32-1-2"), ("ewc", "t5:16-1-2")])
def test_it_learns_what_it_is_told(name: str, model: str, teach: Callable[..., Any]) -> None:
    given = dw.rebatch(stream(96), 16)
    learner = teach(dw.learner(name, given.spec, seed=1, model=model, lr=0.01, passes=8), given)
    assert right(learner, 1) > 0.8


@pytest.mark.parametrize("name", ["er", "agem", "ewc", "joint"])
def test_a_loaded_learner_goes_on_bit_for_bit(name: str, teach: Callable[..., Any]) -> None:
    given = dw.rebatch(stream(24), 8)
    events = list(given)
    one = teach(dw.learner(name, given.spec, seed=1, **SMALL), events[:4])
    kept = copy_state(one.state())
    other = dw.learner(name, given.spec, seed=1, **SMALL)
    other.load(kept)
    assert digest(other.state()) == digest(kept)
    for learner in (one, other):
        teach(learner, events[4:])
    assert digest(one.state()) == digest(other.state())
    assert digest(one.state()) != digest(kept)


def test_asking_changes_nothing() -> None:
    given = stream(24)
    learner = dw.learner("er", given.spec, seed=1, **SMALL)
    batch = next(e for e in given if isinstance(e, dw.Batch))
    before, torch_before = digest(learner.state()), torch.get_rng_state()
    answers = Answers(given.spec.experiences, "domain")
    answers.ask(learner, 2)
    prediction = learner.predict(batch)
    assert digest(learner.state()) == before
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert prediction.scores is None
    assert np.array_equal(prediction.output, learner.probe(batch.x)().argmax(1))


def test_a_copy_elsewhere_answers_alike(teach: Callable[..., Any]) -> None:
    """What the evaluation process does: the arrays of ``predicting`` are copied into an equally built learner."""
    given = dw.rebatch(stream(48), 8)
    one, other = (dw.learner("er", given.spec, seed=1, **SMALL) for _ in range(2))
    teach(one, given)
    mine, theirs = one.predicting(), other.predicting()
    assert mine is not None
    assert theirs is not None
    for a, b in zip(mine, theirs, strict=True):
        b[...] = a
    x = given.spec.experiences[0].x
    assert np.array_equal(one.probe(x)(), other.probe(x)())


@pytest.mark.parametrize("name", ["er", "agem"])
def test_pieces_give_the_gradient_of_the_whole(name: str) -> None:
    given = stream(24)
    batch = next(e for e in given if isinstance(e, dw.Batch)).rows(slice(0, 11))
    found = []
    for micro in (0, 4, 100):
        learner: Any = dw.learner(name, given.spec, seed=1, micro_batch=micro, checkpointing=micro == 4, **SMALL)
        now = learner._rows(batch)
        learner.remember(now)
        learner._mode(training=True)
        loss = learner.policy.loss(now)
        found.append((loss.total(), learner._gradients(loss)))
    for loss, grads in found[1:]:
        torch.testing.assert_close(loss, found[0][0], atol=1e-6, rtol=0)
        for key, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_half_precision_learns(precision: str, teach: Callable[..., Any]) -> None:
    given = dw.rebatch(stream(64), 16)
    learner: Any = dw.learner("finetune", given.spec, seed=1, precision=precision, passes=8, model="t5:32-1-2", lr=0.01)
    teach(learner, given)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert {w.dtype for w in learner.weights.values()} == {kind}
    assert right(learner, 1) > 0.6


def test_pretraining_is_kept_for_other_seeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = stream().spec
    given: dict[str, Any] = {**SMALL, "model": "llama:32-1-2", "pretrain": 60, "pretrain_lr": 0.01}
    first = dw.learner("finetune", spec, seed=1, **given)
    assert "pretraining, update 60 of 60" in capsys.readouterr().err
    held = spec.source.test()
    assert (first.probe(held[0])().argmax(1) == held[1]).mean() > 0.8
    again = dw.learner("er", spec, seed=2, **given)
    assert capsys.readouterr().err == ""
    assert digest(again.state()["net"]) == digest(first.state()["net"])
    other = dw.learner("er", spec, seed=2, **given, pretrain_seed=1)
    assert digest(other.state()["net"]) != digest(first.state()["net"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_an_id_that_no_token_has_is_no_fault() -> None:
    """Such a row is quarantined by the loop; a learner that is given one all the same reads padding."""
    given = stream(24)
    learner = dw.learner("finetune", given.spec, seed=1, **SMALL)
    batch = next(e for e in given if isinstance(e, dw.Batch)).rows(slice(0, 4))
    for wrong in (len(WORDS), -1.0, 1e12, np.nan):
        x = batch.x.copy()
        x[1, 2] = wrong
        odd = replace(batch, x=x)
        learner.learn(odd, learner.predict(odd))
    other = replace(batch, y=np.full(4, 3))  # any other text: nothing to learn
    before = digest(learner.state()["net"])
    learner.learn(other, learner.predict(other))
    assert digest(learner.state()["net"]) == before


def test_an_encoder_has_a_head_and_scores(teach: Callable[..., Any]) -> None:
    given = dw.rebatch(stream(96), 16)
    learner = dw.learner("er-ace", given.spec, seed=1, model="roberta:32-1-2", lr=0.003, passes=8)
    teach(learner, given)
    batch = next(e for e in stream() if isinstance(e, dw.Batch))
    assert learner.predict(batch).scores.shape == (len(batch), 4)
    assert right(learner, 1) > 0.6


def test_a_model_in_hand_is_taken_over() -> None:
    spec = stream().spec
    body: Any = dw.learner("finetune", spec, **SMALL).net.body
    learner: Any = dw.learner("er", spec, seed=5, model=body)
    assert learner.net.body is body
    with pytest.raises(dw.InputError, match="model must be one of transformers"):
        dw.learner("er", spec, model=torch.nn.Linear(2, 2))


def test_a_peft_model_trains_its_adapter_alone(teach: Callable[..., Any]) -> None:
    given = dw.rebatch(stream(24), 8)
    body: Any = dw.learner("finetune", given.spec, **{**SMALL, "model": "llama:16-1-2"}).net.body
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under a name that will go
        peft: Any = get_peft_model(body, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    learner: Any = dw.learner("er", given.spec, model=peft, lr=0.01)
    before = copy_state(learner.state()["net"])
    after = teach(learner, given).state()["net"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert set(learner.optimiser.slots) == moved


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("er-ace", {}, "ERACE cannot be combined with a network that writes"),
        ("derpp", {}, "DERpp cannot be combined with a network that writes"),
        ("lwf", {}, "LwF cannot be combined with a network that writes"),
        ("finetune+sparcl", {}, "masks of weights are for networks that give scores"),
        ("er", {"single_head": True}, "single_head is for networks with a head"),
        ("er", {"head_only": True}, "head_only is for networks with a head"),
        ("er", {"model": "t5:30-1-4"}, "sizes are width-layers-heads"),
        ("er", {"model": "mlp"}, "no folder with config.json"),
        ("tent", {}, "without labels there is nothing to learn"),
    ],
)
def test_what_needs_scores_is_refused_in_one_line(name: str, settings: dict[str, Any], line: str) -> None:
    given = {} if name == "tent" else {**SMALL, **settings}
    with pytest.raises(dw.InputError, match=line) as fault:
        dw.learner(name, stream().spec, **given)
    assert "\n" not in str(fault.value)


def test_settings_for_language_are_refused_elsewhere(small_tasks: Callable[..., dw.Stream]) -> None:
    spec = small_tasks().spec
    with pytest.raises(dw.InputError, match="pretrain is for language streams"):
        dw.learner("er", spec, pretrain=10)
    with pytest.raises(dw.InputError, match="checkpointing is for language models"):
        dw.learner("er", spec, checkpointing=True)
    with pytest.raises(dw.InputError, match="batch statistics"):
        dw.learner("er", spec, model="convnet:4-4", micro_batch=4)


def test_pieces_work_for_other_networks(small_tasks: Callable[..., dw.Stream], teach: Callable[..., Any]) -> None:
    given = dw.rebatch(small_tasks(), 10)
    events = list(given)
    nets = [teach(dw.learner("er", given.spec, seed=1, micro_batch=m), events).state()["net"] for m in (0, 3)]
    for name, tensor in nets[0].items():
        torch.testing.assert_close(nets[1][name], tensor, atol=1e-5, rtol=0)


def test_a_head_grows_in_its_own_precision(small_tasks: Callable[..., dw.Stream], teach: Callable[..., Any]) -> None:
    given = dw.rebatch(small_tasks(), 10)
    spec = replace(given.spec, classes=None, experiences=())
    one, other = (dw.learner("er", spec, seed=1, precision="bfloat16") for _ in range(2))
    teach(one, given)
    assert {t.dtype for t in one.state()["net"].values()} == {torch.bfloat16}
    other.load(copy_state(one.state()))
    assert digest(other.state()) == digest(one.state())
    assert other.probe(given.spec.experiences[0].x)().shape == (20, 6)


def test_what_is_tied_is_kept_once(teach: Callable[..., Any]) -> None:
    given = dw.rebatch(stream(24), 8)
    for model, names in (("llama:16-1-2", 2), ("t5:16-1-2", 4)):
        one, other = (dw.learner("er", given.spec, seed=seed, model=model) for seed in (1, 2))
        teach(one, given)
        kept = one.state()["net"]
        tied = [
            n for n, w in one.net.state_dict(keep_vars=True).items() if w is one.net.body.get_input_embeddings().weight
        ]
        assert len(tied) == names
        assert [n for n in tied if n in kept] == tied[:1]
        other.load(copy_state(one.state()))
        assert all(torch.equal(w, other.weights[n]) for n, w in one.weights.items())
        assert other.net.body.get_output_embeddings().weight is other.net.body.get_input_embeddings().weight


def test_an_encoder_tells_its_layers_which_tokens_are_real() -> None:
    """MIGU's score of two rows, one padded to the other's length, is the sum of the rows' own."""
    given = stream(24)
    x = next(e for e in given if isinstance(e, dw.Batch)).x[:2].copy()
    x[0, 3:], x[1, 3:] = 0, 20
    learner: Any = dw.learner("finetune+migu", given.spec, seed=1, model="roberta:16-1-2", migu_from=0)
    migu = learner.techniques[0]
    slot = next(iter(migu.layers.values())).slot
    learner._mode(training=True)
    found = []
    for rows in ([0, 1], [0], [1]):
        migu.before_forward([])
        learner.outputs(learner._tensor(x[rows]), torch.zeros(len(rows), dtype=torch.int64))
        found.append(slot.score.clone())
        slot.take()
    torch.testing.assert_close(found[0], found[1] + found[2], atol=1e-5, rtol=1e-5)
