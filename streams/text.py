"""The stream ``text-cl``: tasks of a language benchmark one after the other, each asked for in words.

The setting is that of continual learning of language models: Razdaibiedina et al., Progressive prompts, ICLR 2023
(orders and 15 tasks), and Wang et al., O-LoRA, EMNLP Findings 2023 (instructions, and the files that ours are drawn
from). The wording of the instructions is ours.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .datasets import data_path
from .spec import InputError, Stream
from .text_tasks import Examples, Layout, TextTask, text_stream, together
from .tokens import Prompt

ORDERS = {
    "1": "dbpedia, amazon, yahoo, agnews",
    "2": "dbpedia, amazon, agnews, yahoo",
    "3": "yahoo, amazon, agnews, dbpedia",
    "4": "MNLI, CB, WiC, COPA, QQP, BoolQA, RTE, IMDB, yelp, amazon, SST-2, dbpedia, agnews, MultiRC, yahoo",
    "5": "MultiRC, BoolQA, WiC, MNLI, CB, COPA, QQP, RTE, IMDB, SST-2, dbpedia, agnews, yelp, amazon, yahoo",
    "6": "yelp, amazon, MNLI, CB, COPA, QQP, RTE, IMDB, SST-2, dbpedia, agnews, yahoo, MultiRC, BoolQA, WiC",
}
"""The orders of the papers. Tasks that the file does not have are left out."""
INSTRUCTIONS = {
    "TC": "What is the text about?",
    "SC": "How does the writer like it?",
    "NLI": "What does sentence 1 say of sentence 2?",
    "BoolQA": "By the passage, is the answer yes?",
    "MultiRC": "By the paragraph, is the answer right?",
    "COPA": "Which one is more likely?",
    "WiC": "Does the word mean the same in both?",
}
"""What each family of tasks is asked, in our words."""
ENDS = ("NLI", "MultiRC")
"""Families whose question stands behind a long text: what is cut is the beginning."""
LABELS = {"MNLI": ("entailment", "neutral", "contradiction")}
"""Tasks with labels that are none (MNLI's "-" where its writers did not agree): such rows are left out."""
PARTS, MIX = 7, 1
"""What the generators of the parts are seeded with: they do not depend on the stream's seed."""


@dataclass(frozen=True)
class TextCl:
    """order: of the tasks; "1" to "3" (four tasks) and "4" to "6" (fifteen) are those of the papers without the tasks
    that are not at hand, anything else is names of tasks with commas or > between them. train_rows: training rows of
    each task, every answer in its share; 0 for all. test_rows: held-out rows of each, likewise. length: tokens of a
    prompt; longer ones lose words of the text, never of the instruction and the options. epochs: passes over each
    task. vocabulary: token ids of the tokenizer that is trained here, at most. tokenizer: a tokenizer.json, or a folder
    with one, instead; empty to train one on the first task. mix: share of each of these tasks' rows that goes to
    spec.source, the broad mix to pretrain on, with all rows of the other tasks; 0 for no source. validation: judge by a
    fifth of the training rows instead of the test rows, to tune on; the broad mix and the tokenizer stay the same.
    """

    order: str = "1"
    train_rows: int = 0
    test_rows: int = 100
    length: int = 128
    epochs: int = 1
    vocabulary: int = 2000
    tokenizer: str = ""
    mix: float = 0.3
    validation: bool = False


def text_cl(params: TextCl, seed: int) -> Stream:
    """Topics, sentiment, entailment and reading, each task asked for in words and answered by the text of a label.

    A row is the tokens of instruction, options and sentence; classes are the answers of all tasks, and one for any
    other text. Drawn from 12 of the 15 tasks of the benchmark (IMDB, QQP and yahoo are not at hand), at most 1,000
    training and 400 test rows of each, so figures are not those of the papers; spec.notes["data"] has the counts. Rows
    come in an order of the seed's; which rows are the broad mix's, and the tokenizer, depend on no seed, so that one
    pretrained model serves all. In orders that do not begin with dbpedia its 14 options take 90 to 97 tokens: give a
    greater length there.
    """
    if not 0.0 <= params.mix < 1.0:
        raise InputError(f"text-cl: mix must be at least 0 and less than 1, not {params.mix:g}")
    benchmark, left_out = read_benchmark(data_path("text-cl"))
    names = ordered(params.order, list(benchmark))
    tasks, mixed = [], []
    for k, (name, task) in enumerate(benchmark.items()):
        if name not in names:
            mixed.append(task)
        elif params.mix:
            rng = np.random.default_rng([PARTS, MIX, k])
            (train, own_train), (test, own_test) = (part.parted(params.mix, rng) for part in (task.train, task.test))
            mixed.append(TextTask(name, train, test))
            tasks.append(TextTask(name, own_train, own_test))
        else:
            tasks.append(task)
    tasks.sort(key=lambda task: names.index(task.name))
    mix = together([task.train for task in mixed]), together([task.test for task in mixed])
    return text_stream(
        "text-cl",
        tasks,
        Layout(params.length, params.vocabulary, params.tokenizer),
        mix=mix if params.mix else None,
        validation=params.validation,
        epochs=params.epochs,
        train_rows=params.train_rows,
        test_rows=params.test_rows,
        seed=seed,
        notes={"data": {"tasks": names, "not here": missing(params.order, names), "left out": dict(left_out)}},
    )


def ordered(order: str, there: Sequence[str]) -> list[str]:
    """Names of tasks in their order. Raises InputError for names that are not there.

    >>> ordered("3", ["agnews", "dbpedia", "WiC", "amazon"]), ordered("wic > agnews", ["agnews", "WiC"])
    (['amazon', 'agnews', 'dbpedia'], ['WiC', 'agnews'])
    """
    if order in ORDERS:
        return [name for name in _names(ORDERS[order]) if name in there]
    by_name = {name.lower(): name for name in there}
    names = [by_name.get(name.lower(), "") for name in _names(order)]
    if not all(names) or not names or len(set(names)) < len(names):
        raise InputError(f"text-cl: order={order!r}: give 1 to 6, or some of {', '.join(there)}, each once")
    return names


def missing(order: str, names: Sequence[str]) -> list[str]:
    """The tasks of a paper's order that are not at hand."""
    return [name for name in _names(ORDERS.get(order, "")) if name not in names]


def _names(order: str) -> list[str]:
    return [name.strip() for name in order.replace(">", ",").split(",") if name.strip()]


def read_benchmark(path: Path) -> tuple[dict[str, TextTask], Counter[str]]:
    """The tasks of the file by name, and how many of its rows were left out of each. Raises InputError in one line."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    left_out: Counter[str] = Counter()
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["label"] in LABELS.get(row["task"], (row["label"],)):
                    rows.setdefault(row["task"], {"train": [], "test": []})[row["split"]].append(row)
                else:
                    left_out[row["task"]] += 1
        return {name: _task(name, splits) for name, splits in rows.items()}, left_out
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not the file that driftway data text-cl describes ({what})") from None


def _task(name: str, splits: dict[str, list[dict[str, Any]]]) -> TextTask:
    family = splits["train"][0]["family"]
    options = ", ".join(sorted({row["label"] for row in splits["train"]}))
    head, keep = f"{INSTRUCTIONS[family]} Options: {options}\n", "end" if family in ENDS else "start"
    train, test = (
        Examples(
            [Prompt(head, row["sentence"].strip(), "\nAnswer:", keep) for row in splits[split]],
            [row["label"] for row in splits[split]],
        )
        for split in ("train", "test")
    )
    return TextTask(name, train, test)
