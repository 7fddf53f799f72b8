"""Click models against their formulas, and where values lie in a table of bounded size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driftway.models.ctr import KINDS, ClickModel, Field, Places, table_size
from torch import Tensor


def model(kind: str, fields: int = 3, size: int = 40, dim: int = 4) -> ClickModel:
    torch.manual_seed(0)
    net = ClickModel(kind, fields, size, dim, (6, 5), item=1)
    for weight in net.parameters():
        weight.data.normal_(std=0.5)
    return net.eval()


def rows(n: int = 7, fields: int = 3, size: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    past = torch.randint(-1, size, (n, 5), generator=g)
    return torch.randint(0, size, (n, fields), generator=g), torch.randn(n, fields, generator=g), past


@pytest.mark.parametrize("kind", KINDS)
def test_the_logit_is_the_sum_of_the_hidden_vector(kind: str) -> None:
    net, (at, value, past) = model(kind), rows()
    z, hidden = net(at, value, past)
    assert hidden.shape == (7, net.hidden)
    torch.testing.assert_close(z, hidden.sum(1) + net.bias)


def test_fm_is_the_sum_over_pairs() -> None:
    net, (at, value, _) = model("fm"), rows()
    z, _ = net(at, value)
    for i in range(7):
        e = [net.vectors.weight[at[i, f]] * value[i, f] for f in range(3)]
        pairs = sum((e[f] @ e[g]).item() for f in range(3) for g in range(f + 1, 3))
        linear = sum((net.first.weight[at[i, f], 0] * value[i, f]).item() for f in range(3))
        assert z[i].item() == pytest.approx(net.bias.item() + linear + pairs, abs=1e-5)


def test_deepfm_is_fm_and_a_network() -> None:
    net, (at, value, _) = model("deepfm"), rows()
    fm = model("fm")
    fm.load_state_dict({k: v for k, v in net.state_dict().items() if k in fm.state_dict()})
    e = (net.vectors(at) * value[..., None]).flatten(1)
    torch.testing.assert_close(net(at, value)[0], fm(at, value)[0] + net.last(net.deep(e))[:, 0])


def test_crosses_of_dcnv2() -> None:
    net, (at, value, _) = model("dcnv2"), rows()
    x0 = x = (net.vectors(at) * value[..., None]).flatten(1)
    for layer in net.cross:
        x = x0 * (x @ layer.weight.t() + layer.bias) + x
    linear = (net.first(at)[..., 0] * value).sum(1)
    expected = net.bias + linear + net.last(torch.cat([x, net.deep(x0)], 1))[:, 0]
    torch.testing.assert_close(net(at, value)[0], expected)


def test_din_looks_back_in_any_order_and_past_nothing() -> None:
    net, (at, value, past) = model("din"), rows()
    torch.testing.assert_close(net(at, value, past)[0], net(at, value, past.flip(1))[0])
    none = torch.full_like(past, -1)
    short = torch.cat([past[:, :2], none[:, 2:]], 1)
    torch.testing.assert_close(net(at, value, short)[0], net(at, value, past[:, :2])[0])
    assert not torch.allclose(net(at, value, past)[0], net(at, value, none)[0])


def test_values_lie_apart_until_there_is_no_room() -> None:
    fields = [Field("a"), Field("b", 5), Field("c", 3, open=True), Field("d", 1000)]
    places = Places(fields, 100)
    x = np.column_stack([np.zeros(2000), np.arange(2000) % 5, np.arange(2000), np.arange(2000) % 1000])
    x[::7, 1:] = np.nan
    at = places.rows(x)
    assert set(at[:, 0]) == {0}
    assert set(at[:, 1]) == set(range(1, 7))
    assert at[:, 2:].min() >= places.start == 7
    assert at.max() < 100
    assert len(set(at[:, 2])) > 85
    assert (at[::7, 2] == at[0, 2]).all()
    with pytest.raises(ValueError, match="raise the bound"):
        Places([Field(str(k)) for k in range(7)], 7)


def test_the_table_keeps_within_its_bytes() -> None:
    for kind in KINDS:
        net = ClickModel(kind, 3, table_size(kind, 16, 100_000), 16, (8,))
        tables = [w for n, w in net.named_parameters() if n in ("first.weight", "vectors.weight")]
        assert 90_000 < sum(w.numel() * 4 for w in tables) <= 100_000


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="one of lr, fm"):
        ClickModel("xdeepfm", 3, 10, 2, (4,))
