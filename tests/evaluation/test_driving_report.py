"""What plans were worth, in figures, words and pictures."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation.bootstrap import paired_interval
from driftway.evaluation.comparison import table
from driftway.evaluation.driving_picture import scene_picture
from driftway.evaluation.driving_report import (
    driving_compared,
    driving_figures,
    driving_section,
    driving_verdict,
)
from driftway.evaluation.run_data import RunData
from driftway.evaluation.section import Compared, Drawing, Heading, Table
from driftway.evaluation.worths import Worths
from driftway.streams import Worth

NAMES = ("pdms", "nc", "dac", "ttc", "ep", "c")
PARAMS = {"scenes": 6, "plans": 32, "training": 8}


def flat(value: float) -> np.ndarray:
    return np.full(6, value)


def table_of_worth() -> Worth:
    """Row r, plan p: worth p / 10 throughout; even rows are not judged."""

    def of(ids: Any, outputs: Any) -> Any:
        found = np.repeat(np.asarray(outputs, np.float64)[:, None] / 10, 6, 1)
        found[np.asarray(ids) % 2 == 0] = np.nan
        return found

    return Worth(NAMES, np.zeros((11, 41, 4)), (), of, lambda _: ((),) * 3, 0, lambda _: None)  # type: ignore[arg-type,return-value]


def scores(*best: int) -> np.ndarray:
    return np.eye(11)[list(best)]


def test_means_shares_and_records() -> None:
    watch = Worths(table_of_worth())
    assert watch.summary() == {"worth": None}
    assert watch.answers(np.array([0, 1, 3]), np.array([5, 8, 2]), scores(5, 4, 2)) == [
        dict.fromkeys(NAMES, 0.8) | {"row": 1, "plan": 8, "plan_before": 4},
        dict.fromkeys(NAMES, 0.2) | {"row": 3, "plan": 2, "plan_before": 2},
    ]
    watch.answers(np.array([5]), np.array([0]), scores(9))
    found = watch.summary()["worth"]
    assert found["judged"] == 3
    assert found["pdms"] == pytest.approx(1 / 3)
    assert found["before"]["ep"] == pytest.approx(0.5)
    assert (found["changed"], found["helped"], found["harmed"]) == pytest.approx((2 / 3, 1 / 3, 1 / 3))
    assert watch.row()["nc"] == pytest.approx(1 / 3)
    other = Worths(table_of_worth())
    other.load(watch.state())
    assert other.summary() == watch.summary()
    watch.answers(np.array([7]), np.array([10]), None)
    assert watch.summary()["worth"]["judged"] == 4


def test_learners_without_a_source_are_judged_alone() -> None:
    watch = Worths(table_of_worth())
    (record,) = watch.answers(np.array([1]), np.array([7]), None)
    assert "plan_before" not in record
    assert watch.summary()["worth"]["before"] is None


def test_interval_holds_the_mean_and_shrinks_with_the_number_of_cases() -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(0.3, 1, (50, 2)), rng.normal(0.3, 1, (5000, 2))
    widths = []
    for cases in (wide, narrow):
        low, high = paired_interval(cases)
        assert ((low < cases.mean(0)) & (cases.mean(0) < high)).all()
        widths.append(float((high - low).mean()))
        assert widths[-1] == pytest.approx(2 * 1.96 / math.sqrt(len(cases)), rel=0.2)
    assert widths[1] < widths[0] / 5
    assert np.isnan(paired_interval(np.empty((0, 6)))[0]).all()


def summary(pdms: float, before: float | None = None, learner: str = "centaur", seed: int = 0) -> dict[str, Any]:
    beside = {"before": None, "changed": None, "helped": None, "harmed": None}
    if before is not None:
        beside = {"before": dict.fromkeys(NAMES, before), "changed": 0.5, "helped": 0.3, "harmed": 0.1}
    worth = {"judged": 6, **dict.fromkeys(NAMES, pdms), **beside}
    return {"learner": learner, "stream": "driving", "seed": seed, "labelled": 6, "accuracy": 0.1, "worth": worth}


def test_verdicts_and_figures() -> None:
    assert driving_verdict(summary(0.6, 0.5)) == (
        "good",
        "centaur drives with a PDM score of 60.0 %, 10.0 points more than without adaptation.",
    )
    assert driving_verdict(summary(0.4, 0.5))[0] == "bad"  # type: ignore[index]
    assert "as it does without" in driving_verdict(summary(0.5, 0.5))[1]  # type: ignore[index]
    assert driving_verdict(summary(0.5)) == ("plain", "centaur drives with a PDM score of 50.0 %.")
    assert driving_verdict({"learner": "tent", "worth": None}) is None
    assert driving_figures({}) == []
    name, value, note = driving_figures(summary(0.6, 0.5))[0]
    assert (name, value, note) == ("PDMS", "60.0 %", "50.0 % without adaptation")


def run(tmp: Path, learner: str, choose: Any, seed: int = 0) -> RunData:
    """A run whose plans are the oracle's or another one, as its records would say."""
    stream = dw.stream("driving", seed=seed, **PARAMS)
    params = "\n".join(f"{k} = {v}" for k, v in PARAMS.items())
    toml = f'stream = "driving"\nseed = {seed}\n\n[stream_params]\n{params}\n'
    records: list[dict[str, Any]] = []
    watch = Worths(stream.spec.worth)
    for event in stream:
        if isinstance(event, dw.Labels):
            found = watch.answers(event.ids, np.array([choose(event)]), np.eye(32)[[3]])
            records += [{"step": int(event.ids[0]) + 1, "kind": "worth", "values": v} for v in found]
    facts = summary(0.0, learner=learner, seed=seed) | watch.summary()
    return RunData(facts, records, config_toml=toml, folder=str(tmp))


