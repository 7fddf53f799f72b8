"""The table of built-in streams, and the one way to open any of them, a file, or a data set of river by name."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from .files import SUFFIXES, FileParams, open_file, suffix_of
from .spec import InputError, Stream


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One line of the table. home: ``module:function`` in this folder, called with (params, seed).

    params: ``Class`` of its parameters in the same module. dataset: its line in ``datasets.DATASETS``, if it reads one.
    """

    home: str
    summary: str
    citation: str = ""
    params: str = "Nothing"
    dataset: str | None = None

    def load(self) -> tuple[Any, type[Any]]:
        """The function and the class of its parameters; their module is imported only now."""
        module, _, name = self.home.partition(":")
        found = importlib.import_module(f".{module}", __package__)
        return getattr(found, name), getattr(found, self.params)


_DRIFTMOE = "after Aspis et al.: DriftMoE, arXiv 2507.18464, 2025"
_LOSING = "Losing, Hammer, Wersing: KNN classifier with self adjusting memory. ICDM 2016"
_STREET = "Street, Kim: A streaming ensemble algorithm (SEA) for large-scale classification. KDD 2001"
_UCI = "UCI Machine Learning Repository"


def _staged(name: str, summary: str, citation: str, params: str = "Nothing") -> StreamEntry:
    return StreamEntry(f"staged:{name.replace('-', '_')}", summary, citation, params, name)


_MNIST = "LeCun, Bottou, Bengio, Haffner: Proceedings of the IEEE 86(11), 1998"
_FASHION = "Xiao, Rasul, Vollgraf: Fashion-MNIST. arXiv 1708.07747, 2017"


def _tasks(name: str, summary: str, citation: str, params: str, dataset: str | None) -> StreamEntry:
    return StreamEntry(f"image_tasks:{name.replace('-', '_')}", summary, citation, params, dataset)


_HENDRYCKS = "Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions. ICLR 2019"
_CIFAR = "Krizhevsky: Learning multiple layers of features from tiny images, 2009"
_OCR = "Alpaydin, Kaynak: Optical recognition of handwritten digits, 1998 (in scikit-learn)"


def _shifts(name: str, summary: str, citation: str, dataset: str | None, params: str = "Corrupted") -> StreamEntry:
    return StreamEntry(f"image_shifts:{name.replace('-', '_')}", summary, citation, params, dataset)


_YU = "setting: Yu, Lu, Zhang, arXiv 2506.05736, 2025"


def _few_shots(name: str, summary: str, citation: str, dataset: str | None, params: str = "Gilcd") -> StreamEntry:
    return StreamEntry(f"gilcd:{name.replace('-', '_')}", summary, f"{_YU}; {citation}", params, dataset)


def _clicks(name: str, summary: str, citation: str, params: str = "Clicks") -> StreamEntry:
    return StreamEntry(f"clicks:{name.replace('-', '_')}", summary, citation, params, name)


