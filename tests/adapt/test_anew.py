"""A learner beside one trained anew after every request: exact ones have no gap, in any run, resumed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt import cli
from driftway.adapt.anew import Anew, held_out_rows
from driftway.adapt.config import resolve
from driftway.adapt.loop import Loop
from driftway.adapt.runs import Run

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
Y = (X[:, 0] > 0).astype(np.int64)
SPEC = dw.StreamSpec("s", tuple(dw.Column(c) for c in "abcd"), classes=("n", "y"))
TOLD = {"forget_every": 60, "forget_rows": 6, "forget_gap": True}


def gaps(name: str, *, row_by_row: bool = False, held_out: Any = None, **settings: Any) -> list[dict[str, float]]:
    anew = Anew(lambda: dw.learner(name, SPEC, seed=1, **settings), held_out)
    loop = Loop(anew.make(), anew=anew, row_by_row=row_by_row)
    stream = dw.keep_asking(dw.rebatch(dw.streams.from_arrays(X[:200], Y[:200], spec=SPEC), 10), 50, 5)
    found = [r.values for r in loop.steps(stream) if r.kind == "forget"]
    return [{k: v for k, v in values.items() if k != "note"} for values in found]


@pytest.mark.parametrize("row_by_row", [False, True])
@pytest.mark.parametrize("name", ["acu", "unlearn:retrain"])
def test_exact_forgetting_has_no_gap(name: str, row_by_row: bool) -> None:
    found = gaps(name, row_by_row=row_by_row, held_out=(X[200:], Y[200:]))
    assert len(found) == 4
    for values in found:
        assert set(values) == set(Anew.columns)
        assert max(map(abs, values.values())) < 1e-9


def test_a_learner_that_only_seems_to_forget_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are struck off the list and stay in the network: an overfitted one knows them still."""
    monkeypatch.setattr("driftway.adapt.learners.unlearn.Unlearn._move_away", lambda *_: None)
    found = gaps("unlearn:finetune", held_out=(X[200:], Y[200:]), lr=1.0)
    assert [max(map(abs, values.values())) > 1e-6 for values in found].count(True) >= 3


def test_figures_that_cannot_be_had_are_left_out() -> None:
    (values, *_) = gaps("acu")
    assert set(values) == {"gap", "gap_retained", "gap_forgotten"}


def test_the_differences_are_those_of_two_models() -> None:
    """Against a learner that always says 0: worse on ones, the sign says so."""

    def always_zero() -> dw.Learner:
        return dw.learner("majority", SPEC)

    anew = Anew(lambda: dw.learner("acu", SPEC, seed=1))
    batch = dw.Batch(np.arange(200), X[:200], 0.0, Y[:200])
    anew.learnt(batch, row_by_row=False)
    ones = np.flatnonzero(Y[:200])[:20]
    values = anew.forgot(always_zero(), ones)
    assert values["gap_forgotten"] < -0.8
    assert values["gap"] == pytest.approx((abs(values["gap_forgotten"]) + abs(values["gap_retained"])) / 2)


def test_held_out_rows_are_those_of_the_experiences() -> None:
    spec = dw.stream("split-digits").spec
    found = held_out_rows(spec)
    assert found is not None
    assert len(found[0]) == len(found[1]) == sum(len(e.y) for e in spec.experiences)
    assert held_out_rows(SPEC) is None


def configured(**more: Any) -> Any:
    return resolve(
        {
            "stream": "split-digits",
            "learner": "unlearn:scrub",
            "batch": 20,
            "limit": 200,
            "evaluate_every": 0,
            **TOLD,
            **more,
        }
    )


def lines(folder: Path) -> list[str]:
    return (folder / "records.csv").read_text().splitlines()


def test_a_run_writes_the_gap_after_every_request_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = Run(configured(), tmp_path / "whole")
    list(whole.steps())
    first = Run(configured(), tmp_path / "cut")
    for record in first.steps():
        if record.kind == "forget":
            first.stop()
    list(Run(configured(), tmp_path / "cut", resume=True).steps())
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    header, *rest = (line.split(",") for line in lines(tmp_path / "whole"))
    asked = [dict(zip(header, cells)) for cells in rest if cells[1] == "forget"]
    assert [int(values["step"]) for values in asked] == [60, 120, 180]
    assert all(values[name] for values in asked for name in Anew.columns)


def test_the_command_line_asks_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--forget-every", "100", "--forget-rows", "3", "--forget-gap", "--batch", "20", "--limit", "200"]
    command = ["compare", "split-digits", "--learners", "acu,unlearn:neg-grad", *flags, "--json"]
    assert cli.main([*command, "--out", str(tmp_path / "c")]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Gap to training anew" in page
    entries = dw.Ledger(tmp_path / "c" / "acu-seed0" / "ledger.jsonl").entries()
    assert [len(entry["ids"]) for entry in entries] == [3, 3]


def test_numbers_to_answer_have_no_gap(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i},{i / 7}\n" for i in range(40)))
    with pytest.raises(dw.InputError, match="forget-gap"):
        Run(resolve({"stream": str(tmp_path / "t.csv"), "learner": "logistic", "forget_gap": True}))
