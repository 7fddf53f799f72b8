"""The choice among ways: made on the second batch of a size, kept, repeated, and never of a way that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from driftway.models import fastest_passes
from driftway.models.adaptive_norm import adaptive_norms, affine_names
from driftway.models.fastest_passes import PLAIN, WAYS, FastestPasses, size_of
from driftway.models.networks import build
from driftway.models.passes import Passes
from torch import Tensor, nn


def ready(name: str = "convnet:4-6", shape: tuple[int, ...] = (1, 8, 8), norm: str = "batch") -> nn.Module:
    net = build(name, shape, 3, norm=norm).eval()
    adaptive_norms(net)
    return net.requires_grad_(False)


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class Clock:
    """Stands in for the timing of one pass: fixed seconds by way. ``asked`` counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, passes: list[FastestPasses], seconds: dict[str, float]) -> None:
        self.passes, self.seconds, self.asked = passes, seconds, 0
        monkeypatch.setattr(fastest_passes, "_timed", self)

    def __call__(self, passes: Passes, *_: Tensor) -> float:
        self.asked += 1
        way = next(w for owner in self.passes for w, made in owner._made.items() if made is passes)
        return self.seconds.get(way, 1.0)


def fastest(tmp_path: Path | None, **options: Any) -> FastestPasses:
    net = options.pop("net", None) or ready()
    return FastestPasses(net, affine_names(net), folder=tmp_path, **options)


def test_the_second_batch_of_a_size_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = fastest(tmp_path)
    clock = Clock(monkeypatch, [one], {"fused": 0.1})
    x = rows(4)
    assert one.way(x) == PLAIN
    one.choose(x)
    assert (one.way(x), clock.asked) == (PLAIN, 0)
    assert one.facts() == {"chosen": {}}
    one.choose(x)
    asked = clock.asked
    assert one.way(x) == "fused"
    one.choose(x)
    assert clock.asked == asked > len(WAYS)
    assert one.facts() == {"chosen": {size_of(x): "fused"}}
    assert one.way(rows(5)) == PLAIN
    assert set(one._made) == {PLAIN, "fused"}
    torch.testing.assert_close(one(x).z, one.plain(x).z, rtol=0, atol=1e-5)


def test_choices_are_kept_and_repeat_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, other = fastest(tmp_path), fastest(tmp_path), fastest(tmp_path, net=ready("convnet:5-6"))
    clock = Clock(monkeypatch, [one, two, other], {"packed": 0.1})
    for passes, n in ((one, 4), (one, 4)):
        passes.choose(rows(n))
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["way"] == "packed"
    clock.seconds = {"manual": 0.1}
    asked = clock.asked
    for _ in range(2):
        two.choose(rows(4, seed=1))
    assert two.chosen == one.chosen == {size_of(rows(4)): "packed"}
    assert clock.asked == asked
    for passes in (two, other):  # another size, and another network: choices of their own
        for _ in range(2):
            passes.choose(rows(4 + (passes is two)))
    assert two.chosen[size_of(rows(5))] == other.chosen[size_of(rows(4))] == "manual"
    assert len(list(tmp_path.iterdir())) == 3


def test_choices_depend_on_what_moves_and_on_threads(tmp_path: Path) -> None:
    net = ready()
    names = affine_names(net)
    keys = {FastestPasses(net, some, folder=tmp_path)._key("4") for some in (names, names[:2])}
    assert len(keys) == 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = size_of(rows(4))
        torch.set_num_threads(2)
        assert size_of(rows(4)) != single
    finally:
        torch.set_num_threads(threads)


def test_choices_are_saved_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = fastest(None), fastest(None)
    clock = Clock(monkeypatch, [one], {"manual": 0.1})
    for n in (4, 4, 6):
        one.choose(rows(n))
    asked = clock.asked
    two.load({**one.chosen, "9x1x8x8 1": "a way of tomorrow"})
    assert two.chosen == {size_of(rows(4)): "manual", size_of(rows(6)): "", "9x1x8x8 1": PLAIN}
    for x in (rows(4), rows(6)):
        assert torch.equal(one(x).z, two(x).z)
    two.choose(rows(4))
    assert clock.asked == asked


