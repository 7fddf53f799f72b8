"""What the report says of tokens and of active rows, from facts of known make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftway.evaluation.report import render_run
from driftway.evaluation.run_data import RunData, read_run
from driftway.evaluation.section import Compared, Drawing, Heading, Table, Words
from driftway.evaluation.token_drift import last_drift, newer_mass, with_row
from driftway.evaluation.token_plots import drift_plot, over_updates, short_names
from driftway.evaluation.token_report import overlap_section, token_compared, token_section
from driftway.streams.spec import AMBIGUOUS, OWN, PADDING, SHARED

LAYERS = [f"body.layers.{i}.{part}_proj" for i in range(2) for part in ("q", "k")]
EXPERIENCES, POINTS = 3, 6


def tokens(drift: float = 0.1) -> dict[str, Any]:
    """Facts of three experiences of six moments each; the share of new tokens rises from 0.2 on."""
    experience = [e for e in range(EXPERIENCES) for _ in range(POINTS)]
    new = [[1.0 if e == 0 else 0.2 + 0.02 * i] * len(LAYERS) for i, e in enumerate(experience)]
    own = [[drift * (t - e) for e in range(t + 1)] for t in range(EXPERIENCES)]
    return {
        "layers": LAYERS,
        "updates": list(range(0, 10 * len(experience), 10)),
        "experience": experience,
        "new": new,
        "old": [[(1 - share) / 2 for share in shares] for shares in new],
        "ambiguous": [[(1 - share) / 2 for share in shares] for shares in new],
        "mass": [[1 / (e + 1)] * (e + 1) for e in experience],
        "drift": {"own": own, "ambiguous": [[None] * len(row) for row in own], "shared": [[0.5] * len(r) for r in own]},
    }


ROWS = {"layers": ["a", "b"], "overlap": [[1.0, 0.4, None], [0.4, 1.0, 0.2], [None, 0.2, 1.0]], "expected": 0.25}


def run(learner: str = "dymoe", **facts: Any) -> RunData:
    return RunData({"learner": learner, "facts": facts or None})


def texts(parts: Any) -> list[str]:
    return [part.text for part in parts if isinstance(part, Words | Heading)]


def test_nothing_is_said_where_nothing_is_known() -> None:
    for silent in (run(), RunData({}), run(tokens={}), run(tokens={"layers": LAYERS, "updates": []}, rows={})):
        assert token_section(silent) is None
        assert overlap_section(silent) is None
        assert token_compared(Compared([silent], {"dymoe": [0]}, {"dymoe": "#000"})) is None
    assert overlap_section(run(rows={"overlap": [[1.0]], "expected": 0.1})) is None
    assert overlap_section(run(rows={"overlap": [[1.0, None], [None, 1.0]]})) is None


def test_a_run_shows_shares_masses_and_drift() -> None:
    section = token_section(run(tokens=tokens()))
    assert section is not None
    headings = [part.text for part in section.parts if isinstance(part, Heading)]
    assert len(headings) == 3
    shares, masses, drift = (part.plot for part in section.parts if isinstance(part, Drawing))
    assert shares.svg.count("<image") == 4, "three maps and their scale"
    for name in ("0 q_proj", "1 k_proj"):
        assert name in shares.svg
    mean = np.mean([0.2 + 0.02 * i for i in range(POINTS, 3 * POINTS)])
    assert f"new · {100 * mean:.0f} %" in shares.svg
    assert [words.split(" · ")[0] for _, _, words in masses.legend] == ["bank 1", "bank 2", "bank 3"]
    assert masses.legend[0][2] == f"bank 1 · {100 * (1 + 1 / 2 + 1 / 3) / 3:.0f} %"
    assert [words for *_, words in drift.legend][:2] == ["1 · experience 1", "2 · experience 2"]
    (table,) = (part for part in section.parts if isinstance(part, Table))
    assert [list(row) for row in table.rows] == [
        ["experience 1", "20.0 %", "–", "50.0 %"],
        ["experience 2", "10.0 %", "–", "50.0 %"],
        ["mean", "15.0 %", "–", "50.0 %"],
    ]


def test_what_a_learner_does_not_tell_is_left_out() -> None:
    whole = tokens()
    single = {k: [row[:1] for row in v] if k == "mass" else v for k, v in whole.items() if k != "drift"}
    section = token_section(run(tokens=single))
    assert section is not None
    assert len([p for p in section.parts if isinstance(p, Drawing)]) == 1, "one bank has all the mass"
    first = {k: v[:POINTS] if k not in ("layers", "drift") else v for k, v in whole.items()}
    section = token_section(run(tokens=first | {"drift": {"own": [[0.0]]}}))
    assert section is None, "during the first experience there is nothing old"


def test_overlap_of_active_rows() -> None:
    section = overlap_section(run(rows=ROWS))
    assert section is not None
    assert texts(section.parts) == [
        "Two tasks have 30.0 % of their active rows in common; rows drawn independently would have 25.0 %."
    ]
    (drawing,) = (part for part in section.parts if isinstance(part, Drawing))
    assert drawing.plot.svg.count(">40<") == drawing.plot.svg.count(">20<") == 2
    assert drawing.plot.svg.count("100") >= 3


def test_learners_side_by_side() -> None:
    runs = [run(tokens=tokens(0.1)), run(tokens=tokens(0.2)), run("inc", tokens=tokens(0.4)), run("migu", rows=ROWS)]
    groups, colours = (
        {"dymoe": [0, 1], "inc": [2], "migu": [3], "er": [4]},
        dict.fromkeys(("dymoe", "inc", "migu", "er"), "#0"),
    )
    section = token_compared(Compared([*runs, run("er")], groups, colours))
    assert section is not None
    (table,) = (part for part in section.parts if isinstance(part, Table))
    assert list(table.heads) == ["learner", "own", "shared", "new in training", "rows in common"]
    cells = [[cell.text for cell in row] for row in table.cells()]
    assert [row[:3] for row in cells] == [
        ["dymoe", "22.5 ± 10.6", "50.0 ± 0.0"],
        ["inc", "60.0", "50.0"],
        ["migu", "–", "–"],
    ]
    assert [row[4] for row in cells] == ["–", "–", "30.0"]
    assert [row[1].kind for row in table.cells()] == ["best", "", ""]


def test_mass_on_newer_banks_by_hand() -> None:
    kinds = np.array([[OWN, SHARED, PADDING], [OWN, AMBIGUOUS, AMBIGUOUS]], np.int8)
    mass = np.zeros((2, 3, 3))
    mass[0, 0], mass[0, 1], mass[0, 2] = (0.25, 0.25, 0.5), (0, 0, 1), (0, 0.5, 0.5)
    mass[1, 0], mass[1, 1], mass[1, 2] = (1, 0, 0), (0.5, 0.5, 0), (0, 0, 1)
    assert newer_mass(kinds, mass, 0) == {"own": 0.375, "ambiguous": 0.75, "shared": 1.0}
    assert newer_mass(kinds, mass, 1) == {"own": 0.25, "ambiguous": 0.5, "shared": 1.0}
    assert newer_mass(kinds, mass, 2) == {"own": 0.0, "ambiguous": 0.0, "shared": 0.0}
    assert newer_mass(kinds[:1], mass[:1], 0)["ambiguous"] is None
    with pytest.raises(ValueError, match="do not fit"):
        newer_mass(kinds, mass[:, :2], 0)


def test_drift_grows_by_a_row_for_each_experience() -> None:
    def figures(*own: float | None) -> list[dict[str, float | None]]:
        return [{"own": value, "ambiguous": None, "shared": 1.0} for value in own]

    first = with_row(None, figures(0.0))
    assert last_drift(first) is None, "no experience has a newer bank"
    second = with_row(first, figures(0.5, 0.0))
    third = with_row(second, figures(0.75, 0.25, 0.0))
    assert third["own"] == [[0.0], [0.5, 0.0], [0.75, 0.25, 0.0]]
    assert first["own"] == [[0.0]], "what was there is not changed"
    assert (last_drift(second), last_drift(third), last_drift(third, "ambiguous")) == (0.5, 0.5, None)
    assert last_drift(with_row(second, figures(None, 0.25, 0.0))) == 0.25


def test_a_mean_of_one_figure_is_a_point_and_one_of_none_is_not_named() -> None:
    own: list[list[float | None]] = [[0.0], [0.5, 0.0]]
    alone, shared, nothing = (
        drift_plot(own, means, ["a", "b"], prefix="p")
        for means in ({}, {"shared": [None, 0.25]}, {"ambiguous": [None, None]})
    )
    assert shared.svg.count("<use") == alone.svg.count("<use") + 1
    assert [words for *_, words in shared.legend] == ["1 · a", "shared"]
    assert nothing.legend == alone.legend


def test_maps_over_updates() -> None:
    updates, values = np.array([0.0, 1.0, 5.0, 10.0]), np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 1.0], [7.0, 2.0]])
    np.testing.assert_allclose(over_updates(updates, values, 5), [[2, 2, 5, 5, 7], [0, 0, 1, 1, 2]])
    assert short_names(LAYERS) == ["0 q_proj", "0 k_proj", "1 q_proj", "1 k_proj"]
    assert short_names(["net.a.fc", "net.b.fc"]) == ["a.fc", "b.fc"]
    assert short_names(["only.one.fc"]) == ["fc"]


def test_the_page_of_a_run_has_the_sections(tmp_path: Path) -> None:
    import json

    summary = {"learner": "dymoe", "stream": "x", "facts": {"tokens": tokens(), "rows": ROWS}}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = render_run(read_run(tmp_path))
    assert page.count("<h2>Tokens</h2>") == page.count("<h2>Active rows of the tasks</h2>") == 1
    assert page == render_run(read_run(tmp_path))
