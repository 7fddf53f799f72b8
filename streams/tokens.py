"""From text to rows of token ids, with a tokenizer that is trained here or was made elsewhere (extra ``lm``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .events import Array
from .spec import InputError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
"""The special tokens of a tokenizer that is trained here; their ids are 0, 1 and 2."""
SMALLEST = 300
"""Token ids of the smallest vocabulary: every byte has its own, so that any text can be spelled."""
PADS = (PAD, "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>", "<|pad|>", UNKNOWN, "[UNK]")
ENDS = ("</s>", EOS, "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "[SEP]", "<end_of_turn>")
"""Names that published tokenizers give to padding and to the end of a text, the first that is there is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What is asked. head and tail are never cut; ``text`` between them is, where a row is too short for all of it.

    keep: the end of ``text`` that stays.
    """

    head: str
    text: str
    tail: str = ""
    keep: str = "start"


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A tokenizer (``tokenizers.Tokenizer``), how many ids it has, which of them are padding and the end, and those
    that it puts before and behind a text."""

    tokenizer: Any
    size: int
    pad: int
    eos: int
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    def rows(self, prompts: Sequence[Prompt], length: int) -> Array:
        """int32[n, length]: the prompts' tokens, ``pad`` behind them. Raises InputError where no token of a text fits.

        The three parts are encoded one by one, so that the cut falls on the text alone.
        """
        fixed = sorted({part for p in prompts for part in (p.head, p.tail) if part})
        known: dict[str, list[int]] = {"": [], **dict(zip(fixed, self._encode(fixed)))}
        rows = np.full((len(prompts), length), self.pad, np.int32)
        for row, prompt, ids in zip(rows, prompts, self._encode([p.text for p in prompts])):
            head, tail = [*self.before, *known[prompt.head]], [*known[prompt.tail], *self.behind]
            room = length - len(head) - len(tail)
            if room < min(1, len(ids)):
                what = f"an instruction of {len(head) + len(tail)} tokens leaves no room for its text"
                raise InputError(f"length={length}: {what} ({prompt.head.strip()[:60]!r}); give a greater length")
            kept = ids[max(0, len(ids) - room) :] if prompt.keep == "end" else ids[:room]
            whole = [*head, *kept, *tail]
            row[: len(whole)] = whole
        return rows

    def answers(self, texts: Sequence[str]) -> Array:
        """int32[n, A]: each answer's tokens, ``eos`` behind them, then ``pad``; A is what the longest of them needs.

        An answer is spelled as it is behind a blank, whether or not the tokenizer puts one in front of a text itself.
        Raises InputError where two of them are the same tokens: no model could give the one and not the other.
        """
        plain = self.tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]
        found = [[*ids, self.eos] for ids in self._encode([f" {text}" if plain else text for text in texts])]
        first: dict[tuple[int, ...], str] = {}
        for text, ids in zip(texts, found, strict=True):
            other = first.setdefault(tuple(ids), text)
            if other is not text:
                what = f"the answers {other!r} and {text!r} are the same to it (it lacks their words, or their accents)"
                raise InputError(f"tokenizer: {what}; take another one, or leave it out to have one trained")
        table = np.full((len(texts), max(map(len, found))), self.pad, np.int32)
        for row, ids in zip(table, found, strict=True):
            row[: len(ids)] = ids
        return table

    @property
    def json(self) -> str:
        """The tokenizer, as ``tokenizers.Tokenizer.from_str`` reads it."""
        return str(self.tokenizer.to_str())

    def _encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        return (found.ids for found in self.tokenizer.encode_batch(list(texts), add_special_tokens=False))


def trained_tokens(texts: Sequence[str], vocabulary: int) -> Tokens:
    """Byte-level byte-pair encoding of at most ``vocabulary`` ids, learnt from these texts, the same for the same.

    Sennrich, Haddow, Birch: Neural machine translation of rare words with subword units, ACL 2016; on bytes: Radford
    et al., Language models are unsupervised multitask learners, 2019. Bytes are all there, so no text is unknown.
    """
    tk = _library()
    if vocabulary < SMALLEST:
        raise InputError(f"vocabulary must be at least {SMALLEST}, not {vocabulary}: every byte has a token of its own")
    tokenizer = tk.Tokenizer(tk.models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tk.decoders.ByteLevel()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS, UNKNOWN],
        initial_alphabet=sorted(tk.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _tokens(tokenizer, tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS))


def read_tokens(path: str | Path) -> Tokens:
    """The tokenizer in a file, or in the ``tokenizer.json`` of a folder, as model makers publish it.

    Padding and end are what the ``tokenizer_config.json`` beside it says, else a special token whose name is usual.
    Where there is no token for padding, another special one that is not the end stands in. Raises InputError.
    """
    tk, path = _library(), Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"tokenizer: {file}: no such file; it is written by tokenizers.Tokenizer.save")
    try:
        text = file.read_text(encoding="utf-8")
        tokenizer = tk.Tokenizer.from_str(text)
        special = [token["content"] for token in json.loads(text).get("added_tokens", ()) if token.get("special")]
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"tokenizer: {file}: not a tokenizer of the tokenizers library ({error})") from None
    settings = _settings(file.with_name("tokenizer_config.json"))
    eos = _first(tokenizer, [settings.get("eos_token"), *ENDS])
    if eos is None:
        raise InputError(f"tokenizer: {file}: no token for the end of a text; tokenizer_config.json names none either")
    others = [name for name in special if tokenizer.token_to_id(name) != eos]
    pad = _first(tokenizer, [settings.get("pad_token"), *(name for name in (*PADS, *others) if name in others)])
    if pad is None or pad == eos:
        raise InputError(f"tokenizer: {file}: no special token for padding but the one that ends a text")
    return _tokens(tokenizer, pad, eos)


def _tokens(tokenizer: Any, pad: int, eos: int) -> Tokens:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "<pad>" in a text is five letters, not a token
    framed = tokenizer.encode("a", add_special_tokens=True)
    inside = [i for i, special in enumerate(framed.special_tokens_mask) if not special]
    before, behind = (framed.ids[: inside[0]], framed.ids[inside[-1] + 1 :]) if inside else ([], [])
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    return Tokens(tokenizer, size, pad, eos, tuple(before), tuple(behind))


def _settings(path: Path) -> dict[str, str]:
    """Names of special tokens; empty where the file says nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    named = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in named.items() if isinstance(value, str)}


def _first(tokenizer: Any, names: Sequence[str | None]) -> int | None:
    found = (tokenizer.token_to_id(name) for name in names if name)
    return next((token for token in found if token is not None), None)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise InputError("text streams need the tokenizers library: pip install 'driftway[lm]'") from None
    return tokenizers
