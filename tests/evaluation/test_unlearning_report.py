"""What the report says of requests to forget, from records alone."""

from __future__ import annotations

from typing import Any

from driftway.evaluation.run_data import RunData
from driftway.evaluation.section import Compared, Drawing, Table, Words
from driftway.evaluation.unlearning_report import forget_compared, forget_section


def request(step: int, note: str, **values: float) -> dict[str, Any]:
    return {"step": step, "kind": "forget", "values": {**values, "note": note}}


def run(*requests: dict[str, Any], learner: str = "acu") -> RunData:
    return RunData({"learner": learner}, records=list(requests))


GAPS = [
    request(100, "5 rows: exact", gap=0.02, gap_retained=-0.01, gap_forgotten=0.04, gap_test=0.0, gap_membership=0.03),
    request(200, "refused: row 3 was never learnt"),
    request(300, "5 rows: exact", gap=0.04, gap_retained=0.02, gap_forgotten=0.0, gap_test=0.0, gap_membership=-0.05),
]


def test_a_run_without_requests_has_no_section() -> None:
    assert forget_section(run()) is None
    assert forget_compared(Compared([run()], {"acu": [0]}, {"acu": "#000"})) is None


def test_requests_without_a_gap_are_told_of() -> None:
    section = forget_section(run(request(10, "3 rows: exact"), request(20, "refused: row 3 was forgotten already")))
    assert section is not None
    assert next(p.text for p in section.parts if isinstance(p, Words)) == "1 request to forget carried out, 1 refused."
    (table,) = (p for p in section.parts if isinstance(p, Table))
    assert [list(row) for row in table.rows] == [["10", "3 rows"], ["20", "refused: row 3 was forgotten already"]]


def test_gaps_are_a_curve_and_a_table() -> None:
    section = forget_section(run(*GAPS))
    assert section is not None
    (drawing,) = (p for p in section.parts if isinstance(p, Drawing))
    assert len(drawing.plot.legend) == 2
    (table,) = (p for p in section.parts if isinstance(p, Table))
    assert [list(row)[2:] for row in table.rows] == [
        ["2.0", "−1.0", "+4.0", "0.0", "+3.0"],
        ["–"] * 5,
        ["4.0", "+2.0", "0.0", "0.0", "−5.0"],
    ]


def test_learners_are_compared_over_seeds() -> None:
    exact = [request(step, "5 rows: exact", gap=0.0, gap_membership=0.0) for step in (100, 300)]
    more = [request(step, "5 rows", gap=gap, gap_membership=-0.1) for step, gap in ((100, 0.04), (300, 0.08))]
    runs = [run(*exact), run(*GAPS, learner="unlearn"), run(*more, learner="unlearn")]
    section = forget_compared(Compared(runs, {"acu": [0], "unlearn": [1, 2]}, {"acu": "#000", "unlearn": "#111"}))
    assert section is not None
    assert sum(isinstance(p, Drawing) for p in section.parts) == 2
    (table,) = (p for p in section.parts if isinstance(p, Table))
    first, second = ([cell.text for cell in row] for row in table.cells())
    assert first == ["acu", "0.0", "0.0", "0.0", "0.0", "0.0"]
    assert second == ["unlearn", "3.0 ± 1.4", "4.5 ± 2.1", "6.0 ± 2.8", "6.0 ± 2.8", "7.0 ± 4.2"]
    assert [cell.kind for cell in table.cells()[0][1:]] == ["best"] * 5
