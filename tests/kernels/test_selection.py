"""Which path of an op runs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path as File
from types import ModuleType

import pytest
import torch
from driftway.models.kernels import selection
from driftway.models.kernels.selection import choose, ops_on, references, triton_works

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


def test_a_graph_is_compiled_whole_around_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    asked = kernels(monkeypatch)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if triton_works("nothing", x.device) else x

    assert torch.compile(layer, fullgraph=True, backend="eager")(torch.zeros(2)).tolist() == [1, 1]
    assert asked == [CPU]


def test_references_run_inside_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    with references():
        assert choose(None, "nothing", x, "here", "plain") == "plain"
        assert choose("there", "nothing", x, "here", "plain") == "there"
        assert not ops_on()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert ops_on(), "a graph does not depend on where it was compiled"
        monkeypatch.undo()
    assert choose(None, "nothing", x, "here", "plain") == "here"


COMPILED = """
import importlib, inspect
import torch, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from driftway.models import kernels

SHORT = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16", torch.bool: "i1",
         torch.int8: "i8", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64"}
done = []

def kind(value):
    if isinstance(value, torch.Tensor):
        return "*" + SHORT[value.dtype]
    return {bool: "i1", float: "fp32"}.get(type(value)) or ("i32" if abs(value) < 2**31 else "i64")

def compile_only(self, *args, grid, warmup, **named):
    options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
    given = inspect.signature(self.fn).bind(*args, **named).arguments
    fixed = {p.name for p in self.params if p.is_constexpr}
    fixed |= {name for name, value in given.items() if value is None or (type(value) is int and value == 1)}
    signature = {name: "constexpr" if name in fixed else kind(value) for name, value in given.items()}
    source = ASTSource(self, signature=signature, constexprs={name: given[name] for name in fixed})
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    done.append(self.__name__)

triton.runtime.jit.JITFunction.run = compile_only
torch.testing.assert_close = lambda *_, **__: None
for file in sorted(Path(kernels.__file__).parent.glob("*_triton.py")):
    module = importlib.import_module(f"{kernels.__name__}.{file.stem}")
    if hasattr(module, "probe"):  # else it holds what kernels of others are made of
        module.probe(torch.device("cpu"))
    names = [name for name, value in vars(module).items() if name.endswith("_kernel")]
    assert set(names) <= set(done), (file.stem, sorted(set(names) - set(done)))
print("all", len(done) > 0)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_every_kernel_compiles_for_a_gpu_without_one() -> None:
    """What the interpreter does not see: names the compiler does not know, types that change in a loop.

    Every probe runs with launches replaced by compiling for compute capability 9.0; it reaches all kernels of its op.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300, check=False,
        env=environment, cwd=File(__file__).parent,
    )  # fmt: skip
    assert done.stdout.strip() == "all True", done.stderr[-3000:]
