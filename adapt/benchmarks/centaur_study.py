"""Centaur and its controls on shifted driving scenes: five trained planners, lengths of steps tuned on other scenes.

For every planner (a seed, which is also that of its scenes) and objective: the mean gradient of a scene's four earlier
frames at the trained weights, one step of length delta (``models/cluster_training.py``, whose plans these are), the
plan for the fifth frame, judged by the truth. delta is the one of a log grid with the best mean PDMS on validation
scenes, all planners together; ``at 20 %`` takes instead the delta at which a fifth of the validation scenes' plans
change, so that objectives are compared at the same amount of meddling. Nothing is tuned on test scenes.

Rows are in points of 100: a score, its paired difference to no adaptation with a 95 % interval by bootstrap over all
scenes of all planners, and with PDMS the shares of plans that changed and of scenes that were helped and harmed (by
more than 0.2), in per cent. The whole validation grid is among the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.bootstrap import paired_interval
from ...evaluation.worths import SWING
from ...models.cluster_entropy import ClusterEntropy, full_entropy
from ...models.planner import fit_temperature
from ...models.trajectories import manoeuvres
from ...streams import Array, StreamSpec, open_stream
from ...streams.driving import Scene, scenes
from ...streams.driving_truth import judge
from ..learners.centaur import FAR, Centaur
from ..source_model import tell
from . import Row

SEEDS = 5
SEVERITY, VALIDATION, TEST = 2, 200, 400
GRID = (1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7e-3, 1e-2, 1.5e-2, 2e-2, 5e-2, 1e-1, 3e-1)
QUANTILES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Of the objective on validation scenes: from where on the fallback brakes."""
SHARES = (0.2, 0.4)
"""Of plans changed, at which objectives are compared beside their tuned steps."""
SUB = ("pdms", "nc", "dac", "ttc", "ep", "c")
METHODS = (
    *("cluster", "ascent", "random", "cluster, guard", "cluster6", "cluster6, guard", "full", "full, guard"),
    *("shuffled", "cluster6, w=0.3", "cluster6, T fitted", "full, T fitted"),
)
"""Those that go by the same gradients follow one another: only one objective's are in memory, a gigabyte."""

PAIRS = (("full", "cluster6"), ("full, guard", "cluster6, guard"), ("cluster6", "shuffled"), ("cluster6", "cluster"))


@dataclass(frozen=True, slots=True)
class Split:
    """Scenes of one planner: what is seen, what each plan is worth float32[n, M, 6] (PDMS last), and the planner's
    figures under the trained weights: scores [n, M], objectives by name [n]."""

    frames: list[list[Any]]
    worth: Array
    plans: Array
    safety: Tensor
    doubt: dict[str, Array]
    braking: Array


@dataclass(frozen=True, slots=True)
class Subject:
    """A planner, its objectives and their reference lengths of a gradient; gradients float[n, P] of both splits, of
    the objective that was asked for last."""

    learner: Centaur
    measures: dict[str, Callable[[Tensor], Tensor]]
    splits: dict[str, Split]
    reference: dict[str, float]
    gradients: dict[tuple[str, str], Tensor]

    def gradients_of(self, source: str, split: str) -> Tensor:
        """float[n, P]: of the mean objective over each scene's four earlier frames."""
        if (source, split) not in self.gradients:
            for other in [key for key in self.gradients if key[0] != source]:
                del self.gradients[other]
            self.gradients[source, split] = _gradients(self.learner, self.splits[split], self.measures[source])
        return self.gradients[source, split]


def measure() -> list[Row]:
    """The whole study: some ten minutes on one core, the planners' training included."""
    spec = open_stream("driving", severity=SEVERITY).spec
    subjects = [_subject(spec, seed) for seed in range(SEEDS)]
    rows = _baseline(subjects)
    tuned: dict[str, float] = {}
    kept: dict[str, list[Array]] = {}
    for method in METHODS:
        grid = {delta: _outcome(subjects, "validation", method, delta) for delta in GRID}
        rows += [_grid_row(subjects, method, delta, plans) for delta, plans in grid.items()]
        means = {delta: _mean(subjects, "validation", plans) for delta, plans in grid.items()}
        tuned[method] = max(means, key=lambda delta: means[delta])
        shares = [_changed(subjects, "validation", plans) for plans in grid.values()]
        equal = {f"at {100 * share:g} %": _at_share(shares, share) for share in SHARES}
        for name, delta in {"tuned": tuned[method], **equal}.items():
            plans = kept[f"{method}, {name}"] = _outcome(subjects, "test", method, delta)
            rows += _report(subjects, f"{method}, {name}, delta {delta:.3g}", plans)
            tell(f"centaur study: {rows[-len(SUB)]['case']}: {rows[-len(SUB)]['ours']:.2f}")
    return rows + _beside(subjects, kept) + _fallback(subjects) + _failures(subjects) + _costs(subjects[0])


