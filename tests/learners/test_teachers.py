"""CoTTA, RoTTA and EATA's penalty equal plain loops written from the methods' equations; the parts they are made of."""

from __future__ import annotations

import copy
import math
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners import learner_params, read_params
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_memory import BalancedMemory
from driftway.adapt.learners.test_time_parts import (
    Anchor,
    Descent,
    Entropy,
    Grouped,
    Novel,
    Parts,
    Recovery,
    Remembering,
    SoftCrossEntropy,
    Teaching,
)
from driftway.adapt.learners.test_time_recipes import EATA, CoTTA, Mixture, RoTTA, Tent
from driftway.adapt.learners.test_time_teacher import RESTORE, STRONG, VIEWS, generator
from driftway.adapt.source_model import Training, source_model
from driftway.adapt.state import copy_state, digest
from driftway.models.inputs import Pixels
from driftway.models.networks import Network
from driftway.streams import concatenate
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, RATE = 10, 0.01


@pytest.fixture(scope="module")
def stream() -> Any:
    return dw.stream("digits-c", rows=64, kinds=("contrast", "gaussian_noise", "fog"), severity=4)


@pytest.fixture(scope="module")
def rows(stream: Any) -> dw.Batch:
    return concatenate([e for e in stream if isinstance(e, dw.Batch)])


@pytest.fixture(scope="module")
def net(stream: Any) -> Network:
    inputs = Pixels(stream.spec.shape, stream.spec.notes["mean"], stream.spec.notes["std"])
    return source_model(stream.spec, inputs, Training("convnet:8-16", epochs=12), keep=False, progress=lambda _: None)


def cut(rows: dw.Batch, *sizes: int) -> list[dw.Batch]:
    ends = np.cumsum(sizes)
    assert ends[-1] <= len(rows)
    return [rows.rows(slice(int(end) - size, int(end))) for size, end in zip(sizes, ends, strict=True)]


def learner(stream: Any, net: Network, recipe: Any, **options: Any) -> TestTimeLearner:
    return TestTimeLearner(stream.spec, recipe, model=copy.deepcopy(net), **options)


def plainly(net: Network) -> Network:
    """Batch norms in training mode without running statistics, as the published codes have it."""
    twin = copy.deepcopy(net).train()
    for m in twin.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
    return twin


def same_weights(mine: dict[str, Tensor], plain: nn.Module) -> None:
    theirs = dict(plain.named_parameters())
    for name, weight in mine.items():
        torch.testing.assert_close(weight.detach(), theirs[name].detach(), rtol=0, atol=1e-6)


# --- CoTTA ------------------------------------------------------------------------------------------------------


def test_cotta_equals_a_plain_loop(stream: Any, net: Network, rows: dw.Batch) -> None:
    views, restore = 5, 0.1
    batches = cut(rows, 32, 32, 32, 20, 32)
    confident = []
    anchor = plainly(net)
    inputs = learner(stream, net, Tent())
    for batch in batches:
        with torch.no_grad():
            confident.append(float(anchor(inputs._tensor(batch)).softmax(1).amax(1).mean()))
    sure = float(np.median(confident))
    one = learner(stream, net, CoTTA(views=views, restore=restore, sure=sure))
    student, teacher = plainly(net), plainly(net)
    source = {n: w.detach().clone() for n, w in student.named_parameters()}
    adam = torch.optim.Adam(student.parameters(), 1e-3)
    for k, batch in enumerate(batches):
        answer = one.predict(batch)
        one.adapt(batch, answer)
        x = one._tensor(batch)
        with torch.no_grad():
            told = teacher(x)
            if confident[k] < sure:
                seen = one.augment(x, views, generator(0, VIEWS, k))
                told = torch.stack([teacher(view) for view in seen]).mean(0)
        np.testing.assert_allclose(answer.scores, told.double().softmax(1).numpy(), atol=1e-6)  # type: ignore[arg-type]
        loss = -(told.softmax(1) * student(x).log_softmax(1)).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.copy_(0.999 * slow + 0.001 * fast)
            draw = generator(0, RESTORE, k + 1)
            for name, weight in student.named_parameters():
                mask = (torch.rand(weight.shape, generator=draw) < restore).float()
                weight.copy_(source[name] * mask + weight * (1 - mask))
        same_weights(one.moving, student)
        assert one.teacher is not None
        same_weights(one.teacher.weights, teacher)
    assert 0 < sum(c < sure for c in confident) < len(confident)
    assert set(one.moving) == {n for n, _ in net.named_parameters()}
    assert any(bool((w != source[n]).any()) for n, w in one.moving.items())


