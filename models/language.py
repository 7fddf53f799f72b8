"""Language models as networks that answer: rows of prompt tokens in, the tokens of an answer out.

A row is a prompt (and perhaps an image), a class is the text that answers it. Training is teacher forcing: the mean
next-token cross-entropy over the answer's tokens, its end included. Asked, the model writes greedily, and what it wrote
is compared with the answers as text: lower case, without punctuation and white space.

Parameters keep the names of the model inside, with ``body.`` before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .language_answers import Matcher, answer_lengths

IGNORED = -100
"""A target that cross-entropy leaves out."""


class Layout(Protocol):
    """How rows are laid out and what classes spell.

    length: token ids in a row, the prompt with ``pad`` behind it; after them the pixels of ``image`` (channels, height,
    width; 0..255) where there is one, cut into square patches of side ``patch``. answers: int32[classes - 1, A], the
    answers' tokens, ``eos`` behind them, then ``pad``; the last class is any other text. tokenizer: its JSON.
    """

    @property
    def length(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def answers(self) -> Any: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def image(self) -> tuple[int, int, int] | None: ...
    @property
    def patch(self) -> int: ...


class Context:
    """What layers deep inside may ask of the pass they are in.

    again: whether the pass is a repetition for the backward pass (activation checkpointing), so that whoever counts
    tokens does not count them twice.
    """

    def __init__(self) -> None:
        self.again = False
        self._real: tuple[Tensor, ...] = ()

    def valid(self, batch: int, tokens: int) -> Tensor | None:
        """bool[batch, tokens]: which of the tokens that a layer sees are no padding; None where all are, or unknown."""
        return next((real for real in self._real if real.shape == (batch, tokens)), None)

    def set(self, *real: Tensor) -> None:
        """A pass begins, whose token sequences are these (each bool[B, T]; their lengths differ)."""
        self._real = real

    def repeats(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For ``torch.utils.checkpoint``: the first run as it is, the second with what is known now."""
        return nullcontext(), self._as_it_was(self._real)

    @contextmanager
    def _as_it_was(self, real: tuple[Tensor, ...]) -> Iterator[None]:
        now = self._real, self.again
        self._real, self.again = real, True
        try:
            yield
        finally:
            self._real, self.again = now


def context_of(net: nn.Module) -> Context | None:
    """That of the network, or of its body; None where neither reads tokens."""
    found = (getattr(module, "context", None) for module in (net, getattr(net, "body", None)))
    return next((context for context in found if isinstance(context, Context)), None)


@dataclass(slots=True)
class Prompts:
    """Rows taken apart. ids: int64[B, L], padding behind each prompt; lengths: int64[B], at least 1; pixels:
    float32[B, channels, height, width], 0..255, or None."""

    ids: Tensor
    lengths: Tensor
    pixels: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, layout: Layout) -> Prompts:
        """Those in packed rows, float32[B, d], cut to the longest of them."""
        ids = x[:, : layout.length].long()
        places = torch.arange(1, ids.shape[1] + 1, device=x.device)
        lengths = ((ids != layout.pad) * places).amax(1).clamp_(min=1)
        longest = int(lengths.max()) if len(x) else 1
        pixels = None
        if layout.image is not None:
            pixels = x[:, layout.length :].reshape(len(x), *layout.image)
        return cls(ids[:, :longest], lengths, pixels)

    def real(self, tokens: int, before: int = 0) -> Tensor:
        """bool[B, tokens]: which of so many places belong to the prompt, or to what stands ``before`` it."""
        return torch.arange(tokens, device=self.ids.device) < (self.lengths + before)[:, None]


class Body(Protocol):
    """How a kind of model is run; ``EncoderDecoder`` and ``Causal`` in ``language_bodies.py``."""

    def logits(self, prompts: Prompts, answers: Tensor, real: Tensor) -> Tensor:
        """float[B, A, V] for what stands at each place of answers (int64[B, A], of which bool[B, A] are real)."""
        ...

    def write(self, prompts: Prompts, most: int) -> Tensor:
        """int64[B, <= most]: the likeliest token after token; behind a row's end ``pad``."""
        ...


