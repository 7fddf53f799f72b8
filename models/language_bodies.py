"""How the two kinds of language models are run: encoder with decoder (T5), and decoder alone (Llama, Qwen2, LLaVA).

Both calculate on as few tokens as there are: prompts are cut to the longest one at hand, logits are taken where an
answer stands and nowhere else, and writing keeps keys and values. Padding never changes a result: an encoder is told
which tokens are real; in a causal sequence the answer stands right behind its prompt and all padding after both, where
no real token looks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .language import Context, Layout, Prompts


class EncoderDecoder:
    """The encoder reads the prompt, the decoder writes the answer."""

    def __init__(self, body: nn.Module, layout: Layout, context: Context) -> None:
        self.body: Any = body
        self.layout, self.context = layout, context

    def logits(self, prompts: Prompts, answers: Tensor, real: Tensor) -> Tensor:
        ids, known = self._read(prompts, answers.shape[1])
        self.context.set(known, real)
        before = torch.cat([self._start(len(ids), ids.device), answers[:, :-1]], 1)
        z: Tensor = self.body(
            input_ids=ids, attention_mask=_unless_all(known), decoder_input_ids=before, use_cache=False
        ).logits
        return z

    def write(self, prompts: Prompts, most: int) -> Tensor:
        from transformers import DynamicCache, EncoderDecoderCache

        ids, known = self._read(prompts, 1)
        self.context.set(known)
        mask = _unless_all(known)
        read = self.body.get_encoder()(input_ids=ids, attention_mask=mask)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def step(last: Tensor | None) -> Tensor:
            before = self._start(len(ids), ids.device) if last is None else last
            z: Tensor = self.body(
                encoder_outputs=read,
                attention_mask=mask,
                decoder_input_ids=before,
                past_key_values=cache,
                use_cache=True,
            ).logits
            return z[:, -1]

        return greedy(step, len(ids), most, self.layout, ids.device)

    def _read(self, prompts: Prompts, answer: int) -> tuple[Tensor, Tensor]:
        """Ids and which are real; one place longer where they would be taken for the answer's."""
        ids = prompts.ids
        if ids.shape[1] == answer:
            ids = nn.functional.pad(ids, (0, 1), value=self.layout.pad)
        return ids, prompts.real(ids.shape[1])

    def _start(self, rows: int, device: torch.device) -> Tensor:
        first = self.body.config.decoder_start_token_id
        return torch.full((rows, 1), self.layout.pad if first is None else first, device=device)


class Causal:
    """One sequence: patches of the image where there is one, the prompt, the answer."""

    def __init__(self, body: nn.Module, layout: Layout, context: Context) -> None:
        outer: Any = body
        model: Any = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
        self.inner, self.head = model.base_model, model.get_output_embeddings()
        self.config = model.config
        self.layout, self.context = layout, context

    def logits(self, prompts: Prompts, answers: Tensor, real: Tensor) -> Tensor:
        size = prompts.lengths
        steps = torch.arange(answers.shape[1], device=size.device)
        ids = nn.functional.pad(prompts.ids, (0, len(steps) - 1), value=self.layout.pad)
        ids = ids.scatter(1, size[:, None] + steps[:-1], answers[:, :-1])
        hidden = self._hidden(prompts, ids, real.sum(1) - 1)
        places = self._before + size[:, None] - 1 + steps
        z: Tensor = self.head(hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2])))
        return z

    def write(self, prompts: Prompts, most: int) -> Tensor:
        from transformers import DynamicCache

        cache = DynamicCache()
        rows, width, before = len(prompts.ids), prompts.ids.shape[1], self._before
        gaps = None if bool((prompts.lengths == width).all()) else prompts.real(before + width, before)
        place = before + prompts.lengths[:, None] - 1

        def step(last: Tensor | None) -> Tensor:
            nonlocal gaps, place
            if last is None:
                hidden = self._hidden(prompts, prompts.ids, torch.zeros_like(prompts.lengths), cache)
                hidden = hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[2]))
            else:
                self.context.set()
                place = place + 1
                gaps = None if gaps is None else nn.functional.pad(gaps, (0, 1), value=True)
                hidden = self.inner(
                    input_ids=last, attention_mask=gaps, position_ids=place, past_key_values=cache, use_cache=True
                ).last_hidden_state
            z: Tensor = self.head(hidden)
            return z[:, -1]

        return greedy(step, rows, most, self.layout, prompts.ids.device)

    def _hidden(self, prompts: Prompts, ids: Tensor, more: Tensor, cache: Any = None) -> Tensor:
        """float[B, T, width], patches included. more: int64[B], tokens that stand behind each prompt."""
        before = self._before
        given: dict[str, Any] = {}
        if prompts.pixels is not None:
            marks = ids.new_full((len(ids), before), self.config.image_token_id)
            ids = torch.cat([marks, ids], 1)
            mean, std = (ids.new_tensor(values, dtype=torch.float32)[:, None, None] for values in self._moments())
            given["pixel_values"] = ((prompts.pixels / 255 - mean) / std).to(self.head.weight.dtype)
        places = torch.arange(ids.shape[1], device=ids.device)
        self.context.set(places < (before + prompts.lengths + more)[:, None])
        out = self.inner(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **given)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _moments(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel that the vision tower expects of pixels in 0..1."""
        half = [0.5] * 3
        return getattr(self.config, "image_mean", half), getattr(self.config, "image_std", half)

    @property
    def _before(self) -> int:
        """Places of the image's patches."""
        if self.layout.image is None:
            return 0
        _, height, across = self.layout.image
        return (height // self.layout.patch) * (across // self.layout.patch)


def greedy(step: Any, rows: int, most: int, layout: Layout, device: torch.device) -> Tensor:
    """The likeliest token after token, until every row has ended or has ``most``: int64[rows, <= most].

    step: what the last tokens (int64[rows, 1], None at first) make of the next: float[rows, V]. Behind a row's end
    stands ``pad``.
    """
    written: list[Tensor] = []
    ended = torch.zeros((rows, 1), dtype=torch.bool, device=device)
    last: Tensor | None = None
    while len(written) < most:
        last = step(last).argmax(1, keepdim=True).masked_fill(ended, layout.pad)
        written.append(last)
        ended = ended | (last == layout.eos)
        if bool(ended.all()):
            break
    return torch.cat(written, 1)


def _unless_all(real: Tensor) -> Tensor | None:
    """None where no token is padding: attention is faster without a mask."""
    return None if bool(real.all()) else real
