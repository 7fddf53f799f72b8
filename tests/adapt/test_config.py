"""Configuration: one source of truth for flags, files and parameters."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from driftway.adapt.compare import plan
from driftway.adapt.config import RunConfig, assign, complete, convert, difference, read_toml, resolve, to_toml
from driftway.streams import InputError
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class Tree:
    grace: int = 200
    delta: float = 1e-7
    seed: int = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    noise: float = 0.1
    seed: int = 0
    table: dict[str, int] = field(default_factory=dict)


texts = st.text(st.characters(codec="utf-8"), max_size=30)
values = st.one_of(
    st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.booleans(), texts, st.lists(texts, max_size=3)
)
tables = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), values, max_size=5)


@given(stream=texts, label=st.none() | texts.filter(lambda s: s.lower() not in ("none", "null")), table=tables)
def test_toml_gives_back_the_same_configuration(stream: str, label: str | None, table: dict[str, object]) -> None:
    import tomllib

    config = RunConfig(stream=stream, label=label, learner_params=table, stream_params={"inner": {"a b": 1}})
    read = tomllib.loads(to_toml(config, "driftway run\n'x'"))
    assert read["learner_params"] == table
    assert read["stream"] == stream
    assert read["label"] == ("none" if label is None else label)
    assert read["stream_params"] == {"inner": {"a b": 1}}


def test_file_round_trip(tmp_path: Path) -> None:
    config = resolve({"stream": "sea-drift", "learner": "logistic", "limit": 500, "seed": 3}, settings=["rate=0.1"])
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    again = resolve({}, config=path)
    assert again == config
    assert again.learner_params["rate"] == 0.1
    assert difference(config, again) is None
    changed = resolve({"seed": 4}, config=path)
    assert difference(config, changed) == "seed is 3 there, 4 was asked for"
    other = replace(config, learner_params={**config.learner_params, "rate": 0.2})
    assert difference(config, other) == "learner_params.rate is 0.1 there, 0.2 was asked for"


def test_another_learner_does_not_inherit_parameters(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(resolve({"stream": "sea-drift", "learner": "logistic"}, settings=["rate=0.1"])))
    assert resolve({"learner": "majority"}, config=path).learner_params == {}


def test_settings_find_their_owner() -> None:
    assert assign(["noise=0.2", "grace = 50"], Source, Tree) == ({"noise": "0.2"}, {"grace": "50"})
    assert assign(["learner.seed=7", "stream.seed=8"], Source, Tree) == ({"seed": "8"}, {"seed": "7"})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=1", "stream.seed or learner.seed"),
        ("grcae=1", "stream: noise, seed, table; learner: grace, delta, seed, names"),
        ("grace", "expected key=value"),
        ("stream.grace=1", "no such parameter"),
    ],
)
def test_a_setting_without_one_owner_is_refused(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        assign([setting], Source, Tree)


def test_parameters_are_completed_and_converted() -> None:
    assert complete({"grace": "50", "names": "a, b"}, Tree, "learner tree") == {
        "grace": 50,
        "delta": 1e-7,
        "seed": 1,
        "names": ("a", "b"),
    }
    with pytest.raises(InputError, match="learner tree has no parameter 'grase'"):
        complete({"grase": 1}, Tree, "learner tree")
    with pytest.raises(InputError, match=r"learner tree: grace: .*'many'"):
        complete({"grace": "many"}, Tree, "learner tree")


def test_none_is_a_value_only_where_it_is_allowed() -> None:
    assert convert("none", int | None, "limit") is None
    assert convert("none", str, "name") == "none"
    assert convert("True", bool, "faithful") is True
    with pytest.raises(InputError, match="limit"):
        convert("none", int, "limit")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steam = 'digits'", "unknown key 'steam'"),
        ("learner_params = 3", "learner_params must be a table"),
        ("batch = 'many'", "batch"),
        ("batch = ", "not TOML"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as fault:
        read_toml(path)
    assert "run.toml" in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch": "0"}, "batch: must be at least 1"),
        ({"delay": "-1"}, "delay: must be at least 0"),
        ({"limit": "x"}, "limit"),
        ({"device": "tpu"}, "device: must be cpu or cuda"),
        ({"delay": "20000"}, "cannot wait"),
        ({"learner": "nonsense"}, "nonsense"),
        ({"stream": "nonsense"}, "nonsense"),
    ],
)
def test_values_out_of_range_are_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve({"stream": "sea-drift", "learner": "majority"} | given)


def test_a_setting_of_one_learner_of_a_comparison_overrules_the_others() -> None:
    configs = plan({"stream": "split-digits"}, ["finetune", "er+migu"], [0], ["er+migu.lr=0.5", "lr=0.2"])
    assert [c.learner_params["lr"] for c in configs] == [0.2, 0.5]
    with pytest.raises(InputError, match="no such parameter"):
        plan({"stream": "split-digits"}, ["finetune", "er+migu"], [0], ["er.lr=0.5"])
