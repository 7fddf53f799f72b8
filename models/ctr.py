"""Models of click logs: LR, FM, DeepFM, DCNv2 and a DIN-like one with the user's history, over hashed embeddings.

A row is F fields: categories and numbers. Every field's value has a vector e_f of ``dim`` numbers (a number scales its
field's vector) and a first-order weight w_f. One logit a row:

    lr       z = b + sum_f w_f
    fm       z = lr + 1/2 (|sum_f e_f|^2 - sum_f |e_f|^2)
    deepfm   z = fm + MLP(e_1 ... e_F)
    dcnv2    x_0 = (e_1 ... e_F),  x_{l+1} = x_0 * (W_l x_l + b_l) + x_l,  z = b + w . (x_last, MLP(x_0))
    din      as deepfm's MLP, beside e also sum_j a_j g_j, g the items of the user's last clicks,
             a_j = MLP(g_j, e_item, g_j - e_item, g_j * e_item), not normalised

The hidden vector holds all that the logit is the sum of: the w_f; the numbers of fm's pairwise vector
1/2 ((sum e)^2 - sum e^2); the last layer (dcnv2: cross part and deep part) times its weights. The last layer alone
would not know what the other parts of deepfm say.

Sources: Rendle, Factorization machines, ICDM 2010; Guo et al., DeepFM, IJCAI 2017; Wang et al., DCN V2, WWW 2021
(the parallel structure); Zhou et al., Deep interest network, KDD 2018 (its PReLU and Dice are ReLU here). Hashing:
Weinberger et al., ICML 2009. Ours: one table for all fields with a bound in bytes; categories that are known beforehand
have rows of their own as long as these fill no more than half of it.

Letters: B rows, F fields, H places in the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
KINDS = ("lr", "fm", "deepfm", "dcnv2", "din")


@dataclass(frozen=True, slots=True)
class Field:
    """One column. categories: how many are known beforehand (0: a number). open: others may come."""

    name: str
    categories: int = 0
    open: bool = False


class Places:
    """Where each value of each field lies in a table of ``size`` rows.

    A number has one row, and a known category one of its own (one more for what is missing), while all of these fill at
    most half of the table. The categories of other fields share what is left, by a hash of field and code.
    """

    def __init__(self, fields: Sequence[Field], size: int) -> None:
        self.fields, self.size = tuple(fields), size
        self.first, self.hashed = [], []
        start = 0
        for field in self.fields:
            need = 1 + field.categories
            shared = field.categories > 0 and (field.open or start + need > size // 2)
            self.first.append(start)
            self.hashed.append(shared)
            start += 0 if shared else need
        self.start = start
        if start >= size:
            raise ValueError(f"{len(self.fields)} fields need more than {size} rows of embeddings: raise the bound")

    def of(self, x: Array, field: int) -> NDArray[np.int64]:
        """int64[B]: the rows of one field's codes (NaN: missing) in the table."""
        missing = np.isnan(x)
        codes = np.where(missing, -1, x).astype(np.int64)
        if not self.hashed[field]:
            return self.first[field] + 1 + codes
        word = (codes + 2).astype(np.uint64) + np.uint64((field + 1) * 0x9E3779B97F4A7C15 % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
        return self.start + (word % np.uint64(self.size - self.start)).astype(np.int64)

    def rows(self, x: Array) -> NDArray[np.int64]:
        """int64[B, F]; a number's field always has the same row."""
        found = np.empty(x.shape, np.int64)
        for f, field in enumerate(self.fields):
            found[:, f] = self.of(x[:, f], f) if field.categories or field.open else self.first[f]
        return found


def _mlp(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


class ClickModel(nn.Module):
    """One of ``KINDS``. ``forward`` gives the logit float[B] and the hidden vector float[B, hidden].

    fields: how many. size: rows of the table. dim: numbers of a vector. widths: of the MLP. item: the field whose
    values the history is made of (din). crosses: cross layers (dcnv2).
    """

    def __init__(
        self, kind: str, fields: int, size: int, dim: int, widths: Sequence[int], *, item: int = 0, crosses: int = 3
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"a click model is one of {', '.join(KINDS)}, not {kind!r}")
        self.kind, self.item = kind, item
        inputs = fields * dim
        self.first = nn.Embedding(size, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.first.weight)
        if kind != "lr":
            self.vectors = nn.Embedding(size, dim)
            nn.init.normal_(self.vectors.weight, std=0.01 if kind in ("fm", "deepfm") else 0.05)
        if kind == "din":
            self.attention = nn.Sequential(_mlp(4 * dim, (16,)), nn.Linear(16, 1))
            inputs += dim
        if kind in ("deepfm", "dcnv2", "din"):
            self.deep = _mlp(inputs, widths)
        if kind == "dcnv2":
            self.cross = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(crosses))
        self.hidden = fields + (dim if kind in ("fm", "deepfm") else 0)
        if kind in ("deepfm", "dcnv2", "din"):
            last = widths[-1] + (inputs if kind == "dcnv2" else 0)
            self.hidden += last
            self.last = nn.Linear(last, 1, bias=False)

    def forward(self, rows: Tensor, value: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """rows: int64[B, F], places in the table. value: float[B, F], 1 for categories. past: int64[B, H], -1: none."""
        parts = [self.first(rows)[..., 0] * value]
        if self.kind != "lr":
            e = self.vectors(rows) * value[..., None]
            if self.kind in ("fm", "deepfm"):
                parts.append(0.5 * (e.sum(1) ** 2 - (e**2).sum(1)))
            if self.kind != "fm":
                parts.append(self._layers(e, past) * self.last.weight)
        hidden = torch.cat(parts, 1)
        return hidden.sum(1) + self.bias, hidden

    def _layers(self, e: Tensor, past: Tensor | None) -> Tensor:
        """The last layer of the network on embeddings float[B, F, dim], beside the crosses if there are any."""
        x = e.flatten(1)
        if self.kind == "din":
            assert past is not None, "din is given histories"
            x = torch.cat([x, self._interest(e[:, self.item], past)], 1)
        deep: Tensor = self.deep(x)
        if self.kind != "dcnv2":
            return deep
        crossed = x
        for layer in self.cross:
            crossed = x * layer(crossed) + crossed
        return torch.cat([crossed, deep], 1)

    def _interest(self, item: Tensor, past: Tensor) -> Tensor:
        """float[B, dim]: the items of the history, each by how much it has to do with the item at hand."""
        g = self.vectors(past.clamp_min(0))
        query = item[:, None].expand_as(g)
        a = self.attention(torch.cat([g, query, g - query, g * query], 2))
        return (a * g * (past >= 0)[..., None]).sum(1)


def table_size(kind: str, dim: int, bytes_: int) -> int:
    """Rows of float32 embeddings and first-order weights that fit into so many bytes."""
    return bytes_ // (4 * (1 if kind == "lr" else 1 + dim))
