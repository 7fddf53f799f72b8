"""Text as rows of token ids, and the stream ``text-cl`` on a small benchmark of its own and on the staged one."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.admission import Admission
from driftway.streams import Batch, Boundary, InputError
from driftway.streams.text_tasks import OTHER, normalised
from driftway.streams.tokens import Prompt, read_tokens, trained_tokens

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra lm")

TEXTS = ["What is it? Options: cat, dog\n", "a cat sat on the mat", "a dog ran home", "cat", "dog"] * 5
FAMILIES = {"agnews": "TC", "dbpedia": "TC", "amazon": "SC", "WiC": "WiC", "MNLI": "NLI"}
LABELS = {
    "agnews": ("Sports", "World"),
    "dbpedia": ("Film", "Village"),
    "amazon": ("negative", "positive"),
    "WiC": ("False", "True"),
    "MNLI": ("entailment", "contradiction", "-"),
}
TRAIN, TEST = 24, 12


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a benchmark of five tasks whose sentences are all different."""
    lines = []
    for task, family in FAMILIES.items():
        for split, n in (("train", TRAIN), ("test", TEST)):
            for i in range(n):
                label = LABELS[task][i % len(LABELS[task])]
                row = {"task": task, "family": family, "split": split, "label": label}
                lines.append(json.dumps(row | {"sentence": f" {task} {split} number {i}, as you see. "}))
    with gzip.open(tmp_path / "cl_text_benchmark.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    monkeypatch.setenv("DRIFTWAY_DATA", str(tmp_path))
    return tmp_path


def spelled(stream: Any, x: np.ndarray) -> list[str]:
    """The prompts of some rows as text."""
    tokenizer = tokenizers.Tokenizer.from_str(stream.spec.text.tokenizer)
    return tokenizer.decode_batch(np.asarray(x, int).tolist())


def shown(stream: Any) -> np.ndarray:
    return np.concatenate([event.x for event in stream if isinstance(event, Batch)])


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_trained_tokenizer_spells_any_text() -> None:
    tokens = trained_tokens(TEXTS, 320)
    assert (tokens.pad, tokens.eos) == (0, 1)
    assert 3 + 256 < tokens.size <= 320
    text = " zebra \N{GRINNING FACE} naïve <pad> <eos>\n\t0"
    row = tokens.rows([Prompt("", text)], 60)[0]
    assert tokens.tokenizer.decode(row.tolist()) == text
    assert not np.isin(row, [1, 2]).any(), "<eos> in a text is five letters"
    assert set(row[np.argmax(row == 0) :].tolist()) == {0}


def test_training_gives_the_same_in_another_process() -> None:
    code = (
        "import sys, hashlib\nfrom driftway.streams.tokens import trained_tokens\n"
        f"print(hashlib.sha256(trained_tokens({TEXTS!r}, 330).json.encode()).hexdigest())"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_a_prompt_is_cut_in_its_text_alone() -> None:
    tokens = trained_tokens(TEXTS, 320)
    text = " ".join(f"cat{i}" for i in range(30))
    for keep, there, gone in (("start", "cat0", "cat29"), ("end", "cat29", "cat0 ")):
        row = tokens.rows([Prompt("Options: cat, dog\n", text, "\nAnswer:", keep)], 40)[0]
        found = tokens.tokenizer.decode(row.tolist())
        assert found.startswith(" Options: cat, dog\n")
        assert found.endswith("\nAnswer:")
        assert there in found
        assert gone not in found
        assert tokens.pad not in row.tolist()
    with pytest.raises(InputError, match=r"length=4: an instruction of \d tokens leaves no room"):
        tokens.rows([Prompt("Options: cat, dog\n", text)], 4)


def test_answers_end_and_are_padded() -> None:
    tokens = trained_tokens(TEXTS, 320)
    table = tokens.answers(["dog", "a dog ran home"])
    for row, text in zip(table, (" dog", " a dog ran home")):
        end = row.tolist().index(tokens.eos)
        assert tokens.tokenizer.decode(row[:end].tolist()) == text
        assert set(row[end + 1 :].tolist()) <= {tokens.pad}
    assert table.shape[1] == 1 + list(table[1]).index(tokens.eos)


def test_answers_that_a_tokenizer_cannot_tell_apart_are_one_line(tmp_path: Path) -> None:
    """Words that it has not are all the same to it; one such word is no fault."""
    known = {"<pad>": 0, "</s>": 1, "<unk>": 2, "sky": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = read_tokens(tmp_path)
    assert tokens.answers(["sky", "green"]).tolist() == [[3, 1], [2, 1]]
    with pytest.raises(InputError, match=r"^tokenizer: the answers 'green' and 'blue' are the same to it .* trained$"):
        tokens.answers(["sky", "green", "blue"])


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="vocabulary must be at least 300, not 299"):
        trained_tokens(TEXTS, 299)


def published(folder: Path, special: list[str], **settings: Any) -> Path:
    """A folder as model makers publish it: a tokenizer that puts no blank in front of a text itself."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.enable_padding(length=99)
    tokenizer.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_published_tokenizer_says_its_special_tokens(tmp_path: Path) -> None:
    folder = published(tmp_path, ["[A]", "[B]", "</s>"], pad_token={"content": "[B]"}, eos_token="[A]")
    tokens = read_tokens(folder)
    assert (tokens.pad, tokens.eos) == (1, 0)
    assert tokens.rows([Prompt("", "dog")], 5)[0, -1] == 1, "the file's own padding is left alone"
    answer = tokens.answers(["dog"])[0]
    assert tokens.tokenizer.decode(answer.tolist()) == " dog", "spelled as it stands behind a blank"
    (folder / "tokenizer_config.json").unlink()
    again = read_tokens(folder / "tokenizer.json")
    assert (again.pad, again.eos) == (0, 2), "</s> by its name, and another special token for padding"


def test_what_a_published_tokenizer_puts_around_a_text_is_never_cut(tmp_path: Path) -> None:
    file = published(tmp_path, ["<s>", "</s>", "<pad>"]) / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save(str(file))
    tokens = read_tokens(file)
    (row,) = tokens.rows([Prompt("Q:", "a long text that is cut somewhere", " A:")], 12)
    ids = row[row != tokens.pad].tolist()
    assert (ids[0], ids[-1], len(ids)) == (0, 1, 12)
    assert tokens.tokenizer.decode(ids[1:-1]).endswith(" A:")
    assert 0 not in tokens.answers(["dog"])[0].tolist(), "an answer goes on where the prompt ends"


def test_what_is_wrong_with_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_tokens(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        read_tokens(tmp_path)
    with pytest.raises(InputError, match="no token for the end"):
        read_tokens(published(tmp_path, ["[A]"]))
    with pytest.raises(InputError, match="no special token for padding"):
        read_tokens(published(tmp_path, ["</s>"]))


@pytest.mark.usefixtures("small")
def test_the_library_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'driftway\[lm\]'"):
        dw.stream("text-cl", order="agnews")


def test_answers_are_compared_without_case_and_points() -> None:
    assert normalised(" Science, or\nTechnology! ") == "scienceortechnology"
    assert normalised("é?") == "é"
    assert [normalised(t) for t in ("-1.", "1", "1.5", "15", "- 3", "a-3")] == [
        "-1",
        "1",
        "1.5",
        "15",
        "3",
        "a3",
    ]


# --- text-cl ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_orders_of_the_papers_without_what_is_not_here() -> None:
    for order, names in {
        "1": ["dbpedia", "amazon", "agnews"],
        "3": ["amazon", "agnews", "dbpedia"],
        "4": ["MNLI", "WiC", "amazon", "dbpedia", "agnews"],
        "wic>AGNEWS": ["WiC", "agnews"],
    }.items():
        stream = dw.stream("text-cl", order=order, vocabulary=320)
        assert [e.name for e in stream.spec.experiences] == names == stream.spec.notes["data"]["tasks"]
        assert [e.name for e in stream if isinstance(e, Boundary)] == names[1:]
    assert dw.stream("text-cl", order="1").spec.notes["data"]["not here"] == ["yahoo"]
    for order in ("7", "agnews,agnews", "agnews,nothing", ""):
        with pytest.raises(InputError, match="give 1 to 6, or some of agnews, "):
            dw.stream("text-cl", order=order)


@pytest.mark.usefixtures("small")
def test_labels_that_are_none_are_left_out_and_counted() -> None:
    stream = dw.stream("text-cl", order="MNLI", mix=0)
    assert stream.spec.classes == ("entailment", "contradiction", OTHER)
    assert stream.spec.notes["data"]["left out"] == {"MNLI": (TRAIN + TEST) // 3}
    assert stream.spec.length == TRAIN * 2 // 3
    assert stream.spec.source is None


@pytest.mark.usefixtures("small")
def test_every_row_is_in_one_place() -> None:
    """What comes, what is held out, and both halves of the source: none overlap, and together they are all there is."""
    stream = dw.stream("text-cl", order="agnews,amazon", mix=0.25, test_rows=0, length=100)
    spec = stream.spec
    parts = [shown(stream), *(e.x for e in spec.experiences), spec.source.train()[0], spec.source.test()[0]]
    texts = [spelled(stream, part) for part in parts]
    flat = [text for part in texts for text in part]
    rows = 4 * (TRAIN + TEST) + (TRAIN + TEST) * 2 // 3
    assert len(flat) == len(set(flat)) == rows
    assert [len(part) for part in texts] == [36, 9, 9, 12 + 64, 6 + 32]
    for where, split in zip(texts, ("train", "test", "test", "train", "test"), strict=True):
        assert all(f"{split} number" in text for text in where)


@pytest.mark.usefixtures("small")
def test_validation_never_sees_a_test_row() -> None:
    stream = dw.stream("text-cl", order="agnews,amazon", validation=True, length=100)
    spec = stream.spec
    parts = [shown(stream), *(e.x for e in spec.experiences), spec.source.train()[0]]
    texts = [text for part in parts for text in spelled(stream, part)]
    assert all("train number" in text for text in texts)
    assert len(set(texts)) == len(texts) == 4 * TRAIN + TRAIN * 2 // 3
    plain = dw.stream("text-cl", order="agnews,amazon", length=100).spec
    assert plain.text.tokenizer == spec.text.tokenizer
    np.testing.assert_array_equal(plain.source.train()[0], spec.source.train()[0])


@pytest.mark.usefixtures("small")
def test_a_seed_changes_the_order_and_nothing_else() -> None:
    first, again, other = (dw.stream("text-cl", order="amazon,WiC", seed=seed, vocabulary=320) for seed in (0, 0, 1))
    assert first.spec.text.tokenizer == other.spec.text.tokenizer
    np.testing.assert_array_equal(first.spec.source.train()[0], other.spec.source.train()[0])
    rows = [shown(stream) for stream in (first, again, other)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(np.sort(rows[0], axis=0), np.sort(rows[2], axis=0))


@pytest.mark.usefixtures("small")
def test_rows_and_their_spec(table: Any) -> None:
    stream = dw.stream("text-cl", order="agnews,amazon", train_rows=8, test_rows=4, epochs=2, length=64)
    text, spec = stream.spec.text, stream.spec
    ids, x, y = table(stream)
    assert len(ids) == spec.length == 32
    assert x.dtype == np.float64
    assert x.shape[1] == spec.n_features == text.length == 64
    assert (x >= 0).all()
    assert (x < text.limits()).all()
    assert spec.notes["scenario"] == "domain"
    assert [(e.rows, len(e.y)) for e in spec.experiences] == [(8, 4), (8, 4)]
    assert spec.classes[-1] == OTHER
    assert text.answers.shape[0] == len(spec.classes) - 1
    decoded = tokenizers.Tokenizer.from_str(text.tokenizer).decode_batch(text.answers.tolist())
    assert [f" {name}" for name in spec.classes[:-1]] == decoded
    for prompt, code in zip(spelled(stream, x), y):
        options = prompt.split("\n")[0].split("Options: ")[1].split(", ")
        assert spec.classes[code] in options
        assert prompt.endswith("\nAnswer:")
    assert sorted(np.bincount(y[:8]))[-2:] == [4, 4], "every answer in its share"
    assert dw.stream("text-cl", order="WiC", length=64).spec.columns is spec.columns


@pytest.mark.usefixtures("small")
def test_any_event(check_seek: Any) -> None:
    check_seek(lambda: dw.stream("text-cl", order="agnews,amazon,WiC", epochs=2, vocabulary=320, length=64))


@pytest.mark.usefixtures("small")
def test_numbers_that_are_no_tokens_are_refused() -> None:
    spec = dw.stream("text-cl", order="agnews", vocabulary=320, length=64).spec
    x = np.zeros((5, 64))
    x[0, 3], x[1, 4], x[2, 0], x[3, 63] = spec.text.vocabulary, 0.5, -1, np.nan
    door, batch = Admission(spec), Batch(np.arange(5), x, 0.0, np.zeros(5, np.int64))
    assert not door.sound(batch, -1)
    assert door.sound(batch.rows(slice(4, 5)), -1)
    _, keep, faults = door.sift(batch, np.zeros(5, bool))
    assert keep.tolist() == [4]
    below = f"no whole number below {spec.text.vocabulary}"
    assert [fault.reason for fault in faults] == [
        f"column token 3: {below}",
        f"column token 4: {below}",
        f"column token 0: {below}",
        "column token 63: missing value",
    ]


@pytest.mark.usefixtures("small")
def test_streams_join_only_if_they_spell_alike() -> None:
    first, same, other = (
        dw.stream("text-cl", order="agnews", vocabulary=v, length=64, seed=s) for v, s in ((320, 0), (320, 1), (340, 0))
    )
    assert dw.concat(first, same).spec.text is first.spec.text
    with pytest.raises(InputError, match="differ in columns, target, shape or tokenizer"):
        dw.concat(first, other)


def test_bad_values_and_a_broken_file_are_one_line(small: Path) -> None:
    for params, message in (
        ({"mix": 1.0}, "mix must be"),
        ({"length": 7}, "length must be"),
        ({"test_rows": -1}, "train_rows and test_rows must be at least 0"),
        ({"length": 12}, "leaves no room"),
        ({"tokenizer": "/nowhere"}, "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            dw.stream("text-cl", order="agnews", **params)
    with gzip.open(small / "cl_text_benchmark.jsonl.gz", "wt") as file:
        file.write('{"task": "agnews"}\n')
    with pytest.raises(InputError, match="not the file that driftway data text-cl describes"):
        dw.stream("text-cl")


def test_the_staged_benchmark(data: Path) -> None:
    if not (data / "cl_text_benchmark.jsonl.gz").exists():
        pytest.skip("cl_text_benchmark.jsonl.gz is not in DRIFTWAY_DATA")
    stream = dw.stream("text-cl", order="4", train_rows=20, test_rows=10)
    assert [e.name for e in stream.spec.experiences] == stream.spec.notes["data"]["tasks"]
    assert len(stream.spec.experiences) == 12
    assert stream.spec.notes["data"]["left out"] == {"MNLI": 100}
    assert stream.spec.text.vocabulary == 2000
    for held in stream.spec.experiences:
        for prompt, code in zip(spelled(stream, held.x), held.y):
            assert stream.spec.classes[code] in prompt.split("\n")[0]
            assert prompt.endswith("\nAnswer:"), "question and options survive whatever is cut"