def test_restoring_takes_about_that_many_numbers_back(stream: Any, net: Network, rows: dw.Batch) -> None:
    one = learner(stream, net, CoTTA(views=0, restore=0.3))
    (batch,) = cut(rows, 64)
    one.adapt(batch, one.predict(batch))
    # numbers without a slope do not move under Adam: only those that could have moved are counted
    could = {n: (one.optimiser.slots[n]["m"] != 0) for n in one.moving}  # type: ignore[union-attr]
    back = sum(int((could[n] & (w == one.source[n])).sum()) for n, w in one.moving.items())
    assert 0.25 < back / sum(int(c.sum()) for c in could.values()) < 0.35


def test_views_do_not_know_of_each_other(stream: Any, net: Network, rows: dw.Batch) -> None:
    """Many views go through the network at once where batches are small; each keeps statistics of its own."""
    one = learner(stream, net, CoTTA(views=32, sure=1.0))
    teacher = one.teacher
    assert teacher is not None
    for size in (1, 5, 17, 64):
        (batch,) = cut(rows, size)
        x = one._tensor(batch)
        views = one.augment(x, 32, generator(0, VIEWS, 0))
        with torch.inference_mode():
            alone = torch.stack([one.net(view) for view in views]).mean(0)
        torch.testing.assert_close(teacher.logits(x, generator(0, VIEWS, 0)), alone, rtol=0, atol=2e-6)


# --- RoTTA ------------------------------------------------------------------------------------------------------


class RobustNorm(nn.Module):
    """Batch norm by statistics that every training pass moves before it uses them."""

    def __init__(self, norm: nn.BatchNorm2d, momentum: float) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.weight, self.bias, self.momentum = norm.weight, norm.bias, momentum
        self.mean, self.var = norm.running_mean.clone(), norm.running_var.clone()

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean = (1 - self.momentum) * mean + self.momentum * x.mean((0, 2, 3))
            var = (1 - self.momentum) * var + self.momentum * x.var((0, 2, 3), correction=0)
            self.mean, self.var = mean.detach(), var.detach()
        mean, var, weight, bias = (t[None, :, None, None] for t in (mean, var, self.weight, self.bias))
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def robust(net: Network) -> Network:
    twin = copy.deepcopy(net).requires_grad_(False).eval()
    body: Any = twin.body
    for i, m in enumerate(body):
        if isinstance(m, nn.BatchNorm2d):
            body[i] = RobustNorm(m, 0.05).requires_grad_(True).eval()
    return twin