STREAMS: dict[str, StreamEntry] = {
    "digits": StreamEntry(
        "generators:digits",
        "real handwritten digits whose sensor fails abruptly, gradually, and again; needs no download",
        _OCR,
        "Digits",
    ),
    "two-regimes": StreamEntry(
        "generators:two_regimes",
        "one of two linear rules, by the sign of x0: made for routing",
        _DRIFTMOE,
        "TwoRegimes",
    ),
    "sea-drift": StreamEntry("synthetic:sea_drift", "SEA concepts 8, 9, 9.5, 8", _STREET, "Drifting"),
    "led-drift": StreamEntry(
        "synthetic:led_drift",
        "digits on a faulty LED display, 1 to 7 segments swapped",
        "Breiman et al.: CART, 1984",
        "Drifting",
    ),
    "agrawal-drift": StreamEntry(
        "synthetic:agrawal_drift",
        "loan decisions by four rules in turn",
        "Agrawal et al.: IEEE TKDE 5(6), 1993",
        "Drifting",
    ),
    "rbf-drift": StreamEntry(
        "synthetic:rbf_drift", "moving Gaussian blobs", "Bifet et al.: MOA. JMLR 11, 2010", "Moving"
    ),
    "hyperplane": StreamEntry(
        "synthetic:hyperplane", "a turning hyperplane", "Hulten et al.: CVFDT. KDD 2001", "Moving"
    ),
    "split-digits": _tasks(
        "split-digits",
        "the same digits in five experiences of two classes; needs no download",
        _OCR,
        "Split",
        None,
    ),
    "split-mnist": _tasks("split-mnist", "MNIST in five experiences of two classes", _MNIST, "Split", "mnist"),
    "permuted-mnist": _tasks(
        "permuted-mnist", "MNIST, its pixels in another order in each experience", _MNIST, "Permuted", "mnist"
    ),
    "rotated-mnist": _tasks(
        "rotated-mnist", "MNIST, turned 9 degrees further in each of 20 experiences", _MNIST, "Rotated", "mnist"
    ),
    "split-fashion": _tasks(
        "split-fashion", "Fashion-MNIST in five experiences of two classes", _FASHION, "Split", "fashion"
    ),
    "split-cifar10": _tasks(
        "split-cifar10",
        "CIFAR-10 in five experiences of two classes",
        _CIFAR,
        "SplitCifar10",
        "cifar10",
    ),
    "mnist-fashion": _tasks(
        "mnist-fashion",
        "MNIST, then Fashion-MNIST under the same ten labels",
        f"{_MNIST}; {_FASHION}",
        "Domains",
        "fashion",
    ),
    "digits-c": _shifts(
        "digits-c",
        "the same digits under the 15 corruptions of CIFAR-C; needs no download",
        f"{_HENDRYCKS}; {_OCR}",
        None,
    ),
    "mnist-c": _shifts("mnist-c", "MNIST under the 15 corruptions of CIFAR-C", f"{_HENDRYCKS}; {_MNIST}", "mnist"),
    "fashion-c": _shifts(
        "fashion-c", "Fashion-MNIST under the 15 corruptions of CIFAR-C", f"{_HENDRYCKS}; {_FASHION}", "fashion"
    ),
    "cifar10-c": _shifts(
        "cifar10-c",
        "CIFAR-10 under the 15 corruptions of CIFAR-C, made here",
        f"{_HENDRYCKS}; {_CIFAR}",
        "cifar10",
        "CorruptedCifar10",
    ),
    "domain-shift": StreamEntry(
        "domain_shift:domain_shift",
        "from one image file (source) to another (target), both npz",
        "no data of its own",
        "Domains",
    ),
    "digits-gilcd": _few_shots(
        "digits-gilcd", "digits: new classes from five shots each, then unlabelled drift; needs no download", _OCR, None
    ),
    "mnist-gilcd": _few_shots(
        "mnist-gilcd", "MNIST: new classes from five shots each, then unlabelled drift", _MNIST, "mnist"
    ),
    "omniglot-gilcd": _few_shots(
        "omniglot-gilcd",
        "100 handwritten characters: new classes from five shots each, then unlabelled drift",
        "Lake, Salakhutdinov, Tenenbaum: Science 350(6266), 2015",
        None,
        "OmniglotGilcd",
    ),
    "ctr-drift": StreamEntry(
        "clicks:ctr_drift",
        "synthetic clicks whose weights turn; clean rows for a base model; needs no download",
        "setting: Zhu et al.: ReLoop2. KDD 2023; the stream is ours",
        "CtrDrift",
    ),
    "movielens": _clicks(
        "movielens",
        "100,000 film ratings by time; 4 or 5 is a click",
        "Harper, Konstan: The MovieLens datasets. TiiS 2015",
    ),
    "criteo": _clicks("criteo", "7,200 display ads, 13 counts and 26 categories", "Criteo, Kaggle 2014"),
    "avazu": _clicks("avazu", "8,087 mobile ads of one hour", "Avazu, Kaggle 2014"),
    "frappe": _clicks(
        "frappe",
        "86,582 uses of apps and drawn ones, in random order",
        "Baltrunas et al.: Frappe. arXiv 1505.03014, 2015",
    ),
    "diginetica": _clicks(
        "diginetica", "12,391 views of goods, each beside a drawn item, by time", "CIKM Cup 2016, a sample"
    ),
    "open-bandit": _clicks(
        "open-bandit",
        "10,000 impressions of a fashion shop by a known policy, 46 clicks",
        "Saito et al.: Open bandit dataset and pipeline. NeurIPS datasets 2021",
        "OpenBandit",
    ),
    "driving": StreamEntry(
        "driving_stream:driving",
        "a car that plans every half second in scenes whose view has shifted; needs no download",
        "setting: Sima et al.: Centaur, arXiv 2503.11650, 2025; Dauner et al.: NAVSIM, NeurIPS 2024",
        "Driving",
    ),
    "text-cl": StreamEntry(
        "text:text_cl",
        "tasks of a language benchmark (topics, sentiment, entailment, reading), asked for in words",
        "Razdaibiedina et al.: Progressive prompts. ICLR 2023; Wang et al.: O-LoRA. Findings of EMNLP 2023",
        "TextCl",
        "text-cl",
    ),
    "vl-instruct": StreamEntry(
        "vl_instruct:vl_instruct",
        "questions about small pictures, a family of tasks at a time; needs no download",
        "setting: Chen et al.: CoIN. NeurIPS datasets 2024; the stream is ours",
        "VlInstruct",
    ),
    "electricity": _staged(
        "electricity", "45,312 half-hours of an electricity market: price up or down", "Harries 1999"
    ),
    "covertype": _staged(
        "covertype", "20,000 squares of forest, 54 columns, 7 kinds of cover", f"Blackard 1998, {_UCI}"
    ),
    "airlines": _staged(
        "airlines", "43,978 US flights 1987-2008: late or not", "US Bureau of Transportation Statistics"
    ),
    "gas-sensors": _staged(
        "gas-sensors", "6,697 readings of 128 ageing gas sensors, 6 gases", f"Vergara et al. 2012, {_UCI}"
    ),
    "outdoor": _staged("outdoor", "4,000 views of 40 garden objects", "Losing, Hammer, Wersing: IJCNN 2015"),
    "keystroke": _staged("keystroke", "1,600 typing samples of 4 people", "Souza et al.: SDM 2015"),
    "sea": _staged("sea", "SEA concepts as a file: 50,000 rows, a drift every 12,500", _STREET),
    "spam": _staged(
        "spam", "9,324 mails in time order, their most frequent words", "Katakis et al.: ECAI 2008", "Spam"
    ),
    "kdd99": _staged("kdd99", "494,021 network connections, 23 classes in long runs", f"KDD Cup 1999, {_UCI}"),
    "employment": _staged(
        "employment", "277,677 census answers 2015-2018: employed or not", "US Census PUMS, via NannyML"
    ),
    "interchanging-rbf": _staged("interchanging-rbf", "15 Gaussians that change places every 3,000 rows", _LOSING),
    "moving-squares": _staged("moving-squares", "four squares that move on at every row", _LOSING),
    "chessboard": _staged("chessboard", "a chessboard shown field by field: only P(x) drifts", _LOSING),
    "bike-sharing": _staged("bike-sharing", "17,379 hours of bike hire (regression)", f"Fanaee-T, Gama 2013, {_UCI}"),
    "etth1": _staged(
        "etth1", "17,420 hours of a transformer's oil temperature (regression)", "Zhou et al.: Informer. AAAI 2021"
    ),
}


