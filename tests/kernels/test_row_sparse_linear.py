"""Layers whose weight gradient is that of chosen rows, against the plain layers they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from driftway.adapt.benchmarks import floors
from driftway.adapt.benchmarks import row_sparse_linear as bench
from driftway.models.kernels.row_choice import Choice, RowSlot
from driftway.models.kernels.row_sparse_linear import row_gradient, row_sparse_conv, row_sparse_linear, scored_linear
from driftway.models.kernels.selection import triton_works
from driftway.models.optimisers import SGD, RowSet
from torch import Tensor, nn
from torch.nn import functional as F

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel": (3,), "stride": (1,), "padding": (1,), "dilation": (1,)},
    {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
    {"kernel": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
    {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)},
    {"kernel": (2, 2, 2), "stride": (1, 1, 1), "padding": (0, 1, 0), "dilation": (1, 1, 1)},
]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_(grad)


def gradients(y: Tensor, wanted: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Of a loss that weighs outputs differently."""
    weights = random(*y.shape, seed=9, dtype=y.dtype)
    return torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True)


def compact(slot: RowSlot) -> tuple[Tensor, Tensor]:
    """The rows and their gradient."""
    index, given = slot.take()
    assert index is not None
    assert given is not None
    return index, given[0].t() @ given[1] if isinstance(given, tuple) else given


