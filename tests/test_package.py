"""The package as a whole: what it lists, what it imports, what the checkers say of it."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("streams", "models", "evaluation", "adapt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HIDDEN = {".git", ".venv", "build", "dist", "__pycache__"}


def source_files() -> list[Path]:
    found = [p for p in ROOT.rglob("*.py") if not HIDDEN & set(p.relative_to(ROOT).parts)]
    return [p for p in found if not any(part.startswith((".", "driftway-demo")) for part in p.relative_to(ROOT).parts)]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def test_every_package_is_listed() -> None:
    """Packages are listed by name, so that a folder left out would be missing from a wheel."""
    tree = {p.parent.relative_to(ROOT) for floor in FLOORS for p in (ROOT / floor).rglob("*.py")}
    expected = {"driftway", *(".".join(("driftway", *folder.parts)) for folder in tree)}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected
    assert all((ROOT / folder / "__init__.py").exists() for folder in tree)


def test_package_data_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["package-data"]
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc", ".nbi", ".nbc") and "results" not in path.parts:
                package = ".".join(("driftway", *path.parent.relative_to(ROOT).parts))
                assert any(path.match(pattern) for pattern in listed.get(package, [])), f"{path} is in no package data"


@pytest.mark.parametrize("module", ["driftway", "driftway.streams"])
def test_import_is_light(module: str) -> None:
    """Nothing heavy comes with an import (no timing here: what is not imported costs nothing)."""
    code = f"import sys, {module}; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(python("-c", code).stdout.split())
    assert "driftway" in loaded
    assert not loaded & {
        "torch",
        "numba",
        "river",
        "pyarrow",
        "sklearn",
        "scipy",
        "matplotlib",
        "rich",
        "jinja2",
        "pandas",
    }


def test_public_names_resolve() -> None:
    import driftway as dw

    assert all(getattr(dw, name) is not None for name in dw.__all__)
    assert set(dw.__all__) <= set(dir(dw))
    with pytest.raises(AttributeError, match="nonsense"):
        dw.nonsense  # noqa: B018


def test_version_is_stated_once() -> None:
    import driftway as dw

    assert PROJECT["project"]["version"] == dw.__version__


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["-m", "ruff", "check", "--quiet", "."], id="ruff"),
        pytest.param(["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"], id="floors"),
    ],
)
def test_checker_is_content(command: list[str]) -> None:
    done = python(*command)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_types_hold(tmp_path: Path) -> None:
    """mypy on the packages under the package's own name, whatever the folder of the checkout is called."""
    (tmp_path / "driftway").symlink_to(ROOT, target_is_directory=True)
    packages = [part for floor in FLOORS for part in ("-p", f"driftway.{floor}")]
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *packages]
    env = os.environ | {"MYPYPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def modules_with_examples() -> list[str]:
    files = [p for floor in FLOORS for p in (ROOT / floor).rglob("*.py") if ">>>" in p.read_text(encoding="utf-8")]
    return sorted(
        ".".join(("driftway", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__") for p in files
    )


@pytest.mark.parametrize("module", modules_with_examples())
def test_docstring_examples_run(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_files_are_short() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in source_files()}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 500} == {}


def test_no_machine_paths() -> None:
    """Nothing that is committed knows the machine it was written on."""
    home = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|opt|mnt)/\w")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = tracked.stdout.split("\n") if tracked.returncode == 0 else [str(p) for p in source_files()]
    for name in filter(None, names):
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".jinja", "") and path.is_file():
            assert not home.search(path.read_text(encoding="utf-8", errors="ignore")), name


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(name for extra in extras for name in extra)]
    names = {re.split(r"[\[<>=!~; ]", line)[0].lower() for line in wanted} - {"driftway"}
    assert names <= pinned
    assert not any("<" in line for line in wanted), "no upper bounds"


def test_command_line_starts_light() -> None:
    """``driftway --help`` must not wait for numba, river or torch."""
    code = (
        "import sys\nfrom driftway.adapt.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('loaded', *sorted(m for m in sys.modules if '.' not in m))"
    )
    done = python("-c", code)
    loaded = set(done.stdout.split("loaded")[-1].split())
    assert done.returncode == 0, done.stderr
    assert not loaded & {"torch", "numba", "river", "pyarrow", "sklearn", "matplotlib", "jinja2"}
    assert os.fspath(ROOT) not in done.stdout.split("loaded")[0]
