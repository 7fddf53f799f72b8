"""Few labelled rows on a stream without labels: what they teach, what stays, under what drift they are seen."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_parts import Confident, Descent, Direction, Parts
from driftway.adapt.learners.test_time_recipes import CSFA, NCM, TEEN, BatchNormAdapt, ShotsFinetune, Source, Tent
from driftway.adapt.learners.test_time_shots import COMPANY, Finetuning, Prototyped, Shots
from driftway.adapt.loop import Loop
from driftway.adapt.source_model import Training, source_model
from driftway.adapt.source_prototypes import prototype_source, rehearsed
from driftway.adapt.state import all_finite, copy_state, digest, join, split
from driftway.evaluation.metrics import accuracy, base_accuracy, harmonic_mean, new_accuracy
from driftway.models.inputs import Pixels
from driftway.models.prototypes import STRENGTHS, Calibration, Prototypes
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

RATE = 0.01
TRAINING = Training("convnet:8-16", epochs=15)
RECIPES: list[Any] = [
    NCM(),
    NCM(company="before"),
    NCM(statistics="source"),
    TEEN(rule="shrink"),
    ShotsFinetune(steps=30),
    Tent(lr=RATE, prototypes="fixed"),
    CSFA(lr=RATE),
    CSFA(lr=RATE, rule="shrink", filter="by-group", rho=0.5),
]
every = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)


@pytest.fixture(scope="module")
def stream() -> Any:
    return dw.rebatch(dw.stream("digits-gilcd", rows=192, passes=1), 32)


@pytest.fixture(scope="module")
def events(stream: Any) -> list[Any]:
    stream.seek({})
    return list(stream)


def inputs_for(stream: Any) -> Pixels:
    return Pixels(stream.spec.shape, stream.spec.notes["mean"], stream.spec.notes["std"])


@pytest.fixture(scope="module")
def nets(stream: Any) -> dict[str, nn.Module]:
    """A body with prototypes, and a network with a linear head."""
    inputs = inputs_for(stream)
    body, head = prototype_source(stream.spec, inputs, TRAINING, Calibration(), keep=False, progress=lambda _: None)
    net = nn.Module()
    net.body, net.head = body, head
    linear = source_model(stream.spec, inputs, TRAINING, keep=False, progress=lambda _: None)
    return {"prototypes": net, "linear": linear}


def learner(stream: Any, nets: dict[str, nn.Module], recipe: Any, parts: Parts | None = None) -> TestTimeLearner:
    how = recipe.parts(stream.spec) if parts is None else parts
    net = copy.deepcopy(nets["prototypes" if isinstance(how.shots, Shots) else "linear"])
    if isinstance(how.shots, Shots) and isinstance(net.head, Prototypes):
        net.head.calibration = how.shots.calibration()
    return TestTimeLearner(stream.spec, recipe, model=net, parts=parts)


def feed(one: TestTimeLearner, events: list[Any]) -> tuple[list[dw.Prediction], np.ndarray, np.ndarray]:
    """As the loop does; predictions, and labels and answers of the rows that came without."""
    said, answers, y, output = [], {}, [], []
    for event in events:
        if isinstance(event, dw.Batch):
            said.append(one.predict(event))
            one.adapt(event, said[-1])
            if event.y is not None:
                one.learn(event, said[-1])
            else:
                answers |= dict(zip(event.ids.tolist(), said[-1].output.tolist(), strict=True))
        elif isinstance(event, dw.Labels):
            y += event.y.tolist()
            output += [answers.get(i, -1) for i in event.ids.tolist()]
    return said, np.array(y), np.array(output)


def labelled(events: list[Any]) -> list[int]:
    return [i for i, e in enumerate(events) if isinstance(e, dw.Batch) and e.y is not None]


def taught(one: TestTimeLearner) -> Prototyped:
    assert isinstance(one.taught, Prototyped)
    return one.taught


# --- what labels teach ------------------------------------------------------------------------------------------


@every
def test_new_classes_are_answered_once_they_were_shown(stream: Any, nets: Any, events: list[Any], recipe: Any) -> None:
    one = learner(stream, nets, recipe)
    first, second = labelled(events)
    said, _, _ = feed(one, events[:first])
    assert {int(c) for p in said for c in p.output} <= set(range(6))
    assert one.classes == 6
    said, _, _ = feed(one, events[first:second])
    assert all((p.scores[:, 8:] == 0).all() for p in said[1:])  # type: ignore[index]
    said, _, output = feed(one, events[second:])
    assert one.classes == 10
    assert said[-1].scores is not None
    assert said[-1].scores.shape == (len(said[-1].output), 10)
    assert_allclose(said[-1].scores.sum(1), 1)
    assert_array_equal(said[-1].scores.argmax(1), said[-1].output)
    assert (said[-1].scores > 0).all()
    assert np.isin(output, (6, 7, 8, 9)).any()
    assert all_finite(one.state()) is None


def test_labels_change_nothing_where_the_method_has_no_part_for_them(stream: Any, nets: Any, events: list[Any]) -> None:
    for recipe in (Source(), BatchNormAdapt()):
        one = learner(stream, nets, recipe)
        before = digest(one.state()["net"])
        said, _, _ = feed(one, events)
        assert digest(one.state()["net"]) == before
        assert all(p.scores.shape[1] == 10 for p in said)  # type: ignore[union-attr]


def test_old_rows_stay_bit_for_bit_and_have_no_gradient(stream: Any, nets: Any, events: list[Any]) -> None:
    one = learner(stream, nets, CSFA(lr=RATE))
    head = taught(one).prototypes
    assert [n for n, w in one.net.named_parameters() if w.requires_grad] == [
        f"body.{i}.{kind}" for i in (1, 5) for kind in ("weight", "bias")
    ]
    second = labelled(events)[1]
    base = head.rows.clone()
    feed(one, events[:second])
    assert torch.equal(head.rows[:6], base)
    kept = head.rows.clone()
    feed(one, events[second:])
    assert len(head.rows) == 10
    assert torch.equal(head.rows[:8], kept)
    assert not any(b.requires_grad for b in head.buffers())
    assert one.telemetry()["steps"] > 0


def test_without_calibration_answers_are_those_of_the_nearest_class_mean(
    stream: Any, nets: Any, events: list[Any]
) -> None:
    """Support and queries under the source's statistics, by hand."""
    one = learner(stream, nets, NCM(statistics="source"))
    said, _, _ = feed(one, events)
    body, head = nets["prototypes"].body, nets["prototypes"].head
    inputs = inputs_for(stream)

    def features(rows: list[dw.Batch]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([body(inputs.tensor(b.x)) for b in rows])  # type: ignore[arg-type]

    batches = [e for e in events if isinstance(e, dw.Batch)]
    shots = [b for b in batches if b.y is not None]
    f, y = features(shots), np.concatenate([b.y for b in shots])  # type: ignore[misc]
    means = torch.stack([f[y == c].mean(0) for c in range(6, 10)])
    rows = nn.functional.normalize(torch.cat([head.means, means]))
    cosine = nn.functional.normalize(features([batches[-1]])) @ rows.T
    assert_array_equal(said[-1].output, cosine.argmax(1))
    assert_allclose(said[-1].scores, torch.softmax(16 * cosine.double(), 1), atol=1e-5)


def test_the_threshold_and_the_running_loss_follow_the_classes(stream: Any, nets: Any, events: list[Any]) -> None:
    one = learner(stream, nets, CSFA(lr=RATE, recover=1e-9))
    first = labelled(events)[0]
    feed(one, events[:first])
    assert one.mean_loss is not None
    moved = {n: w.detach().clone() for n, w in one.moving.items()}
    assert one.parts.recovery is not None
    low = one.parts.recovery.threshold(one.classes)
    steps = one.telemetry()["steps"]
    feed(one, events[first : first + 1])
    assert one.mean_loss is None
    assert all(torch.equal(w, moved[n]) for n, w in one.moving.items()), "no step on labelled rows, no reset"
    assert one.telemetry()["steps"] == steps
    assert one.parts.recovery.threshold(one.classes) == pytest.approx(low * math.log(8) / math.log(6))
    z = one.net(one._tensor(next(e for e in events if isinstance(e, dw.Batch))))
    rows = one.parts.objective.rows(z)
    assert (z.shape[1], rows.most) == (8, math.log(8))
    assert_array_equal(one.parts.filter.again(rows), rows.doubt < 0.4 * math.log(8))


# --- under which drift labelled rows are seen -------------------------------------------------------------------


def test_labelled_rows_are_seen_in_company_of_rows_after_them(stream: Any, nets: Any, events: list[Any]) -> None:
    one = learner(stream, nets, NCM())
    first = labelled(events)[0]
    feed(one, events[: first + 1])
    shots = one._tensor(events[first])
    y = torch.from_numpy(events[first].y)
    after = [e for e in events[first + 1 :] if isinstance(e, dw.Batch)][:3]
    came = torch.cat([one._tensor(b) for b in after])

    def rows(*company: torch.Tensor) -> torch.Tensor:
        head = copy.deepcopy(nets["prototypes"].head)
        head.calibration = Calibration("fixed", 0.0)
        fresh = learner(stream, nets, NCM(statistics="batch"))
        with torch.no_grad():
            head.add(taught(fresh)._body(torch.cat([shots, *company]))[: len(shots)], y)
        return head.rows

    head = taught(one).prototypes
    torch.testing.assert_close(head.rows, rows())
    for n in (32, 64, 64):
        batch = after.pop(0)
        one.adapt(batch, one.predict(batch))
        torch.testing.assert_close(head.rows, rows(came[:n]), rtol=0, atol=1e-5)
    assert not torch.allclose(rows(), rows(came[:64]), atol=1e-3)
    assert COMPANY == 64


def test_labelled_rows_in_company_of_rows_before_them(stream: Any, nets: Any, events: list[Any]) -> None:
    one, alone = learner(stream, nets, NCM(company="before")), learner(stream, nets, NCM(company="before"))
    plain = learner(stream, nets, NCM(statistics="source"))
    first = labelled(events)[0]
    feed(one, events[:first])
    before = torch.cat([one._tensor(e) for e in events[:first] if isinstance(e, dw.Batch)])[-64:]
    for some in (one, alone, plain):
        feed(some, events[first : first + 1])
    x, y = one._tensor(events[first]), torch.from_numpy(events[first].y)
    expected = copy.deepcopy(nets["prototypes"].head)
    expected.calibration = Calibration("fixed", 0.0)
    with torch.no_grad():
        expected.add(taught(one)._body(torch.cat([x, before]))[: len(x)], y)
    torch.testing.assert_close(taught(one).prototypes.rows, expected.rows)
    torch.testing.assert_close(taught(alone).prototypes.rows, taught(plain).prototypes.rows)


def test_shots_in_several_batches_are_as_good_as_in_one(stream: Any, nets: Any, events: list[Any]) -> None:
    first = labelled(events)[0]
    whole, parts = learner(stream, nets, TEEN(rule="shrink")), learner(stream, nets, TEEN(rule="shrink"))
    shots = events[first]
    pieces = [shots.rows(slice(at, at + 3)) for at in range(0, len(shots), 3)]
    feed(whole, events[: first + 3])
    feed(parts, [*events[:first], *pieces, *events[first + 1 : first + 3]])
    torch.testing.assert_close(taught(parts).prototypes.rows, taught(whole).prototypes.rows)
    assert taught(parts).prototypes.counts.tolist() == taught(whole).prototypes.counts.tolist()


# --- what adaptation must not undo ------------------------------------------------------------------------------


def test_going_back_keeps_what_labels_taught(stream: Any, nets: Any, events: list[Any]) -> None:
    one = learner(stream, nets, CSFA(lr=RATE))
    first, second = labelled(events)
    feed(one, events[:first])
    good = copy_state(one.adapted())
    moved = digest(good)
    feed(one, events[first:second])
    rows = taught(one).prototypes.rows.clone()
    one.restore(good)
    assert digest(one.adapted()) == moved
    assert torch.equal(taught(one).prototypes.rows, rows)
    one._reset()
    assert all(torch.equal(w, one.source[n]) for n, w in one.moving.items())
    assert one.optimiser is not None
    assert one.optimiser.slots == {}
    assert one.mean_loss is None
    assert torch.equal(taught(one).prototypes.rows, rows)
    said = one.predict(next(e for e in events if isinstance(e, dw.Batch)))
    assert_allclose(one.source_scores(events[second]).sum(1), 1)
    assert (said.scores[:, :8] > 0).all()  # type: ignore[index]


@every
@pytest.mark.parametrize("more", [0, 1, 2, 4])
def test_saved_loaded_and_continued(stream: Any, nets: Any, events: list[Any], recipe: Any, more: int) -> None:
    """Saved before labels came, with labelled rows that still wait for company, and after."""
    at = labelled(events)[0] + more
    straight, restored = learner(stream, nets, recipe), learner(stream, nets, recipe)
    feed(straight, events[:at])
    feed(restored, events)
    skeleton, arrays = split(straight.state())
    restored.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
    assert digest(restored.state()) == digest(straight.state())
    kept = digest(restored.state())
    some = feed(straight, events[at:])[0]
    assert digest(restored.state()) == kept
    others = feed(restored, events[at:])[0]
    for mine, same in zip(some, others, strict=True):
        assert_array_equal(mine.scores, same.scores)
    assert digest(restored.state()) == digest(straight.state())


@every
def test_answers_come_before_the_step_and_repeat(stream: Any, nets: Any, events: list[Any], recipe: Any) -> None:
    one, other = learner(stream, nets, recipe), learner(stream, nets, recipe)
    for mine, same in zip(feed(one, events)[0], feed(other, events)[0], strict=True):
        assert_array_equal(mine.scores, same.scores)
    assert digest(one.state()) == digest(other.state())
    batch = events[-2]
    before = digest(one.state())
    assert_array_equal(one.probe(batch.x)(), one.predict(batch).scores)
    assert digest(one.state()) == before


@every
@pytest.mark.parametrize("value", [np.nan, 1e30, 0.0])
def test_garbage_teaches_nothing_that_is_not_finite(
    stream: Any, nets: Any, events: list[Any], recipe: Any, value: float
) -> None:
    one = learner(stream, nets, recipe)
    first = labelled(events)[0]
    feed(one, events[:first])
    for y in (None, np.array([6, 7, 8])):
        bad = dw.Batch(np.arange(3), np.full((3, 64), value), 0.0, y)
        said, _, _ = feed(one, [bad])
        assert np.isfinite(said[0].scores).all()  # type: ignore[arg-type]
    feed(one, events[first:])
    assert all_finite(one.state()) is None


@every
def test_row_by_row_in_the_loop(stream: Any, nets: Any, recipe: Any) -> None:
    one = learner(stream, nets, recipe)
    loop = Loop(one, evaluators=[dw.Prequential(stream.spec)], row_by_row=True, guard=dw.Guard())
    list(loop.steps(dw.stream("digits-gilcd", rows=12, passes=1)))
    assert loop.summary()["examples"] == 3 * 12 + 20
    assert one.classes == 10
    assert all_finite(one.state()) is None


# --- the step ---------------------------------------------------------------------------------------------------


def test_csfa_is_tent_without_ascent_and_threshold(stream: Any, nets: Any, events: list[Any]) -> None:
    sgd = Descent("sgd", RATE)
    tent = learner(stream, nets, Tent(optimizer="sgd", lr=RATE, prototypes="fixed"))
    csfa = learner(stream, nets, CSFA(lr=RATE, rho=0, e_frac=math.inf, recover=0))
    other = learner(stream, nets, None, Parts(filter=Confident(), direction=Direction(0.5, 0.4), descent=sgd,
                                              shots=Shots()))  # fmt: skip
    for one in (tent, csfa, other):
        feed(one, events)
    assert digest(csfa.adapted()["moving"]) == digest(tent.adapted()["moving"])
    assert digest(other.adapted()["moving"]) != digest(tent.adapted()["moving"])


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        Parts(shots=Finetuning(), descent=Descent())
    with pytest.raises(ValueError, match="strength of fixed"):
        Shots(lam=1.0)
    with pytest.raises(ValueError, match="steps and lr"):
        ShotsFinetune(lr=-1)


# --- the note's short check -------------------------------------------------------------------------------------


def test_what_the_stream_of_digits_is_expected_to_show(nets: Any) -> None:
    """Statistics are worth much, RSGS little either way; fine-tuning forgets; no reset; some rows are kept, not all."""
    stream = dw.rebatch(dw.stream("digits-gilcd", passes=1), 32)
    found = {}
    for name, recipe in {
        "source": NCM(statistics="source"),
        "bn-adapt": NCM(),
        "rsgs": CSFA(lam=0.0),
        "finetune": ShotsFinetune(),
    }.items():
        stream.seek({})
        one = learner(stream, nets, recipe)
        _, y, output = feed(one, list(stream))
        b, n = base_accuracy(y, output, 6), new_accuracy(y, output, 6)
        found[name] = (100 * float(accuracy(y, output) or 0), 100 * float(b or 0), harmonic_mean(b, n))
        if name == "rsgs":
            told = one.telemetry()
            assert 0.2 < told["kept"] < 0.95
            assert told["resets"] == 0
    assert found["bn-adapt"][0] - found["source"][0] > 15
    assert -1 <= found["rsgs"][0] - found["bn-adapt"][0] <= 6
    assert found["finetune"][1] < found["bn-adapt"][1] - 20
    assert (found["bn-adapt"][2] or 0) > (found["source"][2] or 0)


# --- prototypes of the source -----------------------------------------------------------------------------------


def test_the_base_rows_are_class_means_in_evaluation_mode(stream: Any, nets: Any) -> None:
    x, y = stream.spec.source.train()
    net, inputs = nets["prototypes"], inputs_for(stream)
    with torch.no_grad():
        features = net.body(inputs.tensor(x))
    for c in range(6):
        torch.testing.assert_close(net.head.means[c], features[torch.from_numpy(y == c)].mean(0), rtol=0, atol=1e-5)
    assert net.head.counts.tolist() == np.bincount(y).tolist()
    held, held_y = stream.spec.source.test()
    with torch.no_grad():
        right = (net.head.answers(net.body(inputs.tensor(held))).numpy() == held_y).mean()
    assert right > 0.95


def test_a_strength_is_chosen_by_bodies_that_have_not_met_the_new_classes(stream: Any) -> None:
    x, y = stream.spec.source.train()
    some = np.concatenate([np.flatnonzero(y == c)[:40] for c in range(6)])
    said: list[str] = []
    short = Training("convnet:4-8", epochs=3)
    chosen = [
        rehearsed(inputs_for(stream), x[some], y[some], short, Calibration("shrink", 0.5), k, said.append)
        for k in (5, 5, 1)
    ]
    assert chosen[0] == chosen[1]
    assert {c.strength for c in chosen} <= set(STRENGTHS["shrink"])
    assert len([line for line in said if "rehearsal" in line]) == 3 * 4
    with pytest.raises(dw.InputError, match="two clean classes"):
        rehearsed(inputs_for(stream), x[:9], np.zeros(9, np.int64), short, Calibration(), 5)


def test_prototypes_are_kept_with_weights_and_strength(stream: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    short = Training("convnet:4-8", epochs=2)

    def made(shots: int, strength: float = 0.5, **options: Any) -> dict[str, torch.Tensor]:
        rule = Calibration("shrink", strength)
        how = {"progress": said.append, **options}
        body, head = prototype_source(stream.spec, inputs_for(stream), short, rule, shots, **how)
        return {**body.state_dict(), "rows": head.rows, "strength": torch.tensor(head.calibration.strength)}

    plain, tuned = made(0), made(5)
    lines = len(said)
    files = list((tmp_path / "driftway" / "sources").iterdir())
    assert len(files) == 2
    for shots, first in ((0, plain), (5, tuned)):
        again = made(shots)
        assert all(torch.equal(first[n], again[n]) for n in first)
    assert float(made(0, 0.25)["strength"]) == 0.25
    assert float(made(5, 0.25)["strength"]) == float(tuned["strength"])
    assert len(said) == lines, "taken from the cache"
    assert all(torch.equal(plain[n], tuned[n]) for n in plain if n != "strength"), "the same model"
    for file in files:
        given = made(0, source=str(file))
        assert all(torch.equal(given[n], plain[n]) for n in given if not n.endswith("tracked"))
    without, kept = sorted(files, key=lambda file: file.stat().st_size)
    assert torch.equal(made(5, source=str(kept))["strength"], tuned["strength"])
    with pytest.raises(dw.InputError, match="no chosen strength"):
        made(5, source=str(without))


def test_what_prototypes_need() -> None:
    with pytest.raises(dw.InputError, match="how many labelled rows"):
        dw.learner("teen", dw.stream("digits-c").spec, rule="tuned")
    with pytest.raises(dw.InputError, match="no body"):
        TestTimeLearner(dw.stream("digits-gilcd").spec, NCM(), model=nn.Flatten())