def open_stream(name: str | Path, *, seed: int = 0, label: str | int | None = None, **params: Any) -> Stream:
    """A stream by name (see ``STREAMS``), by path (``.csv .tsv .jsonl`` with or without ``.gz``, ``.parquet .npz``, or
    a folder of ``.jsonl`` files: tasks of text), or ``river:...``.

    label: name or number of the label's column, for files. params: parameters of the stream (``describe(name)`` lists
    them); text is converted to each parameter's type. seed: of everything that is random in the stream. Raises
    InputError in one line for unknown names and parameters, values that do not fit, and data that is not there.

    >>> stream = open_stream("two-regimes", n="1000", seed=1)
    >>> stream.spec.length, stream.spec.n_features
    (1000, 9)
    """
    text = os.fspath(name)
    if text in STREAMS or text.startswith("river:"):
        if label is not None:
            raise InputError(f"{text}: label is for files; this stream has its own")
        if text.startswith("river:"):
            from .river_data import open_river

            return open_river(text, seed=seed, settings=params)
        build, kind = STREAMS[text].load()
        return build(read_params(kind, params, text), seed)
    if os.path.isdir(text):
        from .text_folder import FolderParams, open_folder

        if label is not None:
            raise InputError(f"{text}: label is for files; a folder has answer_key")
        return open_folder(text, read_params(FolderParams, params, text), seed)
    if isinstance(name, Path) or _is_path(text):
        return open_file(text, label=label, params=read_params(FileParams, params, text))
    near = get_close_matches(text, STREAMS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(STREAMS)}, river:NAME, and paths"
    raise InputError(f"unknown stream {text!r}: {hint}")