class PlainMemory:
    """A list of rows in the order in which they came, as the method's description goes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.items: list[list[Any]] = []  # [class, row, doubt, age]

    def score(self, doubt: float, age: int) -> float:
        return 1 / (1 + math.exp(-age / self.capacity)) + doubt / math.log(CLASSES)

    def add(self, row: Tensor, kind: int, doubt: float) -> None:
        sizes = [sum(item[0] == c for item in self.items) for c in range(CLASSES)]
        below = sizes[kind] < self.capacity / CLASSES
        enters = True
        if not below or len(self.items) == self.capacity:
            among = [c for c in range(CLASSES) if sizes[c] == max(sizes)] if below else [kind]
            worst = max((item for item in self.items if item[0] in among), key=lambda i: self.score(i[2], i[3]))
            enters = self.score(worst[2], worst[3]) > self.score(doubt, 0)
            if enters:
                self.items = [item for item in self.items if item is not worst]
        if enters:
            self.items.append([kind, row, doubt, 0])
        for item in self.items:
            item[3] += 1


@pytest.mark.parametrize("sizes", [(32, 32, 32, 32, 32), (100, 1, 7, 70), (192,)])
def test_rotta_equals_a_plain_loop(stream: Any, net: Network, rows: dw.Batch, sizes: tuple[int, ...]) -> None:
    capacity, every = 24, 16
    one = learner(stream, net, RoTTA(memory=capacity, every=every, lr=RATE))
    student, teacher, memory = robust(net), robust(net), PlainMemory(capacity)
    params = [p for p in student.parameters() if p.requires_grad]
    adam = torch.optim.Adam(params, RATE)
    came, steps = 0, 0
    for batch in cut(rows, *sizes):
        answer = one.predict(batch)
        one.adapt(batch, answer)
        x = one._tensor(batch)
        with torch.no_grad():
            p = teacher(x).softmax(1)
        np.testing.assert_allclose(answer.scores, p.numpy(), atol=1e-5)  # type: ignore[arg-type]
        doubts = -(p * p.log()).sum(1)
        for row, kind, doubt in zip(x, p.argmax(1).tolist(), doubts.tolist(), strict=True):
            memory.add(row, kind, doubt)
            came += 1
            if came % every:
                continue
            held = torch.stack([item[1] for item in memory.items])
            ages = torch.tensor([item[3] / capacity for item in memory.items])
            with torch.no_grad():
                soft = teacher.train()(held).softmax(1)
            strong = one.augment(held, 1, generator(0, STRONG, steps))[0]
            weight = torch.exp(-ages) / (1 + torch.exp(-ages))
            each = -(soft * student.train()(strong).log_softmax(1)).sum(1)
            adam.zero_grad()
            (weight * each).mean().backward()
            adam.step()
            steps += 1
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.copy_(0.999 * slow + 0.001 * fast)
            student.eval()
            teacher.eval()
    assert one.telemetry()["steps"] == steps == sum(sizes) // every
    same_weights(one.moving, student)
    assert one.teacher is not None
    same_weights(one.teacher.weights, teacher)
    for mine, plain in ((one.followed, student), (one.teacher.statistics, teacher)):
        for i in (1, 5):
            norm = plain.body[i]  # type: ignore[index]
            torch.testing.assert_close(mine[f"body.{i}.followed_mean"], norm.mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mine[f"body.{i}.followed_var"], norm.var, rtol=1e-5, atol=1e-6)
    kept = {n: b for n, b in net.named_buffers() if "running" in n}
    now = dict(one.net.named_buffers())
    assert all(torch.equal(now[n], b) for n, b in kept.items()), "the source's own statistics stay"


def test_the_memory_by_hand() -> None:
    """Three rows, two classes: a quota of 1.5, so that a class stops growing at two."""
    memory = BalancedMemory(3, 2)

    def offer(value: float, kind: int, doubt: float) -> list[float]:
        memory.offer(torch.tensor([value]), kind, doubt)
        return [] if not len(memory) else memory.rows()[:, 0].tolist()

    assert offer(1, 0, 0.1) == [1]
    assert offer(2, 0, 0.6) == [1, 2]
    assert memory.age.tolist() == [2, 1]
    # class 0 is full: 1 scores 1/(1+e^(-2/3)) + .1/ln 2 = .805, 2 scores .583 + .866 = 1.448, the new one .5 + .577
    assert offer(3, 0, 0.4) == [1, 3]
    # .731 + .144 = .875 and .583 + .577 = 1.160 against .5 + .693: the new one is dropped, and all grow older
    assert offer(4, 0, 0.69) == [1, 3]
    assert memory.age.tolist() == [4, 2]
    assert offer(5, 1, 0.69) == [1, 3, 5]
    # no room; class 1 is below its quota, so the largest class, 0, gives way: 1 scores .841 + .144, 3 .731 + .577
    assert offer(6, 1, 0.1) == [1, 5, 6]
    assert memory.kind.tolist() == [0, 1, 1]
    assert memory.age.tolist() == [6, 2, 1]
    # class 1 is full: 5 scores .661 + .995, the highest
    assert offer(7, 1, 0.2) == [1, 6, 7]
    weights = memory.weights()
    torch.testing.assert_close(weights, 1 / (1 + torch.exp(torch.tensor([7.0, 2.0, 1.0]) / 3)))


def test_garbage_is_not_remembered() -> None:
    memory = BalancedMemory(8, 2)
    x, z = torch.zeros(4, 3), torch.zeros(4, 2)
    x[1, 0], x[2, 1], z[3, 0] = 1e6, math.nan, math.nan
    given = list(memory.take(x, z, 4))
    assert len(given) == 1
    assert given[0][0].tolist() == [[0.0] * 3]


# --- EATA -------------------------------------------------------------------------------------------------------


def test_eata_with_its_penalty_equals_a_plain_loop(stream: Any, net: Network, rows: dw.Batch) -> None:
    beta = 300.0
    one = learner(stream, net, EATA(lr=RATE, like=2.0, beta=beta))
    free = learner(stream, net, EATA(lr=RATE, like=2.0, beta=0))
    plain = plainly(net).requires_grad_(False)
    params = {f"body.{i}.{k}": getattr(plain.body[i], k) for i in (1, 5) for k in ("weight", "bias")}  # type: ignore[index]
    for p in params.values():
        p.requires_grad_(True)
    start = {n: p.detach().clone() for n, p in params.items()}
    clean = one.inputs.tensor(stream.spec.source.train()[0])
    parts = clean.split(64)
    fisher = {n: torch.zeros_like(p) for n, p in params.items()}
    for x in parts:
        z = plain(x)
        found = torch.autograd.grad(F.cross_entropy(z, z.argmax(1)), list(params.values()))
        for (n, f), g in zip(fisher.items(), found, strict=True):
            fisher[n] = f + g.square() / len(parts)
    assert one.hold is not None
    for n, f in fisher.items():
        torch.testing.assert_close(one.hold.fisher[n], f, rtol=1e-4, atol=1e-10)
    sgd = torch.optim.SGD(params.values(), RATE, momentum=0.9)
    margin = 0.4 * math.log(CLASSES)
    for batch in cut(rows, 32, 32, 32, 32):
        for each in (one, free):
            each.adapt(batch, each.predict(batch))
        p = plain(one._tensor(batch)).softmax(1)
        e = -(p * p.log()).sum(1)
        e = e[e < margin]
        loss = (torch.exp(margin - e.detach()) * e).mean()
        loss = loss + beta * sum((fisher[n] * (w - start[n]).square()).sum() for n, w in params.items())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        same_weights(one.moving, plain)
    away = [sum(float((w.detach() - o.source[n]).norm()) for n, w in o.moving.items()) for o in (one, free)]
    assert away[0] < away[1]


def test_the_penalty_needs_clean_rows(stream: Any, net: Network) -> None:
    bare = dw.StreamSpec(
        "bare", stream.spec.columns, classes=stream.spec.classes, shape=(1, 8, 8), notes=stream.spec.notes
    )
    with pytest.raises(dw.InputError, match=r"^stream bare has no clean rows .* beta must be 0$"):
        TestTimeLearner(bare, EATA(), model=copy.deepcopy(net))
    assert TestTimeLearner(bare, EATA(beta=0), model=copy.deepcopy(net)).hold is None


# --- parts in mixtures ------------------------------------------------------------------------------------------


def test_groups_keep_their_surest_rows() -> None:
    sure, torn = [4.0, 0, 0, 0], [1.0, 0.5, 0, 0]
    z = torch.tensor([sure, torn, [3.0, 0, 0, 0], [0, 2.5, 0, 0], [0, 2.0, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0.7]])
    keep = Grouped(0.4, base=2)
    mask, mean = keep.choose(z, Entropy().rows(z), None)
    assert mask.tolist() == [True, False, True, False, False, False, True]  # 2 of 5, 1 of 2
    assert mean is None
    alone = z[:1]
    assert not keep.choose(alone, Entropy().rows(alone), None)[0].any()
    assert Grouped(0.4).choose(z, Entropy().rows(z), None)[0].sum() == 3
    spec = dw.stream("digits-gilcd").spec
    assert Mixture(filter="by-group").parts(spec).filter == Grouped(0.4, 6)


def test_a_memory_of_the_last_rows_makes_the_steps_of_its_rows(stream: Any, net: Network, rows: dw.Batch) -> None:
    """With room for all, one step on the memory is one on its rows, each weighing by its age."""
    (batch,) = cut(rows, 20)
    parts = Parts(descent=Descent("sgd", RATE), memory=Remembering(1000, 20))
    one = learner(stream, net, None, parts=parts)
    one.adapt(batch, one.predict(batch))
    plain = plainly(net)
    p = plain(one._tensor(batch)).softmax(1)
    a = torch.arange(20, 0, -1) / 1000
    (torch.exp(-a) / (1 + torch.exp(-a)) * -(p * p.log()).sum(1)).mean().backward()
    for name, weight in one.moving.items():
        found = dict(plain.named_parameters())[name]
        assert found.grad is not None
        torch.testing.assert_close(weight.detach(), found.detach() - RATE * found.grad, rtol=0, atol=1e-6)


def test_running_statistics_in_a_mixture(stream: Any, net: Network, rows: dw.Batch) -> None:
    """Without any step they go where the rows are; a reset and a rollback bring them back."""
    only = learner(stream, net, Mixture(statistics="running", lr=0, follow=0.5))
    source = only.source_scores(rows)
    first = only.predict(rows)
    np.testing.assert_array_equal(first.scores, source)
    kept = copy.deepcopy(only.adapted())
    start = digest(only.state()["adapted"])
    for batch in cut(rows, 64, 64):
        only.adapt(batch, only.predict(batch))
    assert not np.array_equal(only.predict(rows).scores, source)  # type: ignore[arg-type]
    np.testing.assert_array_equal(only.source_scores(rows), source)
    moved = only.version()
    only.restore(kept)
    assert only.version() != moved
    assert digest(only.state()["adapted"]) == start
    np.testing.assert_array_equal(only.predict(rows).scores, source)


def test_resets_and_rollbacks_take_everything_back(stream: Any, net: Network, rows: dw.Batch) -> None:
    for recipe in (CoTTA(views=2, sure=2), RoTTA(memory=16, every=8)):
        one = learner(stream, net, recipe)
        start = digest(one.adapted())
        batches = cut(rows, 32, 32, 32)
        for batch in batches[:2]:
            one.adapt(batch, one.predict(batch))
        kept = copy.deepcopy(one.adapted())
        then = digest(kept)
        assert then != start
        one.adapt(batches[2], one.predict(batches[2]))
        assert digest(one.adapted()) != then
        one.restore(kept)
        assert digest(one.adapted()) == then
        one.parts = Parts(**{**{f: getattr(one.parts, f) for f in one.parts.__slots__}, "recovery": Recovery(1e6)})
        one.adapt(batches[2], one.predict(batches[2]))
        assert one.telemetry()["resets"] >= 1
        assert all(torch.equal(w, one.source[n]) for n, w in one.moving.items())
        assert one.teacher is not None
        assert all(torch.equal(w, one.source[n]) for n, w in one.teacher.weights.items())
        for statistics in (one.followed, one.teacher.statistics):
            now = dict(one.net.named_buffers())
            assert all(torch.equal(t, now[n.replace("followed", "running")]) for n, t in statistics.items())


def test_a_loaded_teacher_asks_the_source_that_was_saved(stream: Any, net: Network, rows: dw.Batch) -> None:
    """Whether views are looked at is the saved source's confidence, not that of the model the learner was built on."""
    batches = cut(rows, 32, 32)
    one = learner(stream, net, CoTTA(views=3, sure=0.5))
    vague = copy.deepcopy(net)
    with torch.no_grad():
        vague.head.weight.zero_()
    other = learner(stream, vague, CoTTA(views=3, sure=0.5))
    assert one.teacher is not None
    assert other.teacher is not None
    x = one._tensor(batches[0])
    assert [t._unsure(x) for t in (one.teacher, other.teacher)] == [False, True]
    one.adapt(batches[0], one.predict(batches[0]))
    other.load(copy_state(one.state()))
    assert not other.teacher._unsure(x)
    np.testing.assert_array_equal(other.predict(batches[1]).scores, one.predict(batches[1]).scores)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"objective": "soft-cross-entropy"}, "soft cross-entropy needs a teacher"),
        ({"views": 8}, "teacher must be above 0"),
        ({"every": 8}, "memory above 0"),
        ({"alpha": 0.4}, "rho must be above 0"),
        ({"refilter": True}, "rho must be above 0"),
        ({"refilter": True, "rho": 0.05}, "refilter needs filter confident or novel"),
        ({"restore": 1.5}, "chance of restoring"),
        ({"teacher": 1.0}, "decay lies in 0..1"),
        ({"beta": -1}, "beta is above 0"),
        ({"share": 2, "filter": "by-group"}, "share of a group"),
        ({"follow": 2}, "follow must lie in 0..1"),
        ({"memory": -1}, "room for at least 1 row"),
        ({"statistics": "moving"}, "statistics"),
        ({"rho": math.nan}, "rho, alpha and clip"),
        ({"rho": 0.05, "alpha": math.nan}, "rho, alpha and clip"),
        ({"clip": math.nan}, "rho, alpha and clip"),
        ({"filter": "confident", "e_frac": -1}, "e_frac must be"),
        ({"filter": "novel", "like": math.nan}, "e_frac and like"),
        ({"recover": -1}, "recover must be"),
        ({"recover": math.nan}, "recover must be"),
        ({"e_frac": math.nan}, "e_frac is not a number"),
        ({"share": math.nan}, "share is not a number"),
    ],
)
def test_mixtures_that_make_no_sense_are_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(dw.InputError) as caught:
        read_params(learner_params("test-time"), settings, "test-time")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mixtures_are_the_recipes_where_they_have_the_same_parts() -> None:
    same = Mixture(
        objective="soft-cross-entropy",
        optimizer="adam",
        momentum=0.9,
        scope="all",
        teacher=0.999,
        views=32,
        restore=0.01,
    )
    assert same.parts() == CoTTA().parts()
    rotta = Mixture(objective="soft-cross-entropy", optimizer="adam", memory=64, teacher=0.999, augment=True)
    assert rotta.parts() == RoTTA().parts()
    assert Mixture(beta=1, objective="weighted-entropy", filter="novel").parts() == EATA().parts()
    assert Mixture(scope="body.0.*, head.*").parts().scope == ("body.0.*", "head.*")
    assert Parts(SoftCrossEntropy(), teacher=Teaching(), anchor=Anchor()).anchor == Anchor(1.0)


def test_a_way_back_forgets_what_rows_were_like(stream: Any, net: Network, rows: dw.Batch) -> None:
    often = Parts(filter=Novel(2.0, 2.0), descent=Descent(lr=RATE), recovery=Recovery(99.0))
    one = learner(stream, net, Tent(), parts=often)
    one.adapt(rows, one.predict(rows))
    assert one.telemetry()["resets"] == 1
    assert one.mean_softmax is None
    assert one.mean_loss is None
