"""Schedules of sparsity."""

from __future__ import annotations

import pytest
from driftway.models.schedules import Schedule, read_schedule, smallest_p, sparcl_schedule, worth


def test_the_schedule_of_paper_and_code() -> None:
    schedule = sparcl_schedule(0.75, 0.01, 0.01, every=5, epochs=50)
    assert schedule.at_start == (0.75, 0.74)
    assert [schedule.at(e) for e in (0, 5, 10, 40)] == [(0.75, 0.75), (0.76, 0.75), (0.76, 0.75), (0.76, 0.75)]
    assert schedule.at(45) == (0.75, 0.75)
    endless = sparcl_schedule(0.9, 0.02, 0.0, every=1, epochs=None)
    assert endless.at(10**6) == (0.92, 0.9)
    assert endless.at_start == (0.9, 0.9)


def test_a_schedule_written_out() -> None:
    early = read_schedule("0:.77:.75,25:.76:.75,40:.75:.75", 0.75, 0.0)
    assert [early.at(e) for e in (5, 25, 39, 40)] == [(0.77, 0.75), (0.76, 0.75), (0.76, 0.75), (0.75, 0.75)]
    assert early == Schedule(0.75, ((0.0, 0.77, 0.75), (25.0, 0.76, 0.75), (40.0, 0.75, 0.75)), (0.75, 0.75))


@pytest.mark.parametrize("text", ["", "1:2", "a:b:c", "0:.5:.5,", "5:.8:.7,0:.8:.7", "0:1.2:.7", "0:.8:-.1"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        read_schedule(text, 0.75, 0.0)


def test_an_exchange_of_less_than_one_is_left_out() -> None:
    assert worth(100, 0.76, 0.75) == 0.76
    assert worth(99, 0.76, 0.75) == 0.75
    assert worth(100, 0.74, 0.75) == 0.74
    assert worth(10, 0.74, 0.75) == 0.75


def test_default_shares() -> None:
    assert smallest_p(0.75) == 0.01
    assert smallest_p(0.9) == 0.01
    assert smallest_p(0.98) == pytest.approx(0.004)
    assert smallest_p(0.9, 1.0) == pytest.approx(0.02)
