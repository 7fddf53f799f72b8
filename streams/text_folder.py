"""A folder of jsonl files as a stream of tasks: one file, one task; every line a prompt and the answer to it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .events import Rejected
from .sources import BlockStream
from .spec import InputError
from .text_tasks import Examples, Layout, TextTask, normalised, text_stream
from .tokens import Prompt

SUFFIXES = (".jsonl", ".jsonl.gz")
PROMPT_KEYS = ("prompt", "input", "sentence", "question", "text", "instruction")
ANSWER_KEYS = ("answer", "output", "label", "target")
TRAIN = ("train", "training")
TEST = ("test", "validation", "valid", "val", "dev", "eval")
LONGEST = 200
"""Characters of an answer; longer texts are no answers that could be told apart by exact match."""
HELD_OUT = 5
"""One row in so many is held out, the last ones, where a file does not say which."""


@dataclass(frozen=True)
class FolderParams:
    """prompt_key: key of the prompt in a line; empty for the first there is of prompt, input, sentence, question, text,
    instruction. answer_key: key of the answer, likewise of answer, output, label, target. instruction: text in front
    of every prompt, which is never cut. train_rows: training rows of each task, every answer in its share; 0 for all.
    test_rows: held-out rows of each, likewise. length: tokens of a prompt; longer ones lose their end. epochs: passes
    over each task. vocabulary: token ids of the tokenizer that is trained here, at most. tokenizer: a tokenizer.json,
    or a folder with one, instead; empty to train one on the first task.
    """

    prompt_key: str = ""
    answer_key: str = ""
    instruction: str = ""
    train_rows: int = 0
    test_rows: int = 100
    length: int = 128
    epochs: int = 1
    vocabulary: int = 2000
    tokenizer: str = ""


@dataclass(slots=True)
class _Found:
    """What the files of one task hold. Rows are (prompt, answer); without a split they may still become either."""

    rows: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: {"train": [], "test": [], "": []})
    rejected: list[Rejected] = field(default_factory=list)

    def task(self, name: str, head: str) -> TextTask:
        train, test, free = (self.rows[split] for split in ("train", "test", ""))
        if not test and len(free) > 1:
            held = max(1, len(free) // HELD_OUT)
            free, test = free[:-held], free[-held:]
        return TextTask(name, _examples([*train, *free], head), _examples(test, head))


def open_folder(path: str | Path, params: FolderParams, seed: int = 0) -> BlockStream:
    """Every ``.jsonl`` (or ``.jsonl.gz``) file of a folder as a task, in the order of their names.

    Held out to judge by are the rows of ``name.test.jsonl`` beside ``name.train.jsonl``, or those whose ``split`` says
    test (or validation, dev); where nothing does, the last fifth. All tasks have held-out rows, or none. An
    ``instruction`` in a line comes before its prompt. Lines that are no JSON object, lack a key or have no usable
    answer are ``Rejected`` as the task begins. Raises InputError, in one line with file and line, for a file without
    any good line.
    """
    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
    if not files:
        raise InputError(
            f"{path}: this is a directory without .jsonl files; a stream is one file, or a folder of those"
        )
    found: dict[str, _Found] = {}
    for file in files:
        name, split = _named(file)
        _read(file, split, params, found.setdefault(name, _Found()))
    head = f"{params.instruction.strip()}\n" if params.instruction.strip() else ""
    tasks = [part.task(name, head) for name, part in found.items()]
    for task in tasks:
        if not len(task.train):
            raise InputError(f"{path}: {task.name}: there are rows to test on, but none to train on")
    unjudged = [task.name for task in tasks if not len(task.test)]
    if 0 < len(unjudged) < len(tasks):
        raise InputError(
            f"{path}: {unjudged[0]}: no row is held out to judge by, as other tasks have them: "
            f"give it {unjudged[0]}.test.jsonl, or two rows without a split"
        )
    return text_stream(
        path.name or str(path.resolve().name),
        tasks,
        Layout(params.length, params.vocabulary, params.tokenizer),
        epochs=params.epochs,
        train_rows=params.train_rows,
        test_rows=params.test_rows,
        seed=seed,
        rejected=[part.rejected for part in found.values()],
    )


def _named(file: Path) -> tuple[str, str]:
    """The task a file belongs to, and the split that its name tells ("" where it does not)."""
    name = file.name.removesuffix(".gz").removesuffix(".jsonl")
    stem, _, last = name.rpartition(".")
    split = "train" if last in TRAIN else "test" if last in TEST else ""
    return (stem, split) if stem and split else (name, "")


def _read(file: Path, split: str, params: FolderParams, found: _Found) -> None:
    """Sort the lines of one file into rows and rejected ones."""
    rejected, good, keys = [], 0, None
    for number, row in _lines(file):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            keys = keys or (
                _key(row, params.prompt_key, PROMPT_KEYS, "prompt"),
                _key(row, params.answer_key, ANSWER_KEYS, "answer"),
            )
            found.rows[split or _split(row)].append((_prompt(row, keys[0]), _answer(row, keys[1])))
            good += 1
        except ValueError as error:
            rejected.append(Rejected(number - 1, f"{file.name}, line {number}: {error}", 0.0))
    if not good:
        why = rejected[0].reason if rejected else f"{file.name}, line 1: the file is empty"
        raise InputError(f"{file.parent}: a file without any good line; {why}")
    found.rejected += rejected


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number from 1, JSON object) of the lines that are not blank, or what is wrong with one."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(line)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(row, dict):
        return "not a JSON object"
    return row if b"\\u" not in line or _is_unicode(row) else "half a character (a lone surrogate, such as \\ud800)"


def _is_unicode(value: Any) -> bool:
    """Whether all text in a JSON value can be written down; escapes may spell what is no character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _key(row: dict[str, Any], given: str, known: Sequence[str], what: str) -> str:
    """The key of prompt or answer. Raises ValueError, which says what keys there are."""
    key = next((k for k in ((given,) if given else known) if k in row), None)
    if key is None:
        wanted = f"no key {given!r}" if given else f"none of the keys {', '.join(known)}"
        raise ValueError(f"{wanted}; it has {', '.join(map(str, row)) or 'none'} ({what}_key=NAME tells which)")
    return key


def _prompt(row: dict[str, Any], key: str) -> str:
    parts = [row.get("instruction"), row.get(key)] if key != "instruction" else [row[key]]
    text = "\n".join(part.strip() for part in parts if isinstance(part, str) and part.strip())
    if not text:
        raise ValueError(f"{key}: no text" if key in row else f"no key {key!r}")
    return text


def _answer(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise ValueError(f"no key {key!r}")
    value = row[key]
    if not isinstance(value, str | int | float):
        raise ValueError(f"{key}: not a text or a number")
    answer = " ".join(str(value).split())
    if not normalised(answer):
        raise ValueError(f"{key}: no answer")
    if len(answer) > LONGEST:
        raise ValueError(f"{key}: an answer of {len(answer)} characters, more than {LONGEST}")
    return answer


def _split(row: dict[str, Any]) -> str:
    value = row.get("split")
    if value is None:
        return ""
    text = str(value).lower()
    if text not in (*TRAIN, *TEST):
        raise ValueError(f"split: {text!r} is neither train nor test")
    return "train" if text in TRAIN else "test"


def _examples(rows: Sequence[tuple[str, str]], head: str) -> Examples:
    return Examples([Prompt(head, prompt) for prompt, _ in rows], [answer for _, answer in rows])