def test_a_way_that_is_wrong_or_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    one = fastest(None)
    Clock(monkeypatch, [one], {"fused": 0.1, "packed": 0.2, "manual": 0.3})
    honest = one.by

    class Wrong:
        def __call__(self, x: Tensor, weights: Any = None) -> Any:
            found = one.plain(x, weights)
            return type(found)(found.z + 1, found.pull)

    class Failing:
        def __call__(self, *_: Any) -> Any:
            raise RuntimeError("unsupported")

    one._made |= {"fused": Wrong(), "packed": Failing()}
    monkeypatch.setattr(one, "by", honest)
    for _ in range(2):
        one.choose(rows(4))
    assert one.way(rows(4)) == "manual"


def test_a_folder_that_cannot_be_used_means_autograd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    one = fastest(tmp_path / "file")
    Clock(monkeypatch, [one], {"fused": 0.1})
    for _ in range(3):
        one.choose(rows(4))
    assert one.way(rows(4)) == PLAIN


def test_numbers_that_are_not_finite_decide_nothing(tmp_path: Path) -> None:
    one = fastest(tmp_path)
    x = rows(4)
    x[0, 0, 0, 0] = float("nan")
    for _ in range(3):
        one.choose(x)
    assert one.way(x) == PLAIN
    assert not list(tmp_path.iterdir())
    assert one(x).z.isnan().any()


@pytest.mark.parametrize("way", [PLAIN, *WAYS])
def test_one_way_for_all_sizes(way: str) -> None:
    one = fastest(None, only=way)
    x = rows(4)
    one.choose(x)
    assert one.way(x) == way
    assert one.facts() == {"chosen": way}
    slope = torch.tensor([[1.0, -1.0, 0.0]]).expand(4, 3)
    found, wanted = one(x).pull(slope), one.plain(x).pull(slope)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5)


def test_compiling_serves_sizes_that_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.compile", lambda graph, _, **__: graph)
    one, x = fastest(None, only="compiled"), rows(4)
    for way in (PLAIN, PLAIN, "compiled"):
        assert one.way(x) == way
        one.choose(x)
    torch.testing.assert_close(one(x).z, one.plain(x).z, rtol=0, atol=1e-5)
    facts = one.facts()
    assert facts["chosen"] == {size_of(x): "compiled"}
    assert facts["warm_up_seconds"].keys() == {"4x1x8x8"}
    again = fastest(None, only="compiled")
    again.load(one.chosen)
    assert again.way(x) == "compiled"


def test_rows_without_any_difference_are_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = fastest(tmp_path)
    monkeypatch.setattr(fastest_passes, "FAR", -1.0)  # no way is near enough
    for _ in range(2):
        one.choose(rows(4))
    assert one.way(rows(4)) == PLAIN
    assert not list(tmp_path.iterdir())


def test_running_statistics_go_by_autograd(tmp_path: Path) -> None:
    net = build("convnet:4-6", (1, 8, 8), 3).eval()
    adaptive_norms(net, "running")
    one = FastestPasses(net.requires_grad_(False), affine_names(net), folder=tmp_path)
    for _ in range(3):
        one.choose(rows(4))
    assert (one.chosen, one.way(rows(4))) == ({}, PLAIN)


def test_a_few_sizes_get_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    one = fastest(None)
    Clock(monkeypatch, [one], {"fused": 0.1})
    for n in range(1, 9):
        for _ in range(2):
            one.choose(rows(n))
    assert list(one.chosen.values()) == ["fused"] * fastest_passes.SIZES
    assert one.way(rows(8)) == PLAIN


def test_other_networks_go_by_autograd() -> None:
    for net in (ready("convnet:4", norm="group"), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))):
        names = [n for n, _ in net.named_parameters()][-2:]
        one, x = FastestPasses(net, names), rows(4)
        for _ in range(3):
            assert one.way(x) == PLAIN
            one.choose(x)
        assert one(x).pull(torch.ones(4, 3)).keys() == set(names)
        assert one.facts() == {"chosen": {}}
        with pytest.raises(ValueError, match="cannot be 'packed': it can be plain"):
            FastestPasses(net, names, only="packed")
    with pytest.raises(ValueError, match="cannot be 'captured'"):
        fastest(None, only="captured")
    double = ready().double()
    assert FastestPasses(double, affine_names(double)).ways() == ["manual"]
