"""Source models that a person brings: files, published networks, functions; every misfit is one line that says what."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.cli import main
from driftway.adapt.given_source import given_source
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_recipes import NCM, RSGS, Mixture, Source, Tent
from driftway.adapt.source_model import Training, source_model
from driftway.models.inputs import Pixels
from driftway.models.networks import build
from driftway.models.vision import import_torchvision
from driftway.streams import Source as Clean
from safetensors.torch import load_file, save_file
from torch import nn

TRAINING = Training("convnet:4-8", epochs=1, batch=64)
SMALL = "shufflenet_v2_x0_5"
MODULES = """
import torch
from torch import nn
from driftway.models.networks import build

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))

def network():
    return build("convnet:4-8", (1, 8, 8), 10)

def seven():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))

def number():
    return 3

def fails():
    raise RuntimeError("no weights\\nhere")
"""


@pytest.fixture(scope="module")
def stream() -> Any:
    return dw.rebatch(dw.stream("digits-c", rows=64, kinds=("contrast",), severity=3), 32)


@pytest.fixture(scope="module")
def batches(stream: Any) -> list[dw.Batch]:
    return [e for e in stream if isinstance(e, dw.Batch)]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "brought_models.py").write_text(MODULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inputs_for(spec: dw.StreamSpec) -> Pixels:
    assert spec.shape is not None
    return Pixels(spec.shape, spec.notes["mean"], spec.notes["std"])


def trained(stream: Any) -> nn.Module:
    return source_model(stream.spec, inputs_for(stream.spec), TRAINING, keep=False, progress=lambda _: None)


def refused(name: Any, spec: dw.StreamSpec, training: Training = TRAINING) -> str:
    with pytest.raises(dw.InputError) as caught:
        given_source(str(name), spec, inputs_for(spec), training)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def adapt(one: TestTimeLearner, batches: list[dw.Batch]) -> list[Any]:
    said = []
    for batch in batches:
        said.append(one.predict(batch))
        one.adapt(batch, said[-1])
    return [p.scores for p in said]


# --- files ------------------------------------------------------------------------------------------------------


def test_a_file_is_the_model_that_was_saved(stream: Any, batches: list[dw.Batch], tmp_path: Path) -> None:
    net = trained(stream)
    path = tmp_path / "model.safetensors"
    save_file(net.state_dict(), path)
    recipe = Tent(model="convnet:4-8", source=str(path), lr=0.01)
    given, straight = TestTimeLearner(stream.spec, recipe), TestTimeLearner(stream.spec, Tent(lr=0.01), model=net)
    for mine, same in zip(adapt(given, batches), adapt(straight, batches), strict=True):
        np.testing.assert_array_equal(mine, same)


def test_the_checkpoint_of_a_run_is_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["digits-c", "--batch", "32", "--limit", "64", "--set", "model=convnet:4-8", "--set", "epochs=2"]
    assert main(["run", *command, "--learner", "tent", "--out", str(tmp_path / "run")]) == 0
    (file,) = sorted((tmp_path / "run" / "checkpoint").glob("*/learner.safetensors"))[-1:]
    weights = load_file(file)
    spec = dw.stream("digits-c").spec
    net = given_source(str(file), spec, inputs_for(spec), TRAINING)
    for name, value in net.state_dict().items():
        assert name.endswith("tracked") or torch.equal(value, weights[f"state.net.{name}"])
    capsys.readouterr()
    assert main(["run", *command, "--learner", "source", "--source", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 64
    assert main(["compare", *command, "--learners", "source,majority", "--source", str(file), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["run", *command, "--learner", "source", "--source", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("none: No such file or directory")


def test_files_that_do_not_fit_are_one_line(stream: Any, tmp_path: Path) -> None:
    net, path = trained(stream), tmp_path / "model.safetensors"
    weights = net.state_dict()
    path.write_bytes(b"nothing")
    assert f"{path}: not a safetensors file" in refused(path, stream.spec)
    save_file(weights, path)
    said = refused(path, stream.spec, Training("convnet:4-9"))
    assert said == f"{path}: model convnet:4-9 needs body.4.weight of 9x4x3x3 here, the file has 8x4x3x3"
    few = dw.stream("digits-gilcd").spec
    twelve = dw.StreamSpec("twelve", few.columns, classes=tuple("abcdefghijkl"), shape=few.shape, notes=few.notes)
    assert refused(path, twelve).endswith("needs head.weight of 12x8 here, the file has 10x8")
    save_file({k: v for k, v in weights.items() if k != "head.bias"}, path)
    assert refused(path, stream.spec).endswith("has head.bias, which is not in the file")
    save_file({**weights, "tail.weight": torch.zeros(2)}, path)
    assert refused(path, stream.spec).endswith("has no tail.weight, which is in the file")
    save_file({**weights, "head.bias": torch.full((10,), torch.nan)}, path)
    assert refused(path, stream.spec).endswith("head.bias in the file is not finite")


# --- functions --------------------------------------------------------------------------------------------------


def test_a_function_returns_any_classifier(stream: Any, batches: list[dw.Batch], modules: Path) -> None:  # noqa: ARG001
    for name, recipe in (("network", RSGS), ("plain", RSGS), ("plain", Source)):
        one = TestTimeLearner(stream.spec, recipe(source=f"brought_models:{name}"))
        assert all(np.isfinite(s).all() and s.shape == (32, 10) for s in adapt(one, batches))
        assert one.classes == 10
        if recipe is RSGS:
            assert [n.rpartition(".")[2] for n in one.moving][:2] == ["weight", "bias"]
    with pytest.raises(dw.InputError, match="source brought_models:plain has no body"):
        TestTimeLearner(dw.stream("digits-gilcd").spec, NCM(source="brought_models:plain"))
    known = TestTimeLearner(dw.stream("digits-gilcd").spec, NCM(source="brought_models:network"))
    assert known.classes == 6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("brought_models:seven", "gives (2, 7) for 2 rows, stream digits-c needs (2, 10)"),
        ("brought_models:wide", "cannot take rows of 1x8x8"),
        ("brought_models:number", "returned int, not a torch module"),
        ("brought_models:fails", "RuntimeError: no weights here"),
        ("brought_models:none", "AttributeError"),
        ("no_such_models:net", "ModuleNotFoundError: No module named 'no_such_models'"),
    ],
)
def test_functions_that_do_not_fit_are_one_line(stream: Any, modules: Path, name: str, said: str) -> None:  # noqa: ARG001
    assert said in refused(name, stream.spec)
    assert f"source {name}" in refused(name, stream.spec)


def test_a_module_without_body_and_head_adapts(stream: Any, batches: list[dw.Batch]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 10))
    one = TestTimeLearner(stream.spec, RSGS(lr=0.1, e_frac=2.0), model=net)
    adapt(one, batches)
    assert list(one.moving) == ["2.weight", "2.bias"]
    assert one.telemetry()["steps"] == len(batches)


# --- modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["source", "bn-adapt", "tent", "eata", "sar", "rsgs", "cotta", "rotta", "test-time"])
def test_every_recipe_takes_a_module_by_name(stream: Any, batches: list[dw.Batch], name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10)).eval()
    x = inputs_for(stream.spec).tensor(batches[0].x)
    wanted = torch.softmax(net(x).double(), 1).numpy(force=True)
    one = dw.learner(name, stream.spec, model=net)
    np.testing.assert_allclose(one.source_scores(batches[0]), wanted, atol=1e-6)
    adapt(one, batches[:1])


def test_classes_of_few_shots_come_from_the_body_of_a_module() -> None:
    spec = dw.stream("digits-gilcd").spec
    for name in ("ncm", "teen", "csfa", "shots-finetune"):
        known = dw.learner(name, spec, model=build("convnet:4-8", (1, 8, 8), 10))
        assert known.classes == 6


def test_rows_of_a_module_are_scaled_by_clean_rows_or_not_at_all() -> None:
    columns = (dw.Column("a"), dw.Column("b", ("n", "y")))
    x, y = np.array([[2.0, 0.0], [4.0, 1.0]], np.float32), np.array([0, 1])
    clean = Clean("clean", (0, 1), lambda: (x, y), lambda: (x, y))
    row = dw.Batch(np.array([0]), np.array([[4.0, 1.0]]), 0.0)
    for source, width, wanted in ((None, 2, [4.0, 1.0]), (clean, 3, [1.0, 0.0, 1.0])):
        spec = dw.StreamSpec("table", columns, classes=("n", "y"), source=source)
        one = dw.learner("source", spec, model=nn.Linear(width, 2))
        np.testing.assert_allclose(one.inputs.tensor(row.x), [wanted])


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("tent", nn.Linear(65, 10), "the model cannot take rows of 1x8x8"),
        (
            "tent",
            nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
            "gives (2, 7) for 2 rows, stream digits-c needs (2, 10)",
        ),
        ("tent", 3, "model must be a torch module or the name of a network, not int"),
        ("ncm", build("convnet:4", (3, 8, 8), 10), "the body of the model cannot take rows of 1x8x8"),
        ("shots-finetune", build("convnet:4", (1, 8, 8), 7), "gives (2, 7)"),
        ("er", nn.Linear(64, 10), "model must be a Network(body, head) or the name of one, not Linear"),
        ("majority", nn.Linear(64, 10), "learner 'majority' has no parameter 'model'"),
    ],
)
def test_modules_that_do_not_fit_are_one_line(stream: Any, name: str, model: Any, said: str) -> None:
    with pytest.raises(dw.InputError) as caught:
        dw.learner(name, stream.spec, model=model)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_comes_one_way(stream: Any) -> None:
    with pytest.raises(dw.InputError, match="give model or source, not both"):
        dw.learner("tent", stream.spec, model=nn.Linear(64, 10), source="model.safetensors")
    net = build("mlp:8", (64,), 10)
    assert dw.learner("er", stream.spec, model=net, memory=10).net is net


def test_what_was_asked_for_in_vain_is_said(stream: Any) -> None:
    said: list[str] = []
    for groups in (10, 99):
        few = Mixture(objective="cluster-entropy", groups=groups)
        TestTimeLearner(stream.spec, few, model=build("convnet:4", (1, 8, 8), 10), progress=said.append)
    assert said == ["cluster entropy: 10 groups, one for each class, instead of 99"]
    with pytest.raises(dw.InputError, match=r"the model has no parameters like tail\.\*, body\.99\.\*$"):
        dw.learner("test-time", stream.spec, model=build("convnet:4", (1, 8, 8), 10), scope="tail.*, body.99.*")


def test_a_source_that_does_not_stay_finite_is_refused_in_one_line(stream: Any) -> None:
    with pytest.raises(dw.InputError, match=r"^training of the source model diverged: a first step of 1e\+30 is too l"):
        TestTimeLearner(stream.spec, Tent(model="convnet:4", epochs=2, source_lr=1e30))


# --- published networks -----------------------------------------------------------------------------------------


def colours(classes: int, clean: bool = True) -> dw.StreamSpec:
    """Rows of 3 x 32 x 32."""
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 3 * 32 * 32), np.float32), np.arange(40) % 4
    return dw.StreamSpec(
        "colours",
        tuple(dw.Column(f"p{i}") for i in range(3 * 32 * 32)),
        classes=tuple(map(str, range(classes))),
        shape=(3, 32, 32),
        notes={"mean": [0.5] * 3, "std": [0.3] * 3},
        source=Clean("clean", (0, 1, 2, 3), lambda: (x, y), lambda: (x, y)) if clean else None,
    )


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache, without network."""

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    if find_spec("torchvision") is None:
        pytest.skip("needs the extra vision")
    import_torchvision()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "hub" / "checkpoints"


