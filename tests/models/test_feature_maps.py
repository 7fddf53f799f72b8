"""Frozen feature maps: fixed numbers, no dependence on company, provenance and digests that tell maps apart."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from driftway.models.backbones import TorchMap, plain_inputs
from driftway.models.feature_maps import Expansion, Plain
from driftway.models.inputs import Pixels
from driftway.models.networks import build
from numpy.testing import assert_array_equal
from torch import nn

ROWS = np.random.default_rng(0).random((41, 3 * 8 * 8))


def test_plain_leaves_images_as_they_are() -> None:
    z = Plain([0] * ROWS.shape[1], squeeze=False)(ROWS)
    assert_array_equal(z, ROWS.astype(np.float32).astype(np.float64))


def test_plain_squeezes_tables_without_looking_at_other_rows() -> None:
    plain = Plain([0, 4, 0])
    rows = np.array([[1e6, 2.0, -3.0], [np.nan, 9.0, np.inf], [0.0, np.nan, 1.0]])
    found = plain(rows)
    assert found.shape == (3, plain.width) == (3, 7)
    assert np.abs(found).max() < 16
    assert found[1].tolist() == [1, 0, 0, 1, 0, 0, 0]
    assert_array_equal(np.concatenate([plain(row[None]) for row in rows]), found)


def test_the_expansion_is_the_formula_and_follows_its_seed() -> None:
    z = np.random.default_rng(1).random((5, 10))
    p = np.random.default_rng([3, 10, 20]).normal(0, 10**-0.5, (10, 20))
    assert_array_equal(Expansion(10, 20, seed=3)(z), np.maximum(z @ p, 0))
    assert np.abs(Expansion(10, 2000, drawn="uniform")(np.eye(10))).max() <= 10**-0.5
    digests = {Expansion(10, 20, seed=s, exact=e).digest for s in (0, 1) for e in (True, False)}
    assert len(digests) == 4
    assert_array_equal(Expansion(10, 0)(z), z)


@pytest.mark.parametrize("width", [0, 700])
def test_exact_features_do_not_depend_on_company(width: int) -> None:
    z = Plain([0] * ROWS.shape[1], squeeze=False)(ROWS)
    expansion = Expansion(z.shape[1], width, exact=True)
    together = expansion(z)
    alone = np.concatenate([expansion(row[None]) for row in z])
    assert_array_equal(together, alone)
    assert np.abs(together - Expansion(z.shape[1], width)(z)).max() < 0.02


def network(name: str) -> TorchMap:
    net = build(name, (3, 8, 8), 2, seed=5)
    return TorchMap(net.body, Pixels((3, 8, 8), [0.5] * 3, [0.25] * 3).tensor).sized(ROWS.shape[1])


@pytest.mark.parametrize("name", ["mlp:40", "convnet:8-16"])
def test_a_network_answers_a_row_alike_wherever_it_stands(name: str) -> None:
    features = network(name)
    together = features(ROWS)
    assert together.shape == (41, features.width)
    assert_array_equal(together, np.concatenate([features(part) for part in np.split(ROWS, [1, 2, 19, 35])]))
    assert features(ROWS[:0]).shape == (0, features.width)


def test_digests_tell_networks_apart() -> None:
    one, same = network("mlp:40"), network("mlp:40")
    assert one.digest == same.digest
    with torch.no_grad():
        next(same.module.parameters())[0, 0] += 1e-6
    assert TorchMap(same.module, same.inputs).digest != one.digest


def test_a_torchvision_network_is_a_feature_map() -> None:
    if find_spec("torchvision") is None:
        pytest.skip("needs the extra vision")
    net = build("torchvision:resnet18", (3, 32, 32), 2)
    features = TorchMap(net.body, Pixels((3, 32, 32), [0.5] * 3, [0.25] * 3).tensor).sized(3072)
    assert features.width == 512
    assert np.isfinite(features(np.zeros((2, 3072)))).all()


def test_rows_of_a_table_go_through_a_network() -> None:
    features = TorchMap(nn.Linear(5, 3), plain_inputs([0, 3])).sized(2)
    assert features(np.array([[1.0, 2.0], [np.nan, 0.0]])).shape == (2, 3)
