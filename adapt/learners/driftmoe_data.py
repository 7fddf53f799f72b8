"""MoE-Data: a router that learns which expert to trust for which row, and which trees to train on it.

The order for every row (x, y), as in the paper and in the corrected code:

    z = router(x);  P_i = expert_i(x) for every expert           predict, before y is known
    answer = argmax_k sum_i a_i^gamma sigma(z_i)^kappa P_i[k]    (published: the top-1 expert of the router)
    m_i = [argmax_k P_i[k] = y];  if no m_i: the expert with the largest P_i[y] gets it
    router: BCE of z against m, one Adam step per full mini-batch
    train the top-K specialists of z, every generalist and every linear expert on (x, y)

From the paper: experts, router, mask, top-K training. From us, where not ``faithful``: generalists, linear experts,
Poisson weights, guards, standardised router input, and the rule of answering (gamma, kappa, rho) chosen on line.

Where labels are late, z, P and what each rule answered are those of the time of prediction; the row is encoded, and the
router's gradient taken, as things stand when the label comes.

Legend: d columns, D encoded inputs, E experts (T trees, then M linear models), C classes, R rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...models.compiled import compiled, inner
from ...models.encoding import Encoder, bound, encode, observe_scale
from ...models.guarded import Guards, learn_guarded, poisson, watch
from ...models.hoeffding import Forest, Rules, predict_tree, top
from ...models.linear import softmax_scores, softmax_step
from ...models.router import Router, collect, route, sigmoid
from ...models.splitting import has_room, sum_of

if TYPE_CHECKING:
    from ...models.held import Held

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

RULE_MEMORY = 0.998
USAGE_MEMORY = 0.999
LEAST_RECENCY = 1e-4
LEAST_TRUST = 1e-30
NO_DROPOUT = np.empty(0, np.float32)


class Plan(NamedTuple):
    """What does not change during a run. The first ``generalists`` trees learn every row, the others are specialists.

    top_one: answer with the router's first choice. exponents: float64[R, 3], rows (gamma, kappa, rho).
    poisson: mean of the training weight (0: always 1). guarded: replace trees whose error rises. floor: smallest
    variance in a leaf, as a share of the feature's. contrast: rows that every expert gets right do not train the
    router. balance: weigh the router's targets by inverse class frequency. noise: feed the router noise (a control).
    """

    rules: Rules
    generalists: int
    top_k: int
    top_one: bool
    exponents: Floats
    poisson: float
    guarded: bool
    warning: float
    drift: float
    floor: float
    router_rate: float
    passes: int
    linear_rates: Floats
    contrast: bool
    balance: bool
    noise: bool


class Pool(NamedTuple):
    """All that is learnt."""

    forest: Forest
    guards: Guards
    encoder: Encoder
    router: Router
    linear: Floats  # [M, C, D + 1]
    recency: Floats  # [R, E] decayed accuracy of each expert under a rule's rho
    standing: Floats  # [R] decayed accuracy of each rule
    labels: Floats  # [C] labels seen
    usage: Floats  # [E] decayed share in the answers
    trained: Ints  # [E] rows each expert was trained on


class Desk(NamedTuple):
    """Working space for one row."""

    encoded: Floats  # [D]
    inputs: Singles  # [D]
    hidden1: Singles  # [H]
    hidden2: Singles  # [H2]
    votes: Floats  # [R, C]
    scratch: Floats  # [C]
    mask: Singles  # [E]
    weight: Singles  # [E]


def new_desk(pool: Pool) -> Desk:
    """Working space of the right sizes."""
    d, h, h2, e = (int(n) for n in pool.router.size)
    n_classes = pool.labels.shape[0]
    return Desk(
        np.zeros(d),
        np.zeros(d, np.float32),
        np.zeros(h, np.float32),
        np.zeros(h2, np.float32),
        np.zeros((len(pool.standing), n_classes)),
        np.zeros(n_classes),
        np.zeros(e, np.float32),
        np.ones(e, np.float32),
    )


def new_notes(pool: Pool, n: int) -> tuple[Singles, Floats, Ints]:
    """Room for z[n, E], p[n, E, C] and said[n, R]: what ``learn_row`` wants back of n rows."""
    experts, rules = len(pool.usage), len(pool.standing)
    return (
        np.empty((n, experts), np.float32),
        np.empty((n, experts, len(pool.labels))),
        np.zeros((n, rules), np.int64),
    )


@inner
def predict_row(plan: Plan, pool: Pool, desk: Desk, x: Floats, z: Singles, p: Floats, said: Ints, out: Floats) -> int:
    """Answer for x[d]; changes no state.

    Fills the logits z[E], the experts' opinions p[E, C], the answer said[R] of every rule and the scores out[C].
    """
    trees, n_classes = pool.guards.replaced.shape[0], out.shape[0]
    ask_trees(pool.forest, plan.rules, trees, x, p)
    encode_inputs(plan, pool, desk, x)
    for m in range(plan.linear_rates.shape[0]):
        softmax_scores(pool.linear[m], desk.encoded, n_classes, p[trees + m])
    route(pool.router, NO_DROPOUT, desk.inputs, desk.hidden1, desk.hidden2, z)
    if not plan.top_one:
        vote(plan.exponents, pool.recency, desk.votes, z, p)
        for r in range(said.shape[0]):
            said[r] = top(desk.votes[r])
    if sum_of(pool.labels) == 0:
        out[:] = 1.0 / n_classes
        return 0
    if plan.top_one:
        chosen = first_choice(z)
        out[:] = p[chosen]
        if chosen < trees and pool.forest.root[chosen] < 0:
            return top(pool.labels)
        return top(out)
    rule = top(pool.standing)
    out[:] = desk.votes[rule] / sum_of(desk.votes[rule])
    return top(out)


@inner
def ask_trees(forest: Forest, rules: Rules, trees: int, x: Floats, p: Floats) -> None:
    """The opinion of every tree on x[d] into p[i, C]; an unborn tree has none for any class."""
    for i in range(trees):
        if not predict_tree(forest, rules, i, x, p[i]):
            p[i] = 1.0 / p.shape[1]


@inner
def train_trees(
    plan: Plan, forest: Forest, guards: Guards, trained: Ints, x: Floats, y: int, z: Singles, p: Floats, scratch: Floats
) -> None:
    """Train every generalist, and the top-K specialists of z[E], on (x, y)."""
    trees = guards.replaced.shape[0]
    for i in range(trees):
        if i < plan.generalists or rank(z, plan.generalists, trees, i) < plan.top_k:
            if plan.guarded:
                watch(forest, guards, i, 0.0 if top(p[i]) == y else 1.0, plan.warning, plan.drift)
            weight = poisson(forest, i, plan.poisson)
            learn_guarded(forest, plan.rules, guards, i, x, y, weight, scratch)
            trained[i] += 1


@inner
def encode_inputs(plan: Plan, pool: Pool, desk: Desk, x: Floats) -> None:
    """The row as the linear experts (desk.encoded) and the router (desk.inputs) see it."""
    encode(pool.encoder, x, desk.encoded)
    if plan.noise:
        state = np.uint64(sum_of(pool.labels)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
        for j in range(desk.inputs.shape[0]):
            state ^= state << np.uint64(13)
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            desk.inputs[j] = np.float32(np.float64(state >> np.uint64(11)) * 2.0**-52 - 1.0) * np.float32(1.7)
    else:
        for j in range(desk.inputs.shape[0]):
            desk.inputs[j] = np.float32(desk.encoded[j])


@inner
def first_choice(z: Singles) -> int:
    """The expert of the largest logit, the lowest on ties."""
    best = 0
    for i in range(1, z.shape[0]):
        if z[i] > z[best]:
            best = i
    return best


@inner
def power(base: float, exponent: float) -> float:
    """base ** exponent for the exponents 0, 2, 4, 8 of the rules without a call of pow."""
    square = base * base
    if exponent == 0:
        return 1.0
    if exponent == 2:
        return square
    if exponent == 4:
        return square * square
    if exponent == 8:
        return square * square * square * square
    return base**exponent


@inner
def trust_in(logit: float) -> float:
    """sigma(z), never quite 0, so that votes never are all 0."""
    return max(float(sigmoid(logit)), LEAST_TRUST)


@inner
def vote(exponents: Floats, recency: Floats, votes: Floats, z: Singles, p: Floats) -> None:
    """votes[r, k] = sum_i a_i^gamma sigma(z_i)^kappa P_i[k] for every rule r."""
    votes[:] = 0.0
    for i in range(p.shape[0]):
        trust = trust_in(z[i])
        for r in range(exponents.shape[0]):
            share = power(recency[r, i], exponents[r, 0]) * power(trust, exponents[r, 1])
            for k in range(p.shape[1]):
                votes[r, k] += share * p[i, k]


@inner
def learn_row(
    plan: Plan, pool: Pool, desk: Desk, x: Floats, y: int, z: Singles, p: Floats, said: Ints, at_hand: bool
) -> None:
    """Learn (x[d], y) with the logits z[E], opinions p[E, C] and answers said[R] of the moment of prediction.

    at_hand: nothing was learnt since, so the desk still holds the encoded row.
    """
    trees = pool.guards.replaced.shape[0]
    if not at_hand:
        encode_inputs(plan, pool, desk, x)
    judge(plan, pool, y, z, p, said)
    right = target_mask(desk, y, z, p)
    pool.labels[y] += 1.0
    if not (plan.contrast and right == p.shape[0]):
        desk.weight[:] = class_weight(pool.labels, y) if plan.balance else 1.0
        collect(pool.router, NO_DROPOUT, desk.inputs, desk.mask, desk.weight, plan.router_rate, plan.passes)
    train_trees(plan, pool.forest, pool.guards, pool.trained, x, y, z, p, desk.scratch)
    for m in range(plan.linear_rates.shape[0]):
        softmax_scores(pool.linear[m], desk.encoded, desk.scratch.shape[0], desk.scratch)
        softmax_step(pool.linear[m], desk.encoded, y, desk.scratch, desk.scratch.shape[0], plan.linear_rates[m], 0.0)
        pool.trained[trees + m] += 1
    observe_scale(pool.encoder, x)
    if plan.floor > 0:
        for f in range(x.shape[0]):
            if pool.encoder.seen[f] > 0:
                pool.forest.floor[f] = plan.floor * pool.encoder.squares[f] / pool.encoder.seen[f]


@inner
def judge(plan: Plan, pool: Pool, y: int, z: Singles, p: Floats, said: Ints) -> None:
    """Settle how right each rule was (said[R]) and, under each rule's memory, each expert; and who had a say.

    Rules are held to their answers of the moment of prediction: when labels are late, they would answer better now.
    """
    if plan.top_one:
        chosen = first_choice(z)
        for i in range(p.shape[0]):
            pool.usage[i] += (1.0 - USAGE_MEMORY) * ((1.0 if i == chosen else 0.0) - pool.usage[i])
        return
    rule = top(pool.standing)
    total = 0.0
    for i in range(p.shape[0]):
        total += say(plan.exponents, pool.recency, rule, i, z)
    for i in range(p.shape[0]):
        pool.usage[i] += (1.0 - USAGE_MEMORY) * (say(plan.exponents, pool.recency, rule, i, z) / total - pool.usage[i])
    for r in range(plan.exponents.shape[0]):
        hit = 1.0 if said[r] == y else 0.0
        pool.standing[r] += (1.0 - RULE_MEMORY) * (hit - pool.standing[r])
        memory = plan.exponents[r, 2]
        for i in range(p.shape[0]):
            hit = 1.0 if top(p[i]) == y else 0.0
            recency = pool.recency[r, i] + (1.0 - memory) * (hit - pool.recency[r, i])
            pool.recency[r, i] = max(recency, LEAST_RECENCY)


@inner
def say(exponents: Floats, recency: Floats, rule: int, i: int, z: Singles) -> float:
    """Weight of expert i under a rule."""
    return power(recency[rule, i], exponents[rule, 0]) * power(trust_in(z[i]), exponents[rule, 1])


@compiled
def target_mask(desk: Desk, y: int, z: Singles, p: Floats) -> int:
    """desk.mask[i] = 1 where expert i was right; returns how many were.

    Where none was, the one that gave y the most gets the 1 (the lowest on ties); for a class no expert knows, the
    router's first choice.
    """
    right = 0
    desk.mask[:] = 0
    for i in range(p.shape[0]):
        if top(p[i]) == y:
            desk.mask[i] = 1
            right += 1
    if right == 0:
        best = 0
        for i in range(1, p.shape[0]):
            if p[i, y] > p[best, y]:
                best = i
        desk.mask[best if p[best, y] > 0 else first_choice(z)] = 1
    return right


@inner
def class_weight(labels: Floats, y: int) -> float:
    """Inverse frequency of class y, 1 for a class of average size, within [0.2, 5]."""
    known = 0
    for count in labels:
        known += count > 0
    return min(max(sum_of(labels) / (known * labels[y]), 0.2), 5.0)


@inner
def rank(z: Singles, first: int, last: int, i: int) -> int:
    """How many of z[first:last] come before i, largest first, the lower index on ties."""
    before = 0
    for j in range(first, last):
        before += z[j] > z[i] or (z[j] == z[i] and j < i)
    return before


@compiled
def pass_rows(
    model: Held,
    x: Floats,
    y: Ints,
    z: Singles,
    p: Floats,
    said: Ints,
    answers: Ints,
    out: Floats,
    start: int,
    stop: int,
    test: bool,
    train: bool,
    room: int,
) -> int:
    """Test, train, or both, row after row, in [start, stop) of x[B, d].

    z[B, E], p[B, E, C], said[B, R]: what ``learn_row`` wants back; out[B, C]: scores.

    Stops before a row to be trained on when there is no room for ``room`` leaves; returns where it stopped. (One
    entry for all three uses: everything below it is compiled once.) model: a handle on (plan, pool, desk).
    """
    plan, pool, desk = model.value
    row = np.empty(x.shape[1])
    for b in range(start, stop):
        if train and not has_room(pool.forest, room):
            return b
        bound(x[b], row)
        if test:
            answers[b] = predict_row(plan, pool, desk, row, z[b], p[b], said[b], out[b])
        if train:
            learn_row(plan, pool, desk, row, y[b], z[b], p[b], said[b], test)
    return stop