class LanguageNetwork(nn.Module):
    """A language model whose answers are the classes of a stream.

    body: the model, of ``transformers`` or like one of it. way: how it is run. classes: the answers and, the last one,
    any other text.
    """

    answers: Tensor
    targets: Tensor
    sizes: Tensor

    def __init__(self, body: nn.Module, way: type[Any], layout: Layout) -> None:
        super().__init__()
        self.body = body
        self.layout = layout
        self.context = Context()
        self.classes = len(layout.answers) + 1
        sizes = answer_lengths(layout.answers, layout.eos)
        inside = np.arange(layout.answers.shape[1]) < sizes[:, None]
        table = {
            "sizes": sizes,
            "answers": np.where(inside, layout.answers, layout.pad),
            "targets": np.where(inside, layout.answers, IGNORED),
        }
        for name, values in table.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.int64)), persistent=False)
        self._matcher = Matcher(layout.answers, layout.tokenizer, layout.pad, layout.eos)
        self._way = way

    @property
    def way(self) -> Body:
        """The model as something that reads and writes."""
        made: Body = self._way(self.body, self.layout, self.context)
        return made

    def longest(self, y: Tensor) -> int:
        """Tokens of the longest of these answers."""
        return int(self.sizes[y].max()) if len(y) else 1

    def forward(self, x: Tensor, y: Tensor, tokens: int | None = None) -> Tensor:
        """Logits of each answer's tokens, every token before known: float[B, A, V].

        x: float32[B, d], packed rows; y: int64[B], codes of answers (not of the last class). tokens: A, that of the
        longest answer here if left out.
        """
        most = self.longest(y) if tokens is None else tokens
        real = torch.arange(most, device=y.device) < self.sizes[y, None]
        return self.way.logits(Prompts.of(x, self.layout), self.answers[y, :most], real)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Mean next-token cross-entropy over the answers' own tokens, float32[]."""
        return _cross_entropy(z, self.targets[y, : z.shape[1]])

    def reading_loss(self, x: Tensor, cut: float, most: int = 16) -> Tensor:
        """Mean next-token cross-entropy over the prompts themselves, float32[].

        The model reads this share of each prompt (cut in 0..1) and writes what follows, ``most`` tokens at most.
        """
        whole = Prompts.of(x, self.layout)
        read = (whole.lengths * cut).long().clamp(min=1)
        most = max(1, min(most, int((whole.lengths - read).max())))
        places = read[:, None] + torch.arange(most, device=x.device)
        real = places < whole.lengths[:, None]
        follows = whole.ids.gather(1, places.clamp(max=whole.ids.shape[1] - 1))
        start = Prompts(whole.ids[:, : int(read.max())], read, whole.pixels)
        start.ids = start.ids.where(start.real(start.ids.shape[1]), self.layout.pad)
        z = self.way.logits(start, follows.where(real, self.layout.pad), real)
        return _cross_entropy(z, follows.where(real, IGNORED))

    @torch.no_grad()
    def answer(self, x: Tensor) -> Tensor:
        """The class of what the model writes for each row, the last class where it is no answer: int64[B]."""
        written = self.way.write(Prompts.of(x, self.layout), self.targets.shape[1])
        return torch.from_numpy(self._matcher.classes(written.numpy(force=True))).to(x.device)

    def checkpoint(self) -> None:
        """From now on training keeps each block's input and computes the rest of it again for the backward pass."""
        for block in _blocks(self.body):
            block.forward = _Repeated(block.forward, block, self.context)


class _Repeated:
    """A block's forward function, run again for the backward pass instead of keeping what is in between."""

    def __init__(self, run: Callable[..., Any], block: nn.Module, context: Context) -> None:
        self.run, self.block, self.context = run, block, context

    def __call__(self, *given: Any, **named: Any) -> Any:
        if not (self.block.training and torch.is_grad_enabled()):
            return self.run(*given, **named)
        return checkpoint(self.run, *given, use_reentrant=False, context_fn=self.context.repeats, **named)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What stands in the outermost lists of modules."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def by_length(x: Tensor, layout: Layout, tokens: int) -> Sequence[Tensor]:
    """int64 places of rows, shortest prompts first, in pieces of at most so many tokens (one row at least)."""
    lengths = Prompts.of(x, layout).lengths
    order = lengths.argsort(stable=True)
    pieces, first, sizes = [], 0, lengths[order].tolist()
    for i, size in enumerate(sizes):
        if i > first and (i + 1 - first) * size > tokens:
            pieces.append(order[first:i])
            first = i
    return [*pieces, order[first:]] if sizes else []


def _cross_entropy(z: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
