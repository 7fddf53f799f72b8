"""Learners: one method, one file, one line in the table below."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from ...streams import InputError, StreamSpec
from ..learner import Learner


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table. home: ``module:Class`` in this folder. takes: what follows the name after a colon.

    given: what stands there for this name. part: the home of a part of the gradient learner; such names combine with
    ``+``. recipe: the home of the parameters, where several names share a class. classes: the home of who does it on
    streams without a vocabulary of plans.
    """

    home: str
    summary: str
    citation: str = ""
    takes: str = ""
    part: str = ""
    recipe: str = ""
    classes: str = ""
    given: str = ""

    def load(self) -> type[Learner]:
        """The class itself; its module is imported only now."""
        found: type[Learner] = _load(self.home)
        return found

    def load_part(self) -> type[Any]:
        """The class of the part it stands for."""
        found: type[Any] = _load(self.part)
        return found


def _load(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), name)


def _recipe(name: str, summary: str, citation: str = "") -> Entry:
    return Entry("test_time:TestTimeLearner", summary, citation, recipe=f"test_time_recipes:{name}")


def _clicks(kind: str, summary: str, citation: str) -> Entry:
    return Entry("ctr:ClickLearner", summary, citation, given=kind)


def _part(home: str, summary: str, citation: str = "") -> Entry:
    return Entry("gradient:GradientLearner", summary, citation, part=home)


_GAMA = "Gama, Sebastião, Rodrigues: On evaluating stream learning algorithms. Machine Learning 90, 2013"
_RIVER = "Montiel et al.: River: machine learning for streaming data in Python. JMLR 22(110), 2021"
_AVALANCHE = "Lomonaco et al.: Avalanche: an end-to-end library for continual learning. CVPR workshops, 2021"
_LOGISTIC = "Bishop: Pattern recognition and machine learning, 2006, sections 4.3.2 and 3.1.3"
_HOEFFDING = "Domingos, Hulten: Mining high-speed data streams. KDD 2000"
_DRIFTMOE = "DriftMoE: a mixture of experts approach to handle concept drifts. arXiv 2507.18464, 2025"
_ERACE = "Caccia et al.: New insights on reducing abrupt representation change in online continual learning. ICLR 2022"
_DER = "Buzzega et al.: Dark experience for general continual learning. NeurIPS 2020"
_AGEM = "Chaudhry et al.: Efficient lifelong learning with A-GEM. ICLR 2019"
_EWC = "Kirkpatrick et al.: Overcoming catastrophic forgetting. PNAS 114(13), 2017; online: Schwarz et al., ICML 2018"
_MIGU = "Du et al.: Unlocking continual learning abilities in language models. Findings of EMNLP 2024, arXiv 2406.17245"
_LORA = "Hu et al.: LoRA: low-rank adaptation of large language models. ICLR 2022"
_OLORA = "Wang et al.: Orthogonal subspace learning for language model continual learning. Findings of EMNLP 2023"
_DYMOE = "Zhao, Li, Lu, Gong: LLaVA-DyMoE. CVPR 2026, arXiv 2603.27481 (from digests and a port of its code)"
_COIN = "Chen et al.: CoIN: a benchmark of continual instruction tuning for multimodal LLMs. NeurIPS 2024"
_LWF = "Li, Hoiem: Learning without forgetting. ECCV 2016"
_ADAB2N = "Lyu et al.: Overcoming recency bias of normalization statistics in continual learning. NeurIPS 2023"
_SPARCL = "Wang et al.: SparCL: sparse continual learning on the edge. NeurIPS 2022"
_SNIP = "Lee, Ajanthan, Torr: SNIP: single-shot network pruning. ICLR 2019"
_SET = "Mocanu et al.: Scalable training of artificial neural networks. Nature Communications 9, 2018"
_RIGL = "Evci et al.: Rigging the lottery: making all tickets winners. ICML 2020"
_SCHNEIDER = "Schneider et al.: Improving robustness by covariate shift adaptation. NeurIPS 2020"
_TENT = "Wang et al.: Tent: fully test-time adaptation by entropy minimization. ICLR 2021"
_EATA = "Niu et al.: Efficient test-time model adaptation without forgetting. ICML 2022"
_SAR = "Niu et al.: Towards stable test-time adaptation in dynamic wild world. ICLR 2023"
_TEEN = "Wang et al.: Few-shot class-incremental learning via training-free prototype calibration. NeurIPS 2023"
_RSGS = "Yu, Lu, Zhang: generalized incremental learning under concept drift. arXiv 2506.05736 (from its abstract)"
_COTTA = "Wang, Fink, Van Gool, Dai: Continual test-time domain adaptation. CVPR 2022"
_ROTTA = "Yuan, Xie, Li: Robust test-time adaptation in dynamic scenarios. CVPR 2023"
_CENTAUR = "Sima et al.: Centaur: robust end-to-end autonomous driving with test-time training. arXiv 2503.11650, 2025"
_ACU = "Tang, Zhuang, Fang et al.: ACU: analytic continual unlearning. arXiv 2505.12239 v1, 2025 (from its abstract)"
_SCRUB = "Kurmanji et al.: Towards unbounded machine unlearning. NeurIPS 2023; SalUn: Fan et al., ICLR 2024"
_RELOOP = "Zhu et al.: ReLoop2: building self-adaptive recommendation models via error memory. KDD 2023"
_PLATT = "Platt: Probabilistic outputs for support vector machines. Advances in large margin classifiers, 1999"
_RENDLE = "Rendle: Factorization machines. ICDM 2010"
_DEEPFM = "Guo et al.: DeepFM: a factorization-machine based neural network for CTR prediction. IJCAI 2017"
_DCN = "Wang et al.: DCN V2: improved deep and cross network. WWW 2021"
_DIN = "Zhou et al.: Deep interest network for click-through rate prediction. KDD 2018"
_MCMAHAN = "McMahan et al.: Ad click prediction: a view from the trenches. KDD 2013"
_ER = "Chaudhry et al.: On tiny episodic memories in continual learning. arXiv 1902.10486, 2019"