def test_published_weights_that_cannot_be_had_are_one_line(cached: Path) -> None:
    said = refused(f"torchvision:{SMALL}", colours(10))
    assert "published weights are neither in torch's cache nor to be fetched" in said
    assert "no route to host" in said
    assert not list(cached.glob("*"))
    assert "has no classifier 'resnet81'" in refused("torchvision:resnet81", colours(10))
    assert "images of 3 channels, not 1" in refused(f"torchvision:{SMALL}", dw.stream("digits-c").spec)


def test_published_weights_with_their_own_head_or_one_for_the_stream(cached: Path) -> None:
    from torchvision import models

    torch.manual_seed(0)
    whole = models.get_model(SMALL, weights=None).eval()
    file = models.get_weight("ShuffleNet_V2_X0_5_Weights.DEFAULT").url.rpartition("/")[2]
    cached.mkdir(parents=True)
    torch.save(whole.state_dict(), cached / file)
    said: list[str] = []

    def made(spec: dw.StreamSpec) -> nn.Module:
        return given_source(f"torchvision:{SMALL}", spec, inputs_for(spec), TRAINING, progress=said.append)

    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(made(colours(1000, clean=False))(x), whole(x))
    assert said == []
    few = made(colours(4))
    assert few(x).shape == (2, 4)
    assert len(said) == 1 + TRAINING.epochs
    assert torch.equal(made(colours(4))(x), few(x))
    assert len(said) == 1 + TRAINING.epochs, "the head was kept"
    assert "knows 1000 classes, stream colours has 4" in refused(f"torchvision:{SMALL}", colours(4, clean=False))