# --- planners and their gradients -----------------------------------------------------------------------------------


def _subject(spec: StreamSpec, seed: int) -> Subject:
    learner = Centaur(spec, Centaur.Params(background="no"), seed)
    clean = scenes(range(64), seed=seed, split="validation")
    measures = objectives(spec, _temperature(learner, clean))
    splits = {}
    for name, count in (("validation", VALIDATION), ("test", TEST)):
        found = scenes(range(count), seed=seed, split=name, severity=SEVERITY)
        splits[name] = _split(learner, found, measures, spec)
    frames = [learner.planner.features(torch.from_numpy(s.observations[-1:])) for s in clean]
    reference = {}
    for name, chosen in measures.items():
        learner.training.objective = chosen
        lengths = [float(torch.linalg.vector_norm(learner.training.gradient(f)[0])) for f in frames]
        reference[name] = float(np.median(lengths))
    tell(f"centaur study: planner {seed} is ready")
    return Subject(learner, measures, splits, reference, {})


def _temperature(learner: Centaur, clean: list[Scene]) -> float:
    """Under which the oracle's plans of clean scenes are likeliest."""
    _, expert = judge(clean, learner.planner.trajectories.double().numpy())
    with torch.no_grad():
        scores = learner.planner(torch.from_numpy(np.stack([s.observations[-1] for s in clean])))
    return fit_temperature(scores, torch.from_numpy(expert))