LEARNERS: dict[str, Entry] = {
    "majority": Entry("majority:Majority", "the commonest class so far, or the running mean", _GAMA),
    "no-change": Entry("no_change:NoChange", "the label that came last", _GAMA),
    "logistic": Entry("logistic:Logistic", "online softmax or linear regression on standardised columns", _LOGISTIC),
    "hoeffding-tree": Entry("hoeffding_tree:HoeffdingTree", "one incremental decision tree, compiled", _HOEFFDING),
    "driftmoe": Entry("driftmoe:DriftMoE", "trees and linear experts under a router that learns on line", _DRIFTMOE),
    "avalanche": Entry(
        "avalanche_strategy:AvalancheStrategy",
        "a strategy of Avalanche that can learn as rows come",
        _AVALANCHE,
        "Strategy",
    ),
    "river": Entry("river_model:RiverModel", "any river classifier or regressor", _RIVER, "module.Class"),
    "finetune": _part("replay:Finetune", "gradient steps on the rows at hand: the lower bound"),
    "er": _part("replay:ER", "experience replay: rows of a memory beside those at hand", _ER),
    "er-ace": _part("replay:ERACE", "replay whose new rows leave the old classes alone", _ERACE),
    "derpp": _part("replay:DERpp", "replay that keeps the network's outputs too", _DER),
    "agem": _part("replay:AGEM", "gradients projected so that the past does not get worse", _AGEM),
    "joint": _part("replay:Joint", "everything ever met is kept and learnt from: the upper bound"),
    "ewc": _part("regularisers:EWC", "weights that mattered are held near where they were", _EWC),
    "lwf": _part("regularisers:LwF", "the network of the last boundary teaches the present one", _LWF),
    "adab2n": _part("adab2n:AdaB2N", "batch norms whose statistics balance old and new rows", _ADAB2N),
    "migu": _part("migu:MIGU", "only the rows of a layer whose outputs are large are updated", _MIGU),
    "lora": _part("lora:LoRA", "the network frozen, adapters of low rank beside its linear layers learn", _LORA),
    "inc-lora": _part("lora:IncLoRA", "a new adapter for every experience, earlier ones frozen", _OLORA),
    "o-lora": _part("lora:OLoRA", "the same, new adapters orthogonal to earlier ones", _OLORA),
    "moe-lora": _part("dymoe:MoELoRA", "a fixed bank of low-rank experts behind a dense router", _COIN),
    "inc-moe-lora": _part("dymoe:IncMoELoRA", "a bank of experts for every experience, a cosine router", _DYMOE),
    "dymoe-tag": _part("dymoe:DyMoETag", "the same, tokens guided to old or new experts in training", _DYMOE),
    "dymoe": _part("dymoe:DyMoE", "the same with regularised routing scores", _DYMOE),
    "sparcl": _part("sparcl:SparCL", "masks of weights, rows and gradients that follow what each task needs", _SPARCL),
    "random-mask": _part("sparse_controls:RandomMask", "a fixed random mask: the control of sparcl"),
    "magnitude-mask": _part("sparse_controls:MagnitudeMask", "a fixed mask of the largest initial weights"),
    "snip": _part("sparse_controls:SNIP", "a fixed mask chosen by the first rows' gradient", _SNIP),
    "set": _part("sparse_controls:SET", "the smallest weights leave, others are drawn", _SET),
    "rigl": _part("sparse_controls:RigL", "the smallest weights leave, those of the largest gradient come", _RIGL),
    "source": _recipe("Source", "a model trained on the stream's clean rows, as it is: the control"),
    "bn-adapt": _recipe("BatchNormAdapt", "batch norms take the statistics of the rows at hand", _SCHNEIDER),
    "tent": _recipe("Tent", "norms follow the gradient of the answers' entropy", _TENT),
    "eata": _recipe("EATA", "the entropy of confident rows that bring something new, held near the source", _EATA),
    "sar": _recipe("SAR", "the entropy of confident rows, descended where it is flat, with a way back", _SAR),
    "rsgs": _recipe("RSGS", "the same along a direction that shrinks the surrogate gap", _RSGS),
    "ncm": _recipe("NCM", "nearest class mean: new classes from a few labelled rows, nothing else adapts"),
    "teen": _recipe("TEEN", "class means of new classes drawn to the base classes they resemble", _TEEN),
    "shots-finetune": _recipe("ShotsFinetune", "gradient steps on the few labelled rows of new classes: forgets"),
    "csfa": _recipe("CSFA", "calibrated prototypes for new classes and RSGS for drift", _RSGS),
    "cotta": _recipe("CoTTA", "all weights learn from a slow teacher that looks at many views", _COTTA),
    "rotta": _recipe("RoTTA", "norms learn from a slow teacher on a balanced memory, running statistics", _ROTTA),
    "test-time": _recipe("Mixture", "a test-time method of one's own: objective, filter, step, scope, statistics"),
    "centaur": Entry(
        "centaur:Centaur",
        "a step against being torn between manoeuvres (or groups of classes), before each answer",
        _CENTAUR,
        "objective",
        classes="test_time:TestTimeLearner",
    ),
    "acu": Entry("acu:ACU", "a closed-form head that learns and truly forgets rows, classes and groups", _ACU),
    "unlearn": Entry(
        "unlearn:Unlearn",
        "a network that forgets by gradient steps, approximately: the rivals of acu",
        _SCRUB,
        "method",
    ),
    "ctr-lr": _clicks("lr", "clicks: logistic regression on hashed columns, by Adam", _MCMAHAN),
    "fm": _clicks("fm", "clicks: pairs of columns by the products of their embeddings", _RENDLE),
    "deepfm": _clicks("deepfm", "clicks: fm and a network on the same embeddings", _DEEPFM),
    "dcnv2": _clicks("dcnv2", "clicks: crosses of columns, layer by layer, beside a network", _DCN),
    "din": _clicks("din", "clicks: a network that looks back at the items of the user's last clicks", _DIN),
    "reloop2": Entry("reloop2:ReLoop2", "a memory of the errors of a learner corrects it", _RELOOP, "learner"),
    "edge": Entry("edge:Edge", "an exported bundle, as it runs on a device: driftway export makes one", "", "bundle"),
    "platt": Entry("platt:Platt", "a learner's answers scaled and shifted on line: the control", _PLATT, "learner"),
    "frozen": Entry("frozen:Frozen", "a learner that stands still after its first rows: the control", "", "learner"),
}


