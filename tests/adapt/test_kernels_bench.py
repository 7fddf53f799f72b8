"""The table of kernels, and the learners with the ops on and off; no time is asserted."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from driftway.adapt import benchmarks
from driftway.adapt.benchmarks import floors, kernels, kernels_end_to_end
from driftway.streams import InputError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "ROUNDS", 1)
    monkeypatch.setattr(floors, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(floors, "SIDE", {"cpu": 16})
    monkeypatch.setattr(floors, "COPIED", {"cpu": 1024})
    floors.floors.cache_clear()


def test_every_op_of_the_table_has_a_file_that_measures_it() -> None:
    ops = {file.stem for file in Path(kernels.__file__).parents[2].glob("models/kernels/*_triton.py")}
    ops = {name.removesuffix("_triton") for name in ops} - {"update_rules"}
    assert ops <= set(kernels.OPS)
    for op in kernels.OPS:
        assert callable(importlib.import_module(f"driftway.adapt.benchmarks.{op}").measure)


def test_a_device_that_is_not_there_or_not_meant_is_one_line() -> None:
    with pytest.raises(InputError, match="the others run on the CPU"):
        benchmarks.measure("loop", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device cuda is not there"):
            benchmarks.measure("kernels", "cuda")


def test_facts_say_where_and_with_what() -> None:
    found = floors.facts("cpu")
    assert found["versions"]["torch"] == version("torch")
    assert found["copy_gb_s"] > 0
    assert found["clocks"] is None


@pytest.mark.parametrize(("times", "within", "met"), [(1.5, None, True), (None, 1.5, False), (None, None, None)])
def test_a_row_says_whether_its_targets_are_met(times: float | None, within: float | None, met: bool | None) -> None:
    row = floors.kernel_row("op", 1.0, 2.0, "dense", 0.5, times=times, within=within)
    assert (row["ratio"], row["floor"], row["met"]) == (2.0, 2.0, met)


def test_steps_with_rotated_inputs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "CACHE", {"cpu": 30})
    made: list[int] = []
    called: list[int] = []

    def make() -> list[floors.Step]:
        made.append(number := len(made))
        return [lambda: called.append(number)]

    (step,) = floors.rotated(make, 10, "cpu")
    for _ in range(5):
        step()
    assert called == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("name", kernels_end_to_end.CASES)
def test_learners_give_the_same_with_the_ops_on_and_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``compare`` asserts it; here on small models."""
    small = {"HIDDEN": 64, "MLP": "mlp:64-64", "ROWS": 8, "NORMED": "resnet18:2", "NORMED_ROWS": 4, "CLICKS": 40}
    for constant, value in (small | {"ARRAYS": 5, "BITS": 6, "PLANS": 12}).items():
        monkeypatch.setattr(kernels_end_to_end, constant, value)
    row = kernels_end_to_end.compare(name)
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
    assert row["floor"] > 0