def objectives(spec: StreamSpec, temperature: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """What falls, by name; shuffled has the sizes of cluster6, the better of the two rules."""
    assert spec.worth is not None
    headings, six = (torch.from_numpy(manoeuvres(spec.worth.vocabulary, far=f)) for f in (None, FAR))
    lot = torch.randperm(len(six), generator=torch.Generator().manual_seed(0))
    return {
        "cluster": ClusterEntropy(headings),
        "cluster6": ClusterEntropy(six),
        "full": lambda z: full_entropy(z).mean(),
        "shuffled": ClusterEntropy(six[lot]),
        "cluster6, w=0.3": ClusterEntropy(six, within=0.3),
        "cluster6, T fitted": ClusterEntropy(six, temperature=temperature),
        "full, T fitted": lambda z: full_entropy(z, temperature).mean(),
    }


def _split(
    learner: Centaur, found: list[Scene], measures: Mapping[str, Callable[[Tensor], Tensor]], spec: StreamSpec
) -> Split:
    assert spec.worth is not None
    worth, _ = judge(found, spec.worth.vocabulary)
    frames = [[learner.planner.features(torch.from_numpy(row[None])) for row in s.observations] for s in found]
    with torch.no_grad():
        scores = torch.cat([learner._scores(learner.training.start, f[-1]) for f in frames])
        safety = torch.cat([learner._safety(f[-1]) for f in frames])
        doubt = {k: np.array([float(m(z[None])) for z in scores]) for k, m in measures.items()}
        learner.doubtful = -math.inf
        rows = [torch.from_numpy(s.observations[-1:]) for s in found]
        braking = [int(learner._braked(x, z[None]).argmax()) for x, z in zip(rows, scores)]
    return Split(frames, worth, scores.argmax(1).numpy(), safety, doubt, np.array(braking))


def _gradients(learner: Centaur, split: Split, chosen: Callable[[Tensor], Tensor]) -> Tensor:
    learner.training.objective = chosen
    found = []
    for frames in split.frames:
        four = tuple(torch.cat(part) for part in zip(*frames[:-1]))
        found.append(learner.training.gradient(four)[0])
    return torch.stack(found)


# --- what a step leads to -------------------------------------------------------------------------------------------


def _outcome(subjects: list[Subject], split: str, method: str, delta: float) -> list[Array]:
    """int64[n] of every planner: the plans after a step of this length."""
    return [_plans(subject, split, method, delta) for subject in subjects]


def _source(method: str) -> str:
    """Whose gradient a method goes by."""
    return "cluster" if method in ("ascent", "random") else method.removesuffix(", guard")


def _plans(subject: Subject, split: str, method: str, delta: float) -> Array:
    learner, at = subject.learner, subject.splits[split]
    source = _source(method)
    training, found = learner.training, []
    training.delta, training.reference = delta, subject.reference[source]
    draw = torch.Generator().manual_seed(learner.seed)
    for i, gradient in enumerate(subject.gradients_of(source, split)):
        g = gradient
        if method == "ascent":
            g = -g
        elif method == "random":
            drawn = torch.randn(g.shape, generator=draw)
            g = drawn * (torch.linalg.vector_norm(g) / torch.linalg.vector_norm(drawn))
        with torch.no_grad():
            plan = int(learner._scores(training.moved_by(training.descent(g)), at.frames[i][-1]).argmax())
        old = int(at.plans[i])
        if "guard" in method and bool((at.safety[i, plan] < at.safety[i, old] - 0.1).any()):
            plan = old
        found.append(plan)
    return np.array(found)


def _worth(at: Split, plans: Array) -> Array:
    """float64[n, 6], PDMS first."""
    got: Array = np.roll(at.worth[np.arange(len(plans)), plans].astype(np.float64), 1, -1)
    return got


def _all(subjects: list[Subject], split: str, plans: list[Array] | None = None) -> Array:
    """float64[planners x n, 6]; without plans those of the trained weights."""
    chosen = [s.splits[split].plans for s in subjects] if plans is None else plans
    return np.concatenate([_worth(s.splits[split], p) for s, p in zip(subjects, chosen, strict=True)])


def _mean(subjects: list[Subject], split: str, plans: list[Array]) -> float:
    return float(_all(subjects, split, plans)[:, 0].mean())


def _changed(subjects: list[Subject], split: str, plans: list[Array]) -> float:
    old = np.concatenate([s.splits[split].plans for s in subjects])
    return float((np.concatenate(plans) != old).mean())


def _at_share(shares: list[float], wanted: float) -> float:
    """The delta at which so many plans change, between points of the grid by the logarithm; at its ends, the end."""
    rising = np.maximum.accumulate(shares)
    return float(np.exp(np.interp(wanted, rising, np.log(GRID))))


# --- rows -----------------------------------------------------------------------------------------------------------


def _row(case: str, unit: str, ours: float, peer: float, **more: Any) -> Row:
    return {
        "bench": "centaur-study", "case": case, "unit": unit, "ours": round(ours, 3), "peer": round(peer, 3),
        "peer_name": "no adaptation", "ratio": round(ours / max(peer, 1e-9), 4), "floor": None, **more,
    }  # fmt: skip


def _baseline(subjects: list[Subject]) -> list[Row]:
    rows = []
    for split in ("validation", "test"):
        means = 100 * _all(subjects, split).mean(0)
        rows += [_row(f"{split}, none, {n}", "points", v, v) for n, v in zip(SUB, means.tolist(), strict=True)]
    return rows


def _grid_row(subjects: list[Subject], method: str, delta: float, plans: list[Array]) -> Row:
    share = 100 * _changed(subjects, "validation", plans)
    new, old = (100 * _all(subjects, "validation", p)[:, 0].mean() for p in (plans, None))
    return _row(f"validation, {method}, delta {delta:g}, pdms", "points", new, old, changed=round(share, 2))


def _report(subjects: list[Subject], case: str, plans: list[Array]) -> list[Row]:
    """Every score on test scenes with its interval, the differences of each planner, and what changed."""
    new, old = (_all(subjects, "test", p) for p in (plans, None))
    low, high = paired_interval(new - old)
    rows = []
    for k, name in enumerate(SUB):
        each = (new - old)[:, k].reshape(len(subjects), -1).mean(1)
        rows.append(
            _row(
                f"test, {case}, {name}", "points", 100 * float(new[:, k].mean()), 100 * float(old[:, k].mean()),
                difference=round(100 * float((new - old)[:, k].mean()), 3),
                interval=[round(100 * float(low[k]), 3), round(100 * float(high[k]), 3)],
                each_planner=[round(100 * v, 2) for v in each.tolist()],
            )
        )  # fmt: skip
    gain = new[:, 0] - old[:, 0]
    shares = (_changed(subjects, "test", plans), (gain > SWING).mean(), (gain < -SWING).mean())
    rows[0] |= {name: round(100 * float(v), 2) for name, v in zip(("changed", "helped", "harmed"), shares, strict=True)}
    return rows


def _beside(subjects: list[Subject], kept: Mapping[str, list[Array]]) -> list[Row]:
    """Methods beside one another, scene by scene, their deltas chosen in the same way."""
    rows = []
    for ours, peer in PAIRS:
        for name in ("tuned", *(f"at {100 * share:g} %" for share in SHARES)):
            if f"{ours}, {name}" in kept and f"{peer}, {name}" in kept:
                new, old = (_all(subjects, "test", kept[f"{m}, {name}"])[:, 0] for m in (ours, peer))
                low, high = (float(v) for v in paired_interval(new - old))
                row = _row(f"test, {ours} beside {peer}, {name}", "points", 100 * new.mean(), 100 * old.mean())
                row |= {"peer_name": peer, "difference": round(100 * float((new - old).mean()), 3)}
                rows.append(row | {"interval": [round(100 * low, 3), round(100 * high, 3)]})
    return rows


def _fallback(subjects: list[Subject]) -> list[Row]:
    """Brake where the cluster entropy is above a level, the best quantile of the validation scenes'."""

    def plans(split: str, level: float) -> list[Array]:
        at = [s.splits[split] for s in subjects]
        return [np.where(a.doubt["cluster"] > level, a.braking, a.plans) for a in at]

    doubt = np.concatenate([s.splits["validation"].doubt["cluster"] for s in subjects])
    levels = {q: float(np.quantile(doubt, q)) for q in QUANTILES}
    means = {q: _mean(subjects, "validation", plans("validation", level)) for q, level in levels.items()}
    old = 100 * float(_all(subjects, "validation")[:, 0].mean())
    rows = [_row(f"validation, fallback, quantile {q:g}, pdms", "points", 100 * m, old) for q, m in means.items()]
    best = max(means, key=lambda q: means[q])
    rows += _report(subjects, f"fallback, tuned, quantile {best:g}", plans("test", levels[best]))
    return rows + _report(subjects, "fallback, always braking", plans("test", -math.inf))


def _failures(subjects: list[Subject]) -> list[Row]:
    """Does doubt tell of failures (PDMS below 0.5) of the trained weights?"""
    failed = _all(subjects, "test")[:, 0] < 0.5
    rows = []
    for name in ("cluster", "cluster6", "full"):
        doubt = np.concatenate([s.splits["test"].doubt[name] for s in subjects])
        rows.append(_row(f"test, AUROC of {name} entropy for PDMS < 0.5", "area", area(failed, doubt), 0.5))
    return rows


def area(failed: Array, doubt: Array) -> float:
    """Of the ROC curve: how likely a failure has more doubt than a success, ties half.

    >>> area(np.array([True, True, False, False]), np.array([0.9, 0.4, 0.4, 0.1]))
    0.875
    """
    apart = doubt[failed][:, None] - doubt[~failed]
    return float((0.5 * (np.sign(apart) + 1)).mean())


def _costs(subject: Subject) -> list[Row]:
    training, frames = subject.learner.training, subject.splits["test"].frames
    training.objective = subject.learner.measure
    spent: dict[str, list[float]] = {"gradient": [], "answer": []}
    for some in frames[:100]:
        started = perf_counter()
        training.gradient(some[0])
        middle = perf_counter()
        with torch.no_grad():
            subject.learner._scores(training.start, some[-1])
        spent["gradient"].append(middle - started)
        spent["answer"].append(perf_counter() - middle)
    gradient, answer = (1e3 * float(np.median(v)) for v in spent.values())
    return [_row("gradient of one frame beside an answer from known features", "ms", gradient, answer)]