def test_section_shows_differences_and_scenes(tmp_path: Path) -> None:
    section = driving_section(run(tmp_path, "centaur", lambda e: int(e.y[0])))
    assert section is not None
    first = next(p for p in section.parts if isinstance(p, Table))
    assert list(first.heads) == ["", "plans of the trained weights", "plans that were driven", "difference"]
    cells = first.cells()[0]
    gain = float(cells[3].text.split()[0])
    assert gain == pytest.approx(float(cells[2].text) - float(cells[1].text), abs=0.11)
    drawings = [p for p in section.parts if isinstance(p, Drawing)]
    titles = [p.text for p in section.parts if isinstance(p, Heading)]
    assert len(drawings) == len(titles) >= 2
    assert titles[0].startswith("Most helped: scene")
    assert not any(t.startswith("Most harmed") for t in titles), "the oracle harms nobody"
    assert driving_section(RunData({"learner": "tent"})) is None


def test_section_without_a_configuration_has_figures_only(tmp_path: Path) -> None:
    from dataclasses import replace

    bare = replace(run(tmp_path, "centaur", lambda e: int(e.y[0])), config_toml="")
    section = driving_section(bare)
    assert section is not None
    assert not any(isinstance(p, Drawing) for p in section.parts)


def test_comparison_pairs_scenes(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, name, choose, seed)
        for name, choose in (("none", lambda _: 3), ("oracle", lambda e: int(e.y[0])))
        for seed in (0, 1)
    ]
    compared = Compared(runs, {"none": [0, 1], "oracle": [2, 3]}, {"oracle": "#000", "none": "#111"})
    section = driving_compared(compared)
    assert section is not None
    assert section.title == "Scene by scene beside none"
    first = next(p for p in section.parts if isinstance(p, Table))
    rows = {cells[0].text: cells[1] for cells in first.cells()}
    assert rows["scenes"].text == "12"
    assert rows["PDMS"].text.startswith("+")
    assert rows["PDMS"].kind == "best"
    found = table([r.summary for r in runs])
    assert found["columns"][0] == "PDMS"
    assert found["rows"][0]["name"] == "oracle"
    assert found["baselines"] == []
    assert driving_compared(Compared(runs[:2], {"none": [0, 1]}, {"none": "#111"})) is None


@pytest.mark.parametrize("row", [4, 9, 14, 19, 24, 29])
def test_picture_is_whole_and_has_no_words_of_others(row: int) -> None:
    spec = dw.stream("driving", **PARAMS, seed=3, severity=3).spec
    assert spec.worth is not None
    scene = spec.worth.scene(row)
    plot = scene_picture(scene, *spec.worth.vocabulary[[2, 20]])
    root = ElementTree.fromstring(plot.svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert width == 960
    assert 60 < height <= 521
    assert "nan" not in plot.svg
    car = [e for e in root.iter() if e.attrib.get("fill") == "#22262b"]
    assert len(car) == 1
    numbers = [float(n) for n in re.findall(r"-?\d+\.\d", car[0].attrib["d"])]
    assert all(0 <= x <= 960 for x in numbers[::2])
    assert all(0 <= y <= height for y in numbers[1::2])
    assert {words for _, _, words in plot.legend} >= {"plan of the trained weights", "plan after the step"}
    assert plot.svg == scene_picture(scene, *spec.worth.vocabulary[[2, 20]]).svg
