"""Names, parameters and what is said about them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import driftway as dw
import numpy as np
import pytest
from driftway.streams import BLOCK, DATASETS, FileParams, describe


def test_unknown_names_and_parameters() -> None:
    for name, message in [
        ("electricty", "did you mean electricity"),
        ("zzz", "there are digits, two-regimes"),
        ("nothing.csv", "no such file"),
        ("river:Nope", "it has AirlinePassengers"),
        ("river:SolarFlare", "3 targets"),
        ("river:CreditCard", "not on this machine"),
    ]:
        with pytest.raises(dw.InputError, match=message) as caught:
            dw.stream(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(dw.InputError, match="unknown parameter 'm'; it has n"):
        dw.stream("two-regimes", m=3)
    with pytest.raises(dw.InputError, match="two-regimes: n='many'"):
        dw.stream("two-regimes", n="many")
    with pytest.raises(dw.InputError, match="unknown parameter 'variants'; it has n, variant"):
        dw.stream("river:synth.SEA", variants=1)
    with pytest.raises(dw.InputError, match="label is for files"):
        dw.stream("digits", label="y")


def test_text_becomes_the_parameters_type() -> None:
    stream = dw.stream("sea-drift", n="400", positions="100,200,300", width="0", replay="true")
    assert stream.spec.drifts == (100, 200, 300)
    assert dw.stream("river:synth.SEA", variant="2", n="10").spec.length == 10


@pytest.mark.parametrize("name", dw.STREAMS)
def test_every_entry_tells_about_itself(name: str) -> None:
    found = describe(name)
    assert found["summary"]
    assert found["text"]
    assert found["citation"]
    assert all(p["doc"] for p in found["parameters"]), found["parameters"]
    assert found["dataset"] is None or found["dataset"] in DATASETS


def test_describe_files_and_river(tmp_path: Path) -> None:
    names = [f.name for f in dataclasses.fields(FileParams)]
    assert [p["name"] for p in describe(str(tmp_path / "x.csv"))["parameters"]] == names
    assert all(p["doc"] for p in describe("x.csv")["parameters"])
    assert "river" in describe("river:Phishing")["summary"]
    with pytest.raises(dw.InputError, match="did you mean"):
        describe("digit")


def test_arrays() -> None:
    stream = dw.from_arrays(np.arange(2000).reshape(1000, 2), np.arange(1000) % 3, boundaries={600: "x"})
    assert [len(e) if isinstance(e, dw.Batch) else e.name for e in stream] == [BLOCK, 600 - BLOCK, "x", 400]
    assert dw.from_arrays(np.zeros((3, 2)), np.array([0.5, 1, 2])).spec.target == "regression"
    (unlabelled,) = dw.from_arrays(np.zeros((3, 2)), None)
    assert unlabelled.y is None
    events = list(dw.from_arrays(np.zeros((4, 1)), np.array([0, 1, 5, -1]), classes=("a", "b")))
    assert [(e.row, e.reason) for e in events[:2]] == [
        (2, "label 'y': class code 5 is out of range 0..1"),
        (3, "label 'y': the value is missing"),
    ]
    for x, y, message in [
        (np.zeros(3), None, "shape"),
        (np.zeros((3, 2)), np.zeros(2), "3 rows"),
        (np.array([["a"]]), None, "numbers"),
    ]:
        with pytest.raises(dw.InputError, match=message):
            dw.from_arrays(x, y)
    with pytest.raises(dw.InputError, match="1 column names for 2"):
        dw.from_arrays(np.zeros((3, 2)), np.zeros(3, int), columns=["a"])
