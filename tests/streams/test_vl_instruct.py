"""The stream vl-instruct: scenes that tell the truth, questions that need both, tokens of known kinds."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams.spec import AMBIGUOUS, OWN, PADDING, SHARED
from driftway.streams.vl_families import (
    COLOURED,
    CORNERS,
    DESCRIBED,
    FAMILIES,
    NUMBERS,
    PAIRS,
    PLACED,
    Scene,
    descriptions,
    quarter,
)
from driftway.streams.vl_instruct import Lookup, ask
from driftway.streams.vl_pictures import COLOURS, KINDS, NOTHING, Ink, ink, omniglot_file, paint

tokenizers = pytest.importorskip("tokenizers")

SMALL = {"train_rows": 40, "test_rows": 12, "source_rows": 60}
FIVE = ("count", "colour", "position", "read", "compare")
EVEN = {"count": 4, "colour": 4, "position": 4, "read": 4, "compare": 2, "match": 2}
"""How many answers there are to a picture's questions, all as often."""
CHANCE = {"count": 1 / 4, "colour": 1 / 6, "position": 1 / 4, "read": 1 / 10, "compare": 1 / 2, "match": 1 / 2}
"""How often the best constant answer to one question is right."""


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file like that of Omniglot: 136 coarse patterns, each in 20 drawings."""
    folder = tmp_path_factory.mktemp("characters")
    rng = np.random.default_rng(0)
    coarse = rng.random((136, 1, 7, 7)) < 0.4
    bits = np.kron(coarse, np.ones((15, 15), bool)) & (rng.random((136, 20, 105, 105)) < 0.9)
    np.savez(
        folder / "omniglot_small1.npz",
        x_packed=np.packbits(bits.reshape(2720, -1), axis=1),
        image_shape=np.array([105, 105]),
        character=np.repeat(np.arange(136), 20).astype(np.int16),
        character_names=np.array([f"character {k}" for k in range(136)]),
    )
    return folder


@pytest.fixture
def drawn(characters: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRIFTWAY_DATA", str(characters))
    return characters


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTWAY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def pen(drawn: Path) -> Ink:
    return ink(drawn / "omniglot_small1.npz")


def seen(scene: Scene) -> list[tuple[str, str, int]]:
    """Kind, colour and cell of every object that is not a character."""
    kinds, names = scene.kinds, list(COLOURS)
    return [(KINDS[kinds[c]], names[scene.colours[c]], c) for c in np.flatnonzero(kinds != NOTHING).tolist()]


def truth(name: str, slots: tuple[str, ...], scene: Scene) -> str:
    """The answer, found anew from what stands in the cells."""
    objects, pen = seen(scene), scene.pen
    if name == "count":
        return NUMBERS[sum((colour, kind) == slots for kind, colour, _ in objects)]
    if name == "compare":
        a, b = (sum(kind == slot for kind, _, _ in objects) for slot in slots)
        return "yes" if a > b else "no"
    if name == "match":
        shown = [int(np.argwhere(pen.characters[scene.held][:, :, 0] == scene.marks[quarter(k)[0]])[0, 0])
                 for k in range(4)]  # fmt: skip
        i, j = PAIRS[slots[0]]
        return "yes" if shown[i] == shown[j] else "no"
    if name == "read":
        ((cell,),) = [[c for kind, colour, c in objects if (kind, colour) == ("digit", slots[0])]]
        return next(NUMBERS[d] for d, places in enumerate(pen.digits[scene.held]) if scene.marks[cell] in places)
    ((colour, cell),) = [(colour, c) for kind, colour, c in objects if kind == slots[0]]
    row, column = divmod(cell, 4)
    return colour if name == "colour" else CORNERS[2 * (row // 2) + column // 2]


@pytest.mark.parametrize("name", FAMILIES)
def test_neither_the_picture_nor_the_question_tells_the_answer(name: str, pen: Ink) -> None:
    family, rng = FAMILIES[name], np.random.default_rng(1)
    by_question: dict[Any, Counter[str]] = defaultdict(Counter)
    for turn in range(700):
        scene = Scene(pen, bool(turn % 2), rng)
        facts = family.scene(scene)
        for slots, answer in facts.items():
            assert answer == truth(name, slots, scene)
            by_question[slots][answer] += 1
        told = Counter(facts.values())
        assert len(told) == EVEN[name]
        assert len(set(told.values())) == 1, "every answer to one picture is right as often"
    assert set(by_question) == set(family.slots)
    for slots, told in by_question.items():
        n = told.total()
        assert max(told.values()) / n < CHANCE[name] + 3.5 * np.sqrt(0.25 / n), slots
        assert set(told) == set(family.answers)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_wording_is_asked_and_tells_nothing(name: str, pen: Ink) -> None:
    family = FAMILIES[name]
    assert len(family.questions) == len(set(family.questions))
    asked = ask(family, 400, pen, False, np.random.default_rng(2))
    by_wording = defaultdict(Counter)
    for question, answer in zip(asked.questions, asked.answers, strict=True):
        by_wording[family.questions.index(question) // len(family.slots)][answer] += 1
    assert set(by_wording) == {0, 1, 2}
    for told in by_wording.values():
        assert max(told.values()) / told.total() < CHANCE[name] + 3.5 * np.sqrt(0.25 / told.total())


def test_the_stream(drawn: Path, table: Any, check_seek: Any) -> None:  # noqa: ARG001
    def make(**more: Any) -> Any:
        return dw.rebatch(dw.stream("vl-instruct", **(SMALL | more)), 16)

    spec = make().spec
    text = spec.text
    assert [e.name for e in spec.experiences] == list(FAMILIES)
    assert spec.notes["scenario"] == "domain"
    assert spec.n_features == text.length + 3 * 32 * 32
    assert (text.image, text.patch) == ((3, 32, 32), 8)
    assert len(text.answers) == spec.n_classes - 1
    ids, x, y = table(make(epochs=2))
    assert ids.tolist() == list(range(6 * 40 * 2))
    assert (x == np.rint(x)).all()
    assert (x >= 0).all()
    assert (x < text.limits()).all()
    assert y.max() < spec.n_classes - 1, "no row has the last class"
    tokenizer = tokenizers.Tokenizer.from_str(text.tokenizer)
    for code, row in enumerate(text.answers):
        end = row.tolist().index(text.eos)
        assert tokenizer.decode(row[:end].tolist()).strip() == spec.classes[code]
        assert (row[end + 1 :] == text.pad).all()
    for k, (e, family) in enumerate(zip(spec.experiences, FAMILIES.values(), strict=True)):
        prompts = [tokenizer.decode(row[row != text.pad].astype(int).tolist()) for row in e.x[:, : text.length]]
        assert {p.strip() for p in prompts} <= set(family.questions)
        assert {spec.classes[c] for c in e.y} <= set(family.answers)
        train = x[80 * k : 80 * (k + 1)].astype(np.float32)
        assert not (train[:, None] == e.x[None]).all(axis=2).any()
    check_seek(lambda: make(train_rows=20, epochs=2, order=("read", "match")), range(8))
    np.testing.assert_array_equal(table(make(epochs=2))[1], x)
    for other in ({"seed": 1}, {"validation": True}):
        assert not (table(make(**other))[1][:40, None] == x[None, :40]).all(axis=2).any(), other


def test_kinds_of_tokens(drawn: Path) -> None:  # noqa: ARG001
    stream = dw.stream("vl-instruct", **SMALL)
    text = stream.spec.text
    assert text.kinds is not None
    tokenizer = tokenizers.Tokenizer.from_str(text.tokenizer)
    expected = {
        "count": {"how": OWN, "number": OWN, "circles": AMBIGUOUS, "squares": OWN, "red": AMBIGUOUS, "look": SHARED},
        "colour": {"diamond": OWN, "paint": OWN, "is": SHARED, "which": AMBIGUOUS, "the": SHARED, ":": SHARED},
        "position": {"where": OWN, "heart": OWN, "in": AMBIGUOUS},
        "read": {"digit": OWN, "red": AMBIGUOUS, "picture": SHARED},
        "compare": {"more": OWN, "circles": AMBIGUOUS, "bars": OWN},
        "match": {"letters": OWN, "sign": OWN, "same": OWN, "answer": SHARED},
    }
    for k, e in enumerate(stream.spec.experiences):
        kinds = text.kinds(e.x.astype(np.float64), k)
        assert kinds.shape == (len(e.x), 16 + text.length)
        assert kinds.dtype == np.int8
        ids = e.x[:, : text.length].astype(int)
        assert ((kinds[:, 16:] == PADDING) == (ids == text.pad)).all()
        for row, found in zip(ids, kinds[:, 16:], strict=True):
            question = tokenizer.encode(tokenizer.decode(row[row != text.pad].tolist()).strip())
            assert question.ids == row[: len(question.ids)].tolist()
            for word, kind in expected[e.name].items():
                at = str(tokenizer.decode(question.ids)).strip().find(f" {word}")
                tokens = [i for i, (a, b) in enumerate(question.offsets) if at <= a and b <= at + 1 + len(word)]
                assert at < 0 or {found[i] for i in tokens} == {kind}, word
        dim = np.ptp(e.x[:, text.length :].reshape(-1, 3, 4, 8, 4, 8).mean(1), axis=(2, 4)).reshape(-1, 16) < 25
        assert (kinds[:, :16][dim] == SHARED).all(), "a patch of nothing but ground is shared"
        own = (kinds[:, :16] == OWN).sum(axis=1)
        assert (own >= 1).all() if e.name in ("colour", "position", "read", "match") else own.any()
    with pytest.raises(dw.InputError, match="only rows of this stream"):
        text.kinds(stream.spec.experiences[0].x + 1, 0)


def test_kinds_depend_on_the_families_there_are(empty: None) -> None:  # noqa: ARG001
    def patches(*order: str) -> np.ndarray:
        spec = dw.stream("vl-instruct", order=order, **SMALL).spec
        return spec.text.kinds(spec.experiences[0].x, 0)[:, :16]

    alone, beside, both = patches("count"), patches("count", "colour"), patches("count", "compare", "read")
    assert set(np.unique(alone)) == {SHARED, OWN}
    assert ((beside == OWN) == (alone == OWN)).all(), "colour asks for nothing that count asks for"
    assert (beside == AMBIGUOUS).any(), "but its shapes stand in the pictures of count"
    assert ((both == AMBIGUOUS) & (alone == OWN)).any(), "circles are compared too"
    assert ((both == OWN) & (alone == OWN)).any(), "squares are not"


def test_the_broad_mix_gives_no_answers_away(drawn: Path) -> None:  # noqa: ARG001
    spec = dw.stream("vl-instruct", **SMALL).spec
    x, y = spec.source.train()
    again, _ = spec.source.train()
    assert x.dtype == np.float32
    assert x.shape == (60, spec.n_features)
    np.testing.assert_array_equal(x, again)
    other = dw.stream("vl-instruct", seed=5, validation=True, **SMALL).spec
    np.testing.assert_array_equal(x, other.source.train()[0])
    assert other.text.tokenizer == spec.text.tokenizer
    answers = [spec.classes[c] for c in y]
    assert set(answers) <= set(DESCRIBED)
    assert {spec.classes[c] for c in spec.source.classes} == set(DESCRIBED)
    assert any("character" in a for a in answers)
    assert not {w for a in DESCRIBED for w in a.split()} & {w for c in CORNERS for w in c.split()}
    assert not set(descriptions()) & {q for family in FAMILIES.values() for q in family.questions}
    assert not [q for q in descriptions() if "tone" in q and any(f" {shape}" in q for shape in COLOURED)]
    assert not [q for q in descriptions() if "row and column" in q and any(f" {shape}" in q for shape in PLACED)]
    assert not (spec.source.test()[0][:, None] == x[None]).all(axis=2).any()
    with pytest.raises(dw.InputError, match="only rows of this stream"):
        spec.text.kinds(x, 0)


def test_without_omniglot(empty: None) -> None:  # noqa: ARG001
    stream = dw.stream("vl-instruct", **SMALL)
    assert [e.name for e in stream.spec.experiences] == list(FIVE)
    assert "left out" in stream.spec.notes["data"]
    answers = {stream.spec.classes[c] for c in stream.spec.source.train()[1]}
    assert not any("character" in a for a in answers)
    with pytest.raises(dw.InputError, match=r"match needs omniglot_small1\.npz") as caught:
        dw.stream("vl-instruct", order=("match",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"order": ("count", "count")}, "each once"),
        ({"order": "count,sing"}, "order must be some of count, colour"),
        ({"train_rows": 0}, "at least 1"),
        ({"test_rows": -1}, "at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_bad_parameters(given: dict[str, Any], words: str, empty: None) -> None:  # noqa: ARG001
    with pytest.raises(dw.InputError, match=words) as caught:
        dw.stream("vl-instruct", **(SMALL | given))
    assert "\n" not in str(caught.value)


def test_painting() -> None:
    pen = ink(None)
    marks, colours = np.full((2, 16), NOTHING), np.zeros((2, 16), np.int64)
    marks[0, 5], colours[0, 5] = pen.shapes["square"][13], list(COLOURS).index("green")
    x = paint(pen, marks, colours, np.random.default_rng(0)).reshape(2, 3, 32, 32)
    assert x.min() >= 0
    assert x.max() <= 255
    assert (np.abs(x[0, :, 11:13, 11:13] - np.array([40, 190, 60])[:, None, None]) <= 21).all()
    outside = np.delete(x[0].reshape(3, -1), np.ravel_multi_index(np.mgrid[8:16, 8:16], (32, 32)).ravel(), axis=1)
    assert np.ptp(outside) <= 12, "the ground has noise only"
    assert np.ptp(x[1]) <= 12
    shares = pen.share[np.concatenate(list(pen.shapes.values()))]
    assert ((shares >= 0) & (shares <= 1)).all()
    means = np.stack([pen.share[places].mean(0) for places in pen.shapes.values()]).reshape(len(pen.shapes), -1)
    apart = np.abs(means[:, None] - means[None]).mean(2)[~np.eye(len(means), dtype=bool)]
    assert apart.min() > 0.06, "no two shapes look alike"


def test_lookup() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (500, 40))
    lookup = Lookup(keys, np.arange(500))
    np.testing.assert_array_equal(lookup.of(keys[::-7].astype(np.float32)), np.arange(500)[::-7])
    for row, other in pairwise(keys[:20]):
        mixed = row.copy()
        mixed[:20] = other[:20]
        with pytest.raises(dw.InputError):
            lookup.of(mixed[None])


def test_plain_pictures_show_what_is_asked_for_alone(drawn: Path) -> None:  # noqa: ARG001
    pen = ink(omniglot_file())
    rng = np.random.default_rng(3)
    for name, family in FAMILIES.items():
        asked = ask(family, 60, pen, False, rng, plain=True)
        shown = [np.flatnonzero(marks != NOTHING) for marks in asked.marks]
        if name == "count":
            assert [NUMBERS[len(cells)] for cells in shown] == asked.answers
        elif name in ("colour", "position", "read"):
            assert {len(cells) for cells in shown} == {1}
        if name == "colour":
            palette = list(COLOURS)
            assert [palette[colours[cells[0]]] for colours, cells in zip(asked.colours, shown)] == asked.answers
    assert dw.stream("vl-instruct", **SMALL, plain=True).spec.source.train()[0].shape[0] == 60