def _is_path(text: str) -> bool:
    """Whether a name that is in no table is meant as a file."""
    return os.sep in text or "/" in text or suffix_of(Path(text)) in SUFFIXES or os.path.exists(text)


def stream_params(name: str) -> type[Any] | None:
    """The class of a stream's parameters; None for river's, whose classes say themselves what they take."""
    if name in STREAMS:
        return STREAMS[name].load()[1]
    if os.path.isdir(name):
        from .text_folder import FolderParams

        return FolderParams
    return None if name.startswith("river:") else FileParams


def read_params(kind: type[Any], given: Mapping[str, Any], owner: str) -> Any:
    """A parameter dataclass from values or text. Raises InputError that names what does not fit and what there is."""
    import msgspec

    known = get_type_hints(kind)
    values = {}
    for key, value in given.items():
        if key not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"{owner}: unknown parameter {key!r}; {there}")
        if isinstance(value, str) and str(known[key]).startswith("tuple"):
            value = [part.strip() for part in value.split(",") if part.strip()]
        try:
            values[key] = msgspec.convert(value, known[key], strict=False)
        except msgspec.ValidationError as error:
            raise InputError(f"{owner}: {key}={value!r}: {error}") from None
    return kind(**values)


def describe(name: str) -> dict[str, Any]:
    """What there is to know of a stream without opening it: summary, text, citation, data set, parameters.

    ``parameters`` is a list of ``{name, type, default, doc}``. For a path or a ``river:`` name it tells of the kind.
    Raises InputError for an unknown name.
    """
    if name not in STREAMS:
        if not (name.startswith("river:") or _is_path(name)):
            open_stream(name)  # says what is wrong with the name
        kind = stream_params(name)
        words = {None: "a data set or generator of river; n ends it", FileParams: "a file"}
        return _description(name, words.get(kind, "a folder of jsonl files: tasks of text"), "", "", None, kind)
    entry = STREAMS[name]
    build, kind = entry.load()
    return _description(name, entry.summary, build.__doc__ or "", entry.citation, entry.dataset, kind)


def _description(name: str, summary: str, text: str, citation: str, dataset: str | None, kind: Any) -> dict[str, Any]:
    text = "\n".join(line.strip() for line in text.strip().splitlines())
    parameters: list[dict[str, Any]] = []
    if kind is not None:
        docs, defaults = _field_docs(kind), asdict(kind())
        parameters = [
            {"name": f.name, "type": str(f.type), "default": defaults[f.name], "doc": docs.get(f.name, "")}
            for f in fields(kind)
        ]
    return {
        "name": name,
        "summary": summary,
        "text": text,
        "citation": citation,
        "dataset": dataset,
        "parameters": parameters,
    }


def _field_docs(kind: type[Any]) -> dict[str, str]:
    """Sentences of the class docstring that begin with ``name:`` (or ``name, name:``), by name."""
    text = " ".join((kind.__doc__ or "").split())
    names = "|".join(f.name for f in fields(kind)) or "-"
    parts = re.split(rf"(?:^|(?<=\. ))((?:{names})(?:, (?:{names}))*): ", text)
    return {n: doc.strip() for group, doc in zip(parts[1::2], parts[2::2], strict=True) for n in group.split(", ")}