AROUND = ("reloop2", "platt")
"""Learners around another one: ``NAME:LEARNER``, or ``LEARNER+NAME``."""


def _unfolded(name: str) -> str:
    """``LEARNER+reloop2`` as ``reloop2:LEARNER``; other names as they are."""
    head, plus, last = name.rpartition("+")
    return f"{last}:{head}" if plus and last in AROUND else name


def find_learner(name: str) -> tuple[Entry, str]:
    """The table's entry for ``name`` and what stood after a colon; ``InputError`` with near matches if unknown."""
    head, _, rest = _unfolded(name).partition(":")
    if head not in LEARNERS:
        near = get_close_matches(head, LEARNERS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(LEARNERS)}"
        raise InputError(f"unknown learner {name!r}: {hint}")
    entry = LEARNERS[head]
    if rest and not entry.takes:
        raise InputError(f"learner {head!r} takes nothing after a colon, got {rest!r}")
    return entry, rest


def learner_class(name: str) -> type[Learner]:
    """The class behind a name; raises ``InputError`` where there is none."""
    if is_composed(name):
        from .composed import parts_of

        parts_of(name)
        return LEARNERS["finetune"].load()
    return find_learner(name)[0].load()


def is_composed(name: str) -> bool:
    """Whether the name is one part of the gradient learner, or several with ``+`` between."""
    name = _unfolded(name)
    return "+" in name.partition(":")[0] or (name in LEARNERS and bool(LEARNERS[name].part))


