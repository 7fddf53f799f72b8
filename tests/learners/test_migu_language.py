"""MIGU and LoRA in transformers: the compact path, padding, pieces of a batch, repeated passes, PEFT, short floats."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners import migu
from driftway.adapt.learners.parts import Active, Rows
from driftway.adapt.state import digest
from driftway.models.lora import LoRALinear
from driftway.models.networks import Network
from driftway.models.optimisers import Only, RowSet
from driftway.streams.text_tasks import Examples, Layout, TextTask, text_stream
from driftway.streams.tokens import Prompt
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
MODELS = ("t5:16-1-2", "llama:16-1-2")
WORDS = ("red", "green", "blue", "round", "square", "small", "large", "old", "new", "warm")


@pytest.fixture(name="words", scope="module")
def words_fixture() -> tuple[dw.StreamSpec, list[Any]]:
    """Spec and events of two tasks of prompts of 2 to 8 words, whose answer is yes or no."""
    pytest.importorskip("tokenizers")
    rng = np.random.default_rng(0)

    def examples(n: int, key: str) -> Examples:
        texts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(n)]
        return Examples([Prompt("", text, "") for text in texts], ["yes" if key in text else "no" for text in texts])

    tasks = [TextTask(key, examples(16, key), examples(4, key)) for key in WORDS[:2]]
    stream = dw.rebatch(text_stream("words", tasks, Layout(16, 300, "")), 8)
    return stream.spec, list(stream)


def learner_for(words: Any, techniques: Any, model: Any = MODELS[0], **settings: Any) -> Any:
    given = {"model": model} if isinstance(model, str) else {}
    params = dw.GradientLearner.Params(**(given | {"optimizer": "adamw", "lr": 0.01} | settings))
    own = None if isinstance(model, str) else model
    return dw.GradientLearner(words[0], params, seed=3, techniques=techniques, model=own)


def distance(one: Any, other: Any) -> float:
    """The largest difference of weights."""
    return max(float((w.detach() - other.weights[n].detach()).abs().max()) for n, w in one.weights.items())


class Look(Active):
    """Keeps what the last update was held to, the slots' scores, and what was frozen before it."""

    needs: frozenset[str] = frozenset()
    refuses: dict[str, str] = {}  # noqa: RUF012 - the attribute that techniques have

    def start(self, learner: Any) -> Active:
        self.learner = learner
        self.only: dict[str, Only] = {}
        self.rows: dict[str, list[int]] = {}
        self.before: dict[str, Tensor] = {}
        return self

    def gradients(self, _grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        self.only = dict(only)
        self.rows = {n: some.index.tolist() for n, some in only.items() if isinstance(some, RowSet)}
        self.before = {n: self.learner.weights[n].detach().clone() for n in only}

    def after_step(self, _now: Rows) -> None:
        for name, some in self.only.items():
            assert isinstance(some, RowSet)
            weight = self.learner.weights[name].detach()
            masked = torch.ones(len(weight), dtype=torch.bool)
            masked[some.index] = False
            kind = {2: torch.int16, 4: torch.int32}[weight.itemsize]
            assert torch.equal(weight.view(kind)[masked], self.before[name].view(kind)[masked]), name


@pytest.mark.parametrize("model", MODELS)
def test_the_compact_step_of_a_transformer_equals_the_dense_one(
    words: Any, teach: Any, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict forms the gradient of active rows alone, in every linear layer of every block; plain SGD, so the published
    form, masked dense gradients, ends in the same weights."""
    calls = set()

    def spy(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.add(id(weight))
        return compact(x, weight, *rest, **named)

    compact = migu.row_sparse_linear
    events = words[1]
    settings: Any = {"model": model, "optimizer": "sgd", "lr": 0.1}
    reference = teach(learner_for(words, [dw.MIGU(migu_mode="reference", migu_from=0)], **settings), events)
    monkeypatch.setattr(migu, "row_sparse_linear", spy)
    look = Look()
    strict = teach(learner_for(words, [dw.MIGU(migu_from=0), look], **settings), events)
    assert distance(strict, reference) < 1e-5
    linears = [n for n, m in strict.net.body.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert set(look.only) == {f"body.{name}.weight" for name in linears}
    assert calls == {id(strict.weights[name]) for name in look.only}
    assert distance(strict, learner_for(words, [], **settings)) > 1e-3


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("settings", [{"micro_batch": 3}, {"checkpointing": True}], ids=str)
def test_pieces_and_repeated_passes_leave_the_mask_of_the_whole_batch(
    words: Any, teach: Any, model: str, settings: dict[str, Any]
) -> None:
    """Every token counts once, also where its pass runs again for the backward pass."""
    events = words[1][:2]
    scores: list[dict[str, Tensor]] = []
    learners = []
    for more in ({}, settings):
        look = Look()
        learner = learner_for(words, [dw.MIGU(migu_from=0), look], model=model, optimizer="sgd", lr=0.1, **more)
        seen: dict[str, Tensor] = {}
        part = learner.techniques[0]
        for name, layer in part.layers.items():
            taken = layer.slot.take

            def take(slot: Any = layer.slot, name: str = name, taken: Any = taken, seen: Any = seen) -> Any:
                seen[name] = slot.score.clone()
                return taken()

            layer.slot.take = take
        teach(learner, events)
        scores.append(seen)
        learners.append(learner)
    for name, score in scores[0].items():
        torch.testing.assert_close(scores[1][name], score, rtol=1e-5, atol=1e-6)
    assert distance(*learners) < 1e-5


def test_padding_is_no_token(words: Any) -> None:
    """A longer row of padding changes no score; counted as the authors do, it does."""
    (batch,) = [e for e in words[1] if isinstance(e, dw.Batch)][:1]
    scores = {}
    for padding in (False, True):
        learner = learner_for(words, [dw.MIGU(migu_from=0, migu_padding=padding)])
        part = learner.techniques[0]
        layer = next(layer for name, layer in part.layers.items() if "encoder" in name)
        learner.net.train()
        for rows in ([0, 1, 2], [0, 1, 2, 3]):
            x, y = learner._tensor(batch.x[rows]), torch.from_numpy(batch.y[rows])
            part.before_forward([])
            layer.slot.score = None
            learner.net(x, y)
            scores[padding, len(rows)] = layer.slot.score.clone()
            layer.slot.take()
        if not padding:
            alone = 0
            for row in range(4):
                part.before_forward([])
                learner.net(*(t[row : row + 1] for t in (x, y)))
                alone = alone + layer.slot.score
                layer.slot.take()
            torch.testing.assert_close(alone, scores[False, 4], rtol=1e-5, atol=1e-5)
    assert (scores[True, 4] > scores[False, 4] + 1e-3).any()


def test_looking_and_writing_touch_no_score(words: Any, teach: Any) -> None:
    events = words[1]
    quiet, watched = (learner_for(words, [dw.LoRA(), dw.MIGU(migu_from=0)]) for _ in range(2))
    probe = watched.probe(words[0].experiences[0].x)
    for event in events:
        teach(quiet, [event])
        probe()
        teach(watched, [event])
    assert distance(quiet, watched) == 0


@pytest.mark.parametrize("technique", [dw.LoRA(lora_rank=8), dw.IncLoRA(lora_rank=8), dw.OLoRA(lora_rank=8)])
def test_adapters_are_masked_by_rank_and_by_the_whole_output(words: Any, teach: Any, technique: Any) -> None:
    """r - floor(.7 r) = 3 of 8 rows of A. B is 0 at first, so its rows are those of the layer beneath (example 9)."""
    events = [e for e in words[1] if isinstance(e, dw.Batch)]
    look = Look()
    learner = learner_for(words, [technique, dw.MIGU(migu_from=0), look], weight_decay=0.1)
    base = learner_for(words, [dw.MIGU(migu_from=0), (look_base := Look())])
    teach(learner, events[:1])
    teach(base, events[:1])
    adapted = [n for n, m in learner.net.named_modules() if isinstance(m, LoRALinear)]
    assert set(look.rows) == {f"{n}.{part}.weight" for n in adapted for part in ("lora_A", "lora_B")}
    for name in adapted:
        assert len(look.rows[f"{name}.lora_A.weight"]) == 3
        assert look.rows[f"{name}.lora_B.weight"] == look_base.rows[f"{name}.weight"]
    teach(learner, events[1:])


@pytest.mark.parametrize("name", ["er+migu", "er+lora+migu", "inc-lora+migu", "o-lora+migu", "er+o-lora"])
def test_company_on_a_language_stream(words: Any, teach: Any, name: str) -> None:
    """Saved in the second task, loaded and continued."""
    settings: dict[str, Any] = {"model": MODELS[1], **({"memory": 8} if "er+" in name else {})}
    if "lora" in name:
        settings |= {"lora_rank": 2, "lora_alpha": 4.0}
    learner, other = (dw.learner(name, words[0], seed=1, **settings) for _ in range(2))
    before = {n: w.detach().clone() for n, w in learner.weights.items()}
    teach(learner, words[1][:4])
    other.load(learner.state())
    for each in (learner, other):
        teach(each, words[1][4:])
    assert digest(other.state()) == digest(learner.state())
    moved = {n for n, w in before.items() if not torch.equal(learner.weights[n], w)}
    assert moved
    assert all("lora_" in n for n in moved) is ("lora" in name)
    if "migu" in name:
        assert len(learner.facts()["rows"]["overlap"]) == 2


def test_the_order_of_the_parts_does_not_matter(words: Any, teach: Any) -> None:
    events = words[1]
    one, other = (
        teach(dw.learner(name, words[0], model=MODELS[1], lora_rank=4), events) for name in ("lora+migu", "migu+lora")
    )
    assert distance(one, other) == 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_models_of_peft_work_as_they_are(words: Any, teach: Any) -> None:
    learner = learner_for(words, [], model=MODELS[1])
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "up_proj"], init_lora_weights=True)
    model = peft.get_peft_model(learner.net.body, config)
    look = Look()
    adapted = learner_for(words, [dw.MIGU(migu_from=0), look], model=model, weight_decay=0.1)
    frozen = {n: w.detach().clone() for n, w in adapted.weights.items() if "lora" not in n}
    teach(adapted, words[1])
    assert len(look.rows) == 4
    assert all(len(rows) == 3 for name, rows in look.rows.items() if "lora_A" in name)
    assert all(torch.equal(adapted.weights[n], w) for n, w in frozen.items())
    assert all(w.detach().any() for n, w in adapted.weights.items() if "lora_B" in n)


def test_transposed_layers_are_masked_by_columns(small_tasks: Any, teach: Any) -> None:
    """Weights [d_in, d_out], as in GPT-2: strict keeps the other columns bit for bit; plain SGD equals the published
    form."""
    from transformers.pytorch_utils import Conv1D

    stream = dw.rebatch(small_tasks(2), 10)
    events = list(stream)
    learners = {}
    for mode, settings in {
        "strict": {"optimizer": "adamw", "weight_decay": 0.1, "lr": 0.01},
        "reference": {"optimizer": "sgd", "lr": 0.1},
        "plain": {"optimizer": "sgd", "lr": 0.1},
    }.items():
        torch.manual_seed(0)
        net = Network(nn.Sequential(nn.Flatten(), Conv1D(10, 16), nn.ReLU()), nn.Linear(10, 4))
        how: Any = "reference" if mode == "reference" else "strict"
        learner = learner_for(
            (stream.spec, events), [dw.MIGU(migu_from=0, migu_mode=how, migu_bias=True)], model=net, **settings
        )
        for event in events:
            before = learner.weights["body.1.weight"].detach().clone()
            teach(learner, [event])
            moved = (learner.weights["body.1.weight"].detach() != before).any(0)
            assert moved.sum() <= 3, "10 - floor(.7 10)"
        learners[mode] = learner
    assert distance(learners["plain"], learners["reference"]) < 1e-6
    with pytest.raises(dw.InputError, match=r"lazy.*body\.1"):
        learner_for((stream.spec, events), [dw.MIGU(migu_mode="lazy")], model=net)


def test_queries_keys_and_values_in_one_weight_are_chosen_apart(small_tasks: Any, teach: Any) -> None:
    events = list(stream := dw.rebatch(small_tasks(2), 10))
    attention = nn.Sequential()
    attention.add_module("qkv", nn.Linear(16, 48))
    net = Network(nn.Sequential(nn.Flatten(), attention, nn.ReLU()), nn.Linear(48, 4))
    look = Look()
    teach(learner_for((stream.spec, events), [dw.MIGU(migu_from=0), look], model=net), events)
    parts = [row // 16 for row in look.rows["body.1.qkv.weight"]]
    assert [parts.count(part) for part in range(3)] == [5, 5, 5]


def test_weights_that_an_embedding_shares_are_left_out(words: Any, teach: Any) -> None:
    look = Look()
    learner = learner_for(words, [dw.MIGU(migu_layers="*", migu_from=0), look], model=MODELS[1])
    assert learner.net.body.lm_head.weight is learner.net.body.get_input_embeddings().weight
    teach(learner, words[1])
    assert look.only
    assert not [name for name in look.only if "lm_head" in name or "embed" in name]


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
@pytest.mark.parametrize("name", ["migu", "lora+migu"])
@pytest.mark.parametrize("model", MODELS)
def test_masked_rows_stay_put_in_short_floats(words: Any, teach: Any, precision: str, name: str, model: str) -> None:
    look = Look()
    techniques = [*([dw.LoRA(lora_rank=8)] if "lora" in name else []), dw.MIGU(migu_from=0), look]
    learner = learner_for(words, techniques, model=model, precision=precision, weight_decay=0.1)
    short = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert {w.dtype for w in learner.weights.values()} == {short}
    before = {n: w.detach().clone() for n, w in learner.weights.items()}
    teach(learner, words[1])
    assert look.only
    for key in look.only:
        assert not torch.equal(learner.weights[key], before[key])
        assert all(learner.optimiser.slots[key][moment].dtype is torch.float32 for moment in ("m", "v"))
