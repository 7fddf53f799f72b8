"""Every part alone and every pair of parts: whatever may combine keeps all promises, whatever may not says why."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.learners import LEARNERS, learner_params
from driftway.adapt.learners.parts import is_policy
from driftway.adapt.state import digest, join, split

PARTS = [name for name, entry in LEARNERS.items() if entry.part]
PAIRS = ["+".join(pair) for pair in combinations(PARTS, 2)]


def refused(name: str) -> str | None:
    """The reason why these parts cannot be put together; None where they can."""
    try:
        learner_params(name)
    except dw.InputError as reason:
        return str(reason)
    return None


ALLOWED = [*PARTS, *(pair for pair in PAIRS if refused(pair) is None)]


def small(name: str, stream: Any, **more: Any) -> Any:
    """The parts over a network small enough to be quick, with a norm, or with linear layers, for those who need any."""
    known = learner_params(name).__dataclass_fields__
    settings: dict[str, Any] = {"model": "mlp:8-8" if "train_also" in known else "convnet:8-8"}
    settings |= {"lr": 0.05, "memory": 20, "fisher_rows": 8, "experts": 3, "expert_rank": 2, **more}
    return dw.learner(name, stream.spec, seed=2, **{k: v for k, v in settings.items() if k in known})


def test_two_policies_are_the_pairs_that_never_go_together() -> None:
    policies = [name for name in PARTS if is_policy(LEARNERS[name].load_part())]
    for one, other in combinations(policies, 2):
        assert "one replay policy" in (refused(f"{one}+{other}") or "")


@pytest.mark.parametrize("pair", [p for p in PAIRS if refused(p) is not None])
def test_a_refusal_gives_its_reason(pair: str) -> None:
    reason = refused(pair)
    assert reason is not None
    assert len(reason) > 30
    assert "\n" not in reason


def test_the_order_of_names_does_not_decide_whether_they_combine() -> None:
    for pair in PAIRS:
        assert (refused(pair) is None) == (refused("+".join(reversed(pair.split("+")))) is None)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", PARTS)
def test_every_part_learns_in_half_precision_or_says_why_not(name: str, precision: str, small_tasks, teach) -> None:
    events = list(dw.rebatch(small_tasks(rows=24), 8))
    if (name, precision) == ("adab2n", "bfloat16"):
        with pytest.raises(dw.InputError, match="precision=autocast or float32"):
            small(name, small_tasks(rows=24), precision=precision)
        return
    learner = small(name, small_tasks(rows=24), precision=precision)
    teach(learner, events)
    assert np.isfinite(learner.predict(events[-1]).scores).all()


@pytest.mark.parametrize("name", ALLOWED)
def test_saved_in_the_midst_and_continued_equals_uninterrupted(name: str, small_tasks, teach) -> None:
    events = list(dw.rebatch(small_tasks(rows=24, epochs=2), 8))
    stream = small_tasks(rows=24, epochs=2)
    straight, restored = small(name, stream), small(name, stream)
    at = len(events) // 2
    teach(straight, events[:at])
    skeleton, arrays = split(straight.state())
    restored.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
    assert digest(restored.state()) == digest(straight.state())
    teach(straight, events[at:])
    teach(restored, events[at:])
    assert digest(restored.state()) == digest(straight.state())
    rows = events[-1]
    assert np.isfinite(straight.predict(rows).scores).all()


@pytest.mark.parametrize("name", ALLOWED)
def test_evaluation_between_updates_leaves_no_trace(name: str, small_tasks, teach) -> None:
    stream = small_tasks(rows=24)
    events = list(dw.rebatch(small_tasks(rows=24), 8))
    watched, alone = small(name, stream), small(name, stream)
    ask = watched.probe(stream.spec.experiences[0].x)
    for event in events:
        ask()
        teach(watched, [event])
        teach(alone, [event])
    assert digest(watched.state()) == digest(alone.state())
    assert set(watched.telemetry()) == set(small(name, stream).telemetry())