def learner_params(name: str) -> type[Any]:
    """The dataclass of all parameters that ``name`` takes, with their types and defaults.

    Where the name goes on after a colon (``river:...``, ``frozen:...``) it is made for what stands there, and where
    parts are put together with ``+`` it has the parameters of all of them.
    """
    if is_composed(name):
        from .composed import composed_params

        return composed_params(name)
    entry, rest = find_learner(name)
    if entry.recipe:
        shared: type[Any] = _load(entry.recipe)
        return shared
    kind = entry.load()
    made: type[Any] = kind.params_for(rest or entry.given) if entry.takes or entry.given else kind.Params  # type: ignore[attr-defined]
    return made


def make_learner(name: str, spec: StreamSpec, *, seed: int = 0, device: str = "cpu", **settings: Any) -> Learner:
    """A learner by its name in the table, for streams of this spec.

    name: one of the table, or parts of the gradient learner with ``+`` between (``er+sparcl``). settings: the learner's
    parameters; text is converted to each parameter's type, so that flags can be passed on as they are. model: of
    learners that have one, also a torch module in place of its name; the learner takes it over. Raises ``InputError``
    for an unknown name, parameter or value, for parts that cannot be combined, for a module that does not fit, and
    where the learner cannot do the stream's kind of target or the device.

    >>> from driftway.streams import Column, StreamSpec
    >>> make_learner("logistic", StreamSpec("s", (Column("a"),), classes=("n", "y")), rate="0.1").params.rate
    0.1
    """
    kind = learner_class(name)
    if spec.worth is None and not is_composed(name) and (other := find_learner(name)[0].classes):
        kind = _load(other)
    if spec.target not in kind.targets:
        does = " and ".join(sorted(kind.targets))
        raise InputError(f"learner {name!r} does {does}, stream {spec.name!r} is {spec.target}")
    if not spec.columns:
        raise InputError(f"stream {spec.name!r} has no columns to learn from")
    if device not in kind.devices:
        raise InputError(f"{name} runs on the {' or '.join(sorted(kind.devices))} only, not on {device}")
    placed: dict[str, Any] = {} if device == "cpu" else {"device": device}
    if not isinstance(settings.get("model", ""), str) and "model" in inspect.signature(kind).parameters:
        placed["model"] = settings.pop("model")
    params = read_params(learner_params(name), settings, name)
    if is_composed(name):
        from .composed import compose

        return compose(name, spec, params, seed, **placed)
    return kind(spec, params, seed, **placed)


def read_params(kind: type[Any], settings: Mapping[str, Any], name: str) -> Any:
    """The parameter dataclass filled from values or text; ``InputError`` names what does not fit."""
    import msgspec

    known = [f.name for f in fields(kind)]
    for key in settings:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes: {', '.join(known) or 'none'}"
            raise InputError(f"learner {name!r} has no parameter {key!r}: {hint}")
    try:
        return msgspec.convert(dict(settings), kind, strict=False)
    except msgspec.ValidationError as fault:
        raise InputError(f"learner {name!r}: {str(fault).replace(' - at `$.', ' for `')}") from None
