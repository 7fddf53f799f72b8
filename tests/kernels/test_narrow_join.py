"""A narrow branch joining its shortcut: both paths, both layouts."""

from __future__ import annotations

import pytest
import torch
from driftway.models.kernels.narrow_join import narrow_join


@pytest.mark.parametrize("rows", [[0], [2, 3, 7], list(range(9))])
@pytest.mark.parametrize("last", [(False, False), (True, True), (False, True)])
def test_paths_agree(rows: list[int], last: tuple[bool, bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    which = torch.tensor(rows, dtype=torch.int64)
    tensors = [torch.randn(3, n, 5, 4, generator=generator) for n in (9, len(rows), 9)]
    formats = [torch.channels_last if on else torch.contiguous_format for on in (*last, last[0])]
    shortcut, branch, aim = (t.contiguous(memory_format=f) for t, f in zip(tensors, formats, strict=True))
    inputs = (shortcut.requires_grad_(), branch.requires_grad_())
    plain, fast = (narrow_join(shortcut, branch, which, path) for path in ("torch", "compiled"))
    torch.testing.assert_close(plain, fast)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(*(torch.autograd.grad((y * aim).sum(), inputs) for y in (plain, fast)), strict=True):
        torch.testing.assert_close(a, b)
