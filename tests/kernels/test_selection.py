"""Which path of an op runs."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from driftway.models.kernels import selection
from driftway.models.kernels.selection import choose, triton_works

CPU, PACKAGE = torch.device("cpu"), "driftway.models.kernels"


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    selection._probed.cache_clear()


def kernels(monkeypatch: pytest.MonkeyPatch, fault: str = "") -> list[torch.device]:
    """Stand-ins for the kernels of an op ``nothing``; the devices on which they were probed."""
    asked: list[torch.device] = []

    def probe(device: torch.device) -> None:
        asked.append(device)
        if fault:
            raise AssertionError(fault)

    module = ModuleType(f"{PACKAGE}.nothing_triton")
    module.probe = probe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_the_wish_comes_before_the_device() -> None:
    assert choose("there", "nothing", torch.zeros(1), "here", "plain") == "there"
    assert choose(None, "nothing", torch.zeros(1), "here", "plain") == "here"
    assert choose(None, "nothing", torch.zeros(1, device="meta"), "here", "plain") == "plain"


def test_kernels_that_agree_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    asked = kernels(monkeypatch)
    assert triton_works("nothing", CPU)
    assert triton_works("nothing", CPU)
    assert asked == [CPU]


def test_without_the_interpreter_a_cpu_has_no_triton_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    asked = kernels(monkeypatch)
    assert not triton_works("nothing", CPU)
    assert asked == []


def test_kernels_that_differ_or_are_missing_are_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels(monkeypatch, "mismatched elements")
    with pytest.warns(UserWarning, match="nothing runs without its Triton kernels: mismatched"):
        assert not triton_works("nothing", CPU)
    assert not triton_works("nothing", CPU)
    with pytest.warns(UserWarning, match="absent runs without its Triton kernels: No module"):
        assert not triton_works("absent", CPU)