@pytest.mark.parametrize("shape", [(1, 3), (5, 7), (4, 6, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("d_out", [1, 10, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factors", [0, 100])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_is_the_plain_layer(
    shape: tuple[int, ...], d_out: int, dtype: torch.dtype, factors: int, biased: bool
) -> None:
    x, weight = random(*shape, dtype=dtype, grad=True), random(d_out, shape[-1], seed=1, dtype=dtype, grad=True)
    bias = random(d_out, seed=2, dtype=dtype, grad=True) if biased else None
    others = [x] if bias is None else [x, bias]
    slot, whole = RowSlot(Choice(0.7), factors=factors), RowSlot(Choice(0.7))
    y = row_sparse_linear(x, weight, bias, slot)
    plain = row_sparse_linear(x, weight, bias, whole, "dense")
    close: Any = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(y, F.linear(x, weight, bias), **close)
    torch.testing.assert_close(y, plain, **close)
    nothing, *found = gradients(y, [weight, *others])
    dense, *expected = gradients(plain, [weight, *others])
    assert nothing is None
    assert dense is not None
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, **close)
    index, rows = compact(slot)
    assert index.tolist() == whole.rows().tolist()
    torch.testing.assert_close(rows, dense[index], **close)


@pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=lambda g: "x".join(map(str, g["kernel"])))
@pytest.mark.parametrize("biased", [True, False])
def test_convolution_is_the_plain_layer(geometry: dict[str, Any], biased: bool) -> None:
    kernel, way = geometry["kernel"], {k: v for k, v in geometry.items() if k != "kernel"}
    x = random(3, 4, *[7] * len(kernel), dtype=torch.float64, grad=True)
    weight = random(10, 4, *kernel, seed=1, dtype=torch.float64, grad=True)
    bias = random(10, seed=2, dtype=torch.float64, grad=True) if biased else None
    others = [x] if bias is None else [x, bias]
    slot, whole = RowSlot(Choice(0.7)), RowSlot(Choice(0.7))
    y = row_sparse_conv(x, weight, bias, slot, **way)
    plain = row_sparse_conv(x, weight, bias, whole, **way, path="dense")
    expected_y = getattr(F, f"conv{len(kernel)}d")(x, weight, bias, **way)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(plain, expected_y)
    nothing, *found = gradients(y, [weight, *others])
    dense, *expected = gradients(plain, [weight, *others])
    assert nothing is None
    assert dense is not None
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)
    index, rows = compact(slot)
    assert index.tolist() == whole.rows().tolist()
    assert len(index) == 3
    torch.testing.assert_close(rows, dense[index])


def test_channels_last_convolution() -> None:
    x = random(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    weight = random(16, 8, 3, 3, seed=1).contiguous(memory_format=torch.channels_last).requires_grad_()
    way: Any = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    slot = RowSlot(Choice(0.5))
    gradients(row_sparse_conv(x, weight, None, slot, **way), [weight])
    (dense,) = gradients(F.conv2d(x, weight, padding=1), [weight])
    index, rows = compact(slot)
    assert dense is not None
    torch.testing.assert_close(rows, dense[index], rtol=1e-4, atol=1e-5)


def test_a_step_by_hand() -> None:
    """Loss = sum of outputs, every row's gradient is (4, 1); SGD with rate 0.1 moves rows 2 and 3 and no other."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-2.0, 0.0]], requires_grad=True)
    slot = RowSlot(Choice(0.5))
    loss = row_sparse_linear(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), weight, None, slot).sum()
    torch.autograd.grad(loss, weight, allow_unused=True)
    index, rows = compact(slot)
    assert index.tolist() == [2, 3]
    assert rows.tolist() == [[4.0, 1.0]] * 2
    SGD(0.1).step({"w": weight}, {"w": rows}, {"w": RowSet(index, compact=True)})
    torch.testing.assert_close(weight.detach(), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.9], [-2.4, -0.1]]))


def test_without_tokens_there_is_a_choice_and_a_gradient_of_zeros() -> None:
    slot, weight = RowSlot(Choice(0.5)), random(6, 4, seed=0, grad=True)
    for shape in ((0, 4), (2, 0, 4)):
        row_sparse_linear(random(*shape, seed=1, grad=True), weight, None, slot).sum().backward()
        rows, grad = compact(slot)
        assert rows.tolist() == [0, 1, 2]
        assert torch.equal(grad, torch.zeros(3, 4))


def test_a_layer_used_twice_adds_scores_and_gradients() -> None:
    """All passes seen before the first backward pass: the rows are those of the concatenated batch."""
    weight, slot, together = random(20, 6, grad=True), RowSlot(Choice(0.7), factors=10), RowSlot(Choice(0.7))
    a, b = random(4, 6, seed=1), random(3, 6, seed=2) * 3
    loss = (
        row_sparse_linear(a, weight, None, slot).square().sum()
        + row_sparse_linear(b, weight, None, slot).square().sum()
    )
    torch.autograd.grad(loss, weight, allow_unused=True)
    torch.autograd.grad(
        row_sparse_linear(torch.cat([a, b]), weight, None, together).square().sum(), weight, allow_unused=True
    )
    (index, rows), (index_b, rows_b) = compact(slot), compact(together)
    assert index.tolist() == index_b.tolist()
    torch.testing.assert_close(rows, rows_b, rtol=1e-5, atol=1e-5)


def test_accumulated_batches_keep_the_rows_of_the_first() -> None:
    weight, slot = random(20, 6, grad=True), RowSlot(Choice(0.7))
    a, b = random(4, 6, seed=1), random(3, 6, seed=2)
    dense = []
    for x in (a, b):
        torch.autograd.grad(row_sparse_linear(x, weight, None, slot).square().sum(), weight, allow_unused=True)
        dense.append(torch.autograd.grad(F.linear(x, weight).square().sum(), weight)[0])
    index, rows = compact(slot)
    assert index.tolist() == Choice(0.7).rows((a @ weight.t()).detach().abs().sum(0)).tolist()
    torch.testing.assert_close(rows, (dense[0] + dense[1])[index], rtol=1e-5, atol=1e-5)


def test_a_slot_starts_anew() -> None:
    weight, slot = random(4, 3, grad=True), RowSlot(Choice(0.5))
    assert slot.take() == (None, None)
    row_sparse_linear(random(2, 3), weight, None, slot)
    index, given = slot.take()
    assert index is not None
    assert given is None, "a pass without a backward pass has rows and no gradient"
    assert slot.take() == (None, None)


def test_a_gradient_may_have_a_place_of_its_own() -> None:
    """The first of a step lies there; what is added to it does not change it, nor does a gradient of other rows."""
    weight, slot = random(20, 6, grad=True), RowSlot(Choice(0.7))
    held = slot.hold(weight).fill_(torch.nan)
    for seed in (1, 2):
        x = random(9, 6, seed=seed)
        torch.autograd.grad(row_sparse_linear(x, weight, None, slot).square().sum(), weight, allow_unused=True)
        (dense,) = torch.autograd.grad(F.linear(x, weight).square().sum(), weight)
        index, rows = compact(slot)
        assert rows.data_ptr() == held.data_ptr()
        torch.testing.assert_close(held, dense[index], rtol=1e-5, atol=1e-5)
    for _ in range(2):
        torch.autograd.grad(row_sparse_linear(x, weight, None, slot).square().sum(), weight, allow_unused=True)
    index, rows = compact(slot)
    torch.testing.assert_close(rows, 2 * dense[index], rtol=1e-5, atol=1e-5)
    x[0, 0] = torch.nan
    torch.autograd.grad(row_sparse_linear(x, weight, None, slot).square().sum(), weight, allow_unused=True)
    assert compact(slot)[1].shape == (20, 6)


def test_rows_do_not_depend_on_the_loss() -> None:
    weight, x = random(20, 6, grad=True), random(4, 6, seed=1)
    chosen = []
    for scale in (1.0, -100.0):
        slot = RowSlot(Choice(0.7))
        torch.autograd.grad((row_sparse_linear(x, weight, None, slot) * scale).sum(), weight, allow_unused=True)
        chosen.append(compact(slot)[0].tolist())
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_autocast_is_that_of_the_plain_layer(layer: str) -> None:
    """Weights of float32, passes in bfloat16, also those of the gradient, which come when autocast is over."""
    shape, size = ((4, 6), (20, 6)) if layer == "linear" else ((2, 3, 6, 6), (8, 3, 3, 3))
    x, weight, bias = random(*shape, seed=1, grad=True), random(*size, grad=True), random(size[0], seed=2, grad=True)
    slot = RowSlot(Choice(0.7))
    with torch.autocast("cpu", torch.bfloat16):
        if layer == "linear":
            y, plain = row_sparse_linear(x, weight, bias, slot), F.linear(x, weight, bias)
        else:
            way: Any = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
            y, plain = row_sparse_conv(x, weight, bias, slot, **way), F.conv2d(x, weight, bias, padding=1)
    assert y.dtype is plain.dtype is torch.bfloat16
    torch.testing.assert_close(y, plain)
    nothing, *found = gradients(y, [weight, x, bias])
    dense, *expected = gradients(plain, [weight, x, bias])
    assert nothing is None
    assert dense is not None
    for a, b in zip(found, expected):
        assert a is not None
        assert a.dtype is torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    index, rows = compact(slot)
    torch.testing.assert_close(rows.float(), dense[index], rtol=0.02, atol=0.02)


def test_sums_of_short_gradients_are_kept_long() -> None:
    slot = RowSlot(Choice(0.5))
    for value in (256.0, 1.0):
        slot.give_rows(torch.full((1, 1), value, dtype=torch.bfloat16))
    slot.add(torch.ones(2))
    assert compact(slot)[1].item() == 257.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 5, 9), (1, 1, 1), (7, 33, 10), (20, 64, 3)])
def test_steps_against_float64(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """Output, score and gradient of rows; tolerance: bfloat16 2 % of sums of up to 33 products, else rounding."""
    n, d_in, d_out = shape
    x, weight, bias = random(n, d_in), random(d_out, d_in, seed=1), random(d_out, seed=2)
    grad, index = random(n, d_out, seed=3), torch.arange(0, d_out, 2)
    close: Any = {"rtol": 0.02, "atol": 0.05} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    short = [tensor.to(dtype) for tensor in (x, weight, bias, grad)]
    exact = [tensor.double() for tensor in short]
    for given in (short, [tensor.repeat_interleave(2, -1)[..., ::2] for tensor in short]):
        y, score = scored_linear(given[0], given[1], given[2])
        assert (y.dtype, score.dtype) == (dtype, torch.float32 if dtype is torch.bfloat16 else dtype)
        expected = F.linear(*exact[:3])
        torch.testing.assert_close(y.double(), expected, **close)
        torch.testing.assert_close(score.double(), expected.abs().sum(0), **close)
        for rows in (index, index[:0]):
            found = row_gradient(given[3], given[0], rows)
            torch.testing.assert_close(found.double(), (exact[3].t() @ exact[0])[rows], **close)


def test_the_dense_part_passes_gradcheck() -> None:
    """Input and bias; the weight's gradient is not autograd's."""
    x, weight = random(4, 3, dtype=torch.float64, grad=True), random(6, 3, seed=1, dtype=torch.float64)
    bias = random(6, seed=2, dtype=torch.float64, grad=True)
    image, kernel = random(2, 3, 4, 4, dtype=torch.float64, grad=True), random(6, 3, 2, 2, seed=1, dtype=torch.float64)
    way: Any = {"stride": (1, 1), "padding": (1, 0), "dilation": (1, 1)}

    def linear(x: Tensor, bias: Tensor) -> Tensor:
        return row_sparse_linear(x, weight, bias, RowSlot(Choice(0.5)))

    def conv(x: Tensor, bias: Tensor) -> Tensor:
        return row_sparse_conv(x, kernel, bias, RowSlot(Choice(0.5)), **way)

    def operator(x: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.driftway.row_sparse_linear(x, weight, bias)[0]

    assert torch.autograd.gradcheck(linear, (x, bias))
    assert torch.autograd.gradcheck(conv, (image, bias))
    assert torch.autograd.gradcheck(operator, (x, bias))


class Net(nn.Module):
    """A convolution and a linear layer with slots."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 10, 3, padding=1), nn.Linear(10, 20)
        self.slots = [RowSlot(choice), RowSlot(choice)]
        for slot, layer in zip(self.slots, (self.conv, self.linear)):
            slot.prepare(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        way: Any = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        y = row_sparse_conv(x, self.conv.weight, self.conv.bias, self.slots[0], **way).relu().mean((2, 3))
        return row_sparse_linear(y, self.linear.weight, self.linear.bias, self.slots[1])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what Dynamo itself does
@pytest.mark.parametrize("choice", [Choice(0.7), Choice(0.5, "token_l1", "bottom", block_rows=2)])
def test_a_compiled_network_is_one_graph_with_the_same_rows_and_gradients(choice: Choice) -> None:
    net, x = Net(choice), random(5, 3, 6, 6, grad=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        found = []
        for forward in (net, compiled):
            net.zero_grad()
            x.grad = None
            forward(x).square().sum().backward()
            assert net.conv.weight.grad is None
            assert net.linear.weight.grad is None
            found.append([x.grad, net.conv.bias.grad, net.linear.bias.grad])
            for slot in net.slots:
                found[-1] += compact(slot)
        for one, other in zip(*found):
            torch.testing.assert_close(one, other)


def test_a_compiled_layer_wants_a_slot_made_ready() -> None:
    layer = torch.compile(
        lambda x, weight: row_sparse_linear(x, weight, None, RowSlot(Choice(0.5))), backend="eager", fullgraph=True
    )
    with pytest.raises(Exception, match="call slot"):
        layer(random(2, 3), random(4, 3))


def test_operators_keep_their_promises() -> None:
    x, weight, bias = random(5, 3, grad=True), random(7, 3, seed=1), random(7, seed=2, grad=True)
    torch.library.opcheck(torch.ops.driftway.row_sparse_linear, (x, weight, bias))
    torch.library.opcheck(torch.ops.driftway.row_sparse_linear, (x, weight, None))
    torch.library.opcheck(torch.ops.driftway.row_gradient, (random(5, 7), random(5, 3), torch.tensor([1, 4])))


def test_its_benchmark_has_one_row_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROUNDS": 1, "ROUND_SECONDS": 0.0, "SIDE": {"cpu": 16}, "COPIED": {"cpu": 1024}}.items():
        monkeypatch.setattr(floors, name, value)
    for name, value in {"WEIGHT": (64, 32), "TOKENS": (4, 9), "WIDTH": 32, "STEP_TOKENS": 5}.items():
        monkeypatch.setattr(bench, name, {"cpu": value})
    floors.floors.cache_clear()
    rows = bench.measure("cpu")
    floors.floors.cache_clear()
    assert len({row["case"] for row in rows}) == len(rows) == 4 + 2 + 2
    assert all(row["ratio"] == pytest.approx(row["peer"] / row["ours"]) for row in rows)


INTERPRETED = """
import torch
from driftway.models.kernels import row_sparse_linear_triton as kernels, selection
from driftway.models.kernels.row_choice import Choice, RowSlot, row_score
from driftway.models.kernels.row_sparse_linear import row_gradient, row_sparse_conv, row_sparse_linear, scored_linear
assert selection.triton_works("row_sparse_linear", torch.device("cpu"))
g, empty = torch.Generator().manual_seed(0), torch.empty
kernels.torch.empty = lambda *a, **named: empty(*a, **named).fill_(torch.nan)
for dtype, close in ((torch.bfloat16, 0.03), (torch.float32, 1e-5)):
    draw = lambda *shape: torch.randn(shape, generator=g).to(dtype)
    for n, d_in, d_out in ((1, 1, 1), (70, 65, 66), (0, 3, 2), (530, 3, 5)):
        x, weight, bias, grad = draw(n, d_in), draw(d_in, d_out).t(), draw(d_out), draw(n, 2 * d_out)[:, ::2]
        for b in (bias, None):
            y, score = scored_linear(x, weight, b, "triton")
            expected, size = scored_linear(x.double(), weight.double(), None if b is None else b.double())
            torch.testing.assert_close(y.double(), expected, rtol=close, atol=4 * close)
            torch.testing.assert_close(score.double(), size, rtol=close, atol=4 * close)
        for index in (torch.arange(0, d_out, 2), torch.arange(0)):
            found = row_gradient(grad, x, index, "triton").double()
            expected = row_gradient(grad.double(), x.double(), index)
            torch.testing.assert_close(found, expected, rtol=close, atol=40 * close)
            out = empty(len(index), d_in, dtype=dtype).fill_(torch.nan)
            assert torch.equal(found, row_gradient(grad, x, index, "triton", out).double())
            assert torch.equal(found, out.double())
    for shape in ((3, 5, 7), (2, 4, 3, 3), (0, 4, 3), (1, 2, 40, 40)):
        y = draw(*shape)
        for given in (y, y.movedim(1, -1).contiguous().movedim(-1, 1)):
            torch.testing.assert_close(kernels.score(given).double(), row_score(y.double()), rtol=close, atol=close)
x, weight = torch.randn(2, 5, 6, generator=g), torch.randn(9, 6, generator=g).requires_grad_()
image, kernel = torch.randn(2, 3, 4, 4, generator=g), torch.randn(9, 3, 2, 2, generator=g).requires_grad_()
way = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
taken = []
for path in ("triton", "compact"):
    slots = RowSlot(Choice(0.7)), RowSlot(Choice(0.7))
    for y, w in ((row_sparse_linear(x, weight, None, slots[0], path), weight),
                 (row_sparse_conv(image, kernel, None, slots[1], path=path, **way), kernel)):
        torch.autograd.grad(y.square().sum(), w, allow_unused=True)
    taken.append([slot.take() for slot in slots])
for (rows, one), (same, other) in zip(*taken):
    assert torch.equal(rows, same)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
print("agrees")
"""


def test_the_triton_kernels_agree_in_the_interpreter(agrees_in_the_interpreter: Callable[..., None]) -> None:
    """With outputs full of NaN before; tolerances stated there."""
    agrees_in_the_interpreter(INTERPRETED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_triton_kernels_agree_on_a_gpu_and_can_be_captured(dtype: torch.dtype) -> None:
    assert triton_works("row_sparse_linear", torch.device("cuda"))
    x, weight = random(300, 96).to("cuda", dtype), random(200, 96, seed=1).to("cuda", dtype).requires_grad_()
    slot = RowSlot(Choice(0.7))

    def step() -> tuple[Tensor, Tensor]:
        y = row_sparse_linear(x, weight, None, slot, "triton")
        torch.autograd.grad(y.square().sum(), weight, allow_unused=True)
        return compact(slot)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
