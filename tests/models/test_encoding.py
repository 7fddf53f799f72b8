"""Rows as inputs of networks: against NumPy's mean and deviation, and cell by cell."""

from __future__ import annotations

import numpy as np
from driftway.models.encoding import Encoder, encode, encoded_width, new_encoder, observe_scale
from numpy.testing import assert_allclose, assert_array_equal

NAN = float("nan")


def encoded(encoder: Encoder, row: list[float]) -> np.ndarray:
    out = np.full(encoded_width(encoder), 99.0)
    encode(encoder, np.array(row), out)
    return out


def test_numbers_are_standardised_by_all_values_seen() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([1e6, -3], [2, 0.01], (500, 2))
    x[::7, 1] = NAN
    encoder = new_encoder([0, 0])
    for row in x:
        observe_scale(encoder, row)
    seen = x[~np.isnan(x[:, 1]), 1]
    expected = [(x[4, 0] - x[:, 0].mean()) / x[:, 0].std(), (x[4, 1] - seen.mean()) / seen.std()]
    assert_allclose(encoded(encoder, x[4].tolist()), expected, rtol=1e-7)
    assert_array_equal(encoder.imputed, [len(x) - len(seen)])


def test_before_any_value_and_without_spread_everything_is_zero() -> None:
    encoder = new_encoder([0, 0])
    assert_array_equal(encoded(encoder, [7.0, NAN]), [0, 0])
    for _ in range(3):
        observe_scale(encoder, np.array([7.0, NAN]))
    assert_array_equal(encoded(encoder, [7.0, 3.0]), [0, 0])


def test_far_values_are_clipped_and_missing_ones_are_the_mean() -> None:
    encoder = new_encoder([0], clip=2.0)
    for value in (0.0, 1.0):
        observe_scale(encoder, np.array([value]))
    assert [encoded(encoder, [v])[0] for v in (-9.0, 9.0, 0.75, NAN)] == [-2.0, 2.0, 0.5, 0.0]


def test_categories_are_one_hot_and_large_codes_share_slots() -> None:
    encoder = new_encoder([3, 0, 200], most_slots=64)
    assert encoded_width(encoder) == 3 + 1 + 64
    out = encoded(encoder, [2.0, 0.0, 130.0])
    assert_array_equal(np.flatnonzero(out), [2, 4 + 130 % 64])
    assert_array_equal(encoded(encoder, [NAN, 0.0, NAN]), np.zeros(68))


def test_plain_passes_numbers_and_codes_on() -> None:
    encoder = new_encoder([3, 0], clip=0)
    for row in ([2.0, 10.0], [0.0, 30.0]):
        observe_scale(encoder, np.array(row))
    assert_array_equal(encoded(encoder, [2.0, -1234.5]), [2.0, -1234.5])
    assert_array_equal(encoded(encoder, [NAN, NAN]), [1.0, 20.0])
    assert_array_equal(encoded(encoder, [0.0, -1e300]), [0.0, -1e12])
