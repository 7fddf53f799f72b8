"""Learning a network by gradient steps on a stream, out of parts that combine freely.

One update: the rows at hand, the policy's loss (with or without rows out of a memory), the techniques' penalties, the
gradient, what the techniques make of it, the optimiser's update. Nothing is ever reset silently: the optimiser's
moments are part of the state and live as long as the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.inputs import Columns, Pixels, Tokens
from ...models.kernels.inference_linear import Linear
from ...models.networks import Network, build, grow_head, load_tensors, tensors_of
from ...models.optimisers import SGD, AdamW, Only, Optimiser, grow_slots
from ...streams import Array, Batch, Boundary, InputError, StreamSpec
from ..learner import Learner, Prediction, State
from ..pretraining import Pretraining
from .language import check_written, text_network, written_probe
from .memory import Memory
from .parts import Active, Loss, Part, Rows, check_parts
from .passes import Passes, Precision
from .replay import Finetune

PROBED_AT_ONCE = 1 << 20
"""Numbers of an evaluation set that go through the network in one piece: 340 images of 3x32x32, all of small sets."""


class GradientLearner(Learner):
    """A network, an optimiser, a replay policy and techniques.

    replay: the policy, plain fine-tuning if left out. techniques: in the order in which they act. model: a network of
    one's own instead of the named one (``Network(body, head)``, on language streams also a model of ``transformers``);
    the learner takes it over.

    >>> import driftway as dw
    >>> spec = dw.stream("split-digits").spec
    >>> learner = GradientLearner(spec, replay=dw.ER(memory=100), seed=3)
    >>> learner.net.head.weight.shape
    torch.Size([10, 400])
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classification"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    @dataclass(frozen=True)
    class Params:
        """Settings of the step."""

        model: str = "auto"
        """mlp, convnet, resnet18 (sizes after a colon: mlp:400-400, resnet18:20) or torchvision:NAME; on language
        streams t5, llama, qwen2, llava, roberta (t5:128-2-4: width, layers, heads) or a folder. auto: mlp, or t5."""
        norm: Literal["batch", "group", "continual", "none"] = "batch"
        """Normalisation in the body, where it has any."""
        optimizer: Literal["auto", "sgd", "adamw"] = "auto"
        """Rule of the update; auto: sgd, on language streams adamw."""
        lr: float = 0.0
        """Learning rate; 0: 0.1 for sgd, 0.001 for adamw."""
        momentum: float = 0.0
        """Momentum of SGD."""
        weight_decay: float = 0.0
        """Weight decay."""
        passes: int = 1
        """Updates for every batch."""
        joint: bool = True
        """Rows at hand and replayed rows in one forward pass; false: each in its own (it matters to batch norm)."""
        single_head: bool = False
        """The loss of the rows at hand sees the classes of their own experience only."""
        head_only: bool = False
        """Train the head and leave the body as it is."""
        clip: float = 0.0
        """Largest norm of the whole gradient after masking; 0: no limit."""
        split_gradients: bool = False
        """Tell the norms of the plasticity and the stability part of the gradient, and their cosine (costs a pass)."""
        pretrain: int = 0
        """Updates on a language stream's source before it begins, kept for other runs."""
        pretrain_lr: float = 0.001
        """Highest learning rate of those."""
        pretrain_seed: int = 0
        """Seed of those and of the weights before them: runs of several seeds share the model."""
        micro_batch: int = 0
        """Most rows in memory at once; each pass over more goes in pieces, at the price of another forward pass."""
        checkpointing: bool = False
        """Keep the inputs of a language model's blocks only, and compute the rest again for the backward pass."""
        precision: Precision = "float32"
        """autocast: passes in bfloat16, weights in float32; bfloat16: weights too."""

        def __post_init__(self) -> None:
            if not (self.lr >= 0 and 0 <= self.momentum < 1 and min(self.weight_decay, self.clip) >= 0):
                raise ValueError("lr must be at least 0, momentum in 0..1, weight_decay and clip at least 0")
            if self.passes < 1:
                raise ValueError("passes must be at least 1")
            if min(self.pretrain, self.micro_batch) < 0 or self.pretrain_lr <= 0:
                raise ValueError("pretrain and micro_batch must be at least 0, pretrain_lr above 0")

    def __init__(
        self,
        spec: StreamSpec,
        params: Params | None = None,
        seed: int = 0,
        *,
        replay: Part | None = None,
        techniques: Sequence[Part] = (),
        model: torch.nn.Module | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(spec, params, seed)
        policy: Part = Finetune() if replay is None else replay
        check_parts([policy, *techniques])
        self.needs = frozenset({"labels"}).union(policy.needs, *(t.needs for t in techniques))
        if device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"device {device}: PyTorch finds none on this machine")
        self.device = torch.device(device)
        self.task = self.seen = self.updates = 0
        self.inputs = inputs_of(spec)
        self.by_task = spec.notes.get("scenario") == "task"
        if self.by_task:
            self.needs |= {"boundaries"}
        self.experience_classes = _classes_of_experiences(spec)
        self.net = self._network(model)
        self.net.to(self.device).eval()
        p = self.params
        self.through = Passes(self.net, p.micro_batch, p.checkpointing, p.precision, self.device)
        self.writes = self.through.writes
        """Whether the network writes its answers, and has no scores of classes."""
        if self.writes:
            check_written([type(part).__name__ for part in (policy, *techniques)], spec, p)
        self.optimiser = self._optimiser()
        self.memory: Memory | None = None
        """Rows of the past, where the policy keeps any."""
        self.said: Tensor | None = None
        """What the network last said of the rows at hand in training mode, float32[B, C] with its graph."""
        self._body_version = 0
        self._split = dict.fromkeys(("gradient_plasticity", "gradient_stability", "gradient_cosine"), 0.0)
        self.techniques: list[Active] = []
        self.techniques = [t.start(self) for t in techniques]
        self.policy = policy.start(self)
        self.rebuilt()

    def _network(self, own: torch.nn.Module | None) -> Any:
        p, spec = self.params, self.spec
        classes = max(2, spec.n_classes or 0)
        if spec.text is not None:
            plan = Pretraining(p.pretrain, p.pretrain_lr, p.pretrain_seed)
            return text_network(spec, p.model if own is None else own, classes, self.seed, plan)
        if p.pretrain:
            raise InputError(f"pretrain is for language streams, and {spec.name} is none: leave it at 0")
        if own is not None:
            if not isinstance(own, Network):
                raise InputError(f"model must be a Network(body, head) or the name of one, not {type(own).__name__}")
            return own
        try:
            return build(
                "mlp" if p.model == "auto" else p.model, self.inputs.shape, classes, norm=p.norm, seed=self.seed
            )
        except ValueError as fault:
            raise InputError(f"{fault}") from None

    def _optimiser(self) -> Optimiser:
        p = self.params
        rule = p.optimizer if p.optimizer != "auto" else "sgd" if self.spec.text is None else "adamw"
        if rule == "sgd":
            return SGD(p.lr or 0.1, p.momentum, p.weight_decay, seed=self.seed)
        return AdamW(p.lr or 1e-3, weight_decay=p.weight_decay, seed=self.seed)

    @property
    def classes(self) -> int:
        """How many classes the network knows."""
        known: int = self.net.classes if self.writes else self.net.head.out_features
        return known

    def rebuilt(self) -> None:
        """Call after parameters of the network were replaced by others."""
        self.weights = dict(self.net.named_parameters())
        self._modules = list(self.net.modules())
        chosen = [n for n, w in self.weights.items() if w.requires_grad]
        self._trained = [n for n in chosen if not self.params.head_only or n.startswith("head.")]
        for part in self.techniques:
            part.rebuilt()

    # --- answers ------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        if self.writes:
            return Prediction(written_probe(self.net, self._tensor(batch.x), self.through.around)().argmax(1))
        with torch.inference_mode(), self.through.around():
            z = self.net(self.through.cast(self._tensor(batch.x)))
            if self.by_task:
                z = z.masked_fill(~self.experience_classes[self.task].to(z.device), -torch.inf)
            scores = torch.softmax(z.double(), 1).numpy(force=True)
        return Prediction(scores.argmax(1), scores)

    def probe(self, x: Array) -> Callable[[], Array]:
        kept = self.through.cast(self._tensor(x)) if self.inputs.fixed else None
        if self.writes:
            assert kept is not None
            return written_probe(self.net, kept, self.through.around)
        features: Tensor | None = None
        version = -1

        def score() -> Array:
            nonlocal features, version
            with torch.inference_mode(), self.through.around():
                rows = self.through.cast(self._tensor(x)) if kept is None else kept
                if not self.params.head_only:
                    return _in_pieces(self.net, rows).float().numpy(force=True)
                if features is None or version != self._body_version or kept is None:
                    features = _in_pieces(self.net.body, rows)
                    version = self._body_version
                return self.net.head(features).float().numpy(force=True)

        return score

    def version(self) -> int | None:
        return self.updates if self.inputs.fixed else None

    def predicting(self) -> list[Array] | None:
        if not self.inputs.fixed:
            return None  # answers depend on the running scale of the columns as well
        if any(part.reshapes for part in self.techniques):
            return None
        found = [t.detach() for t in tensors_of(self.net).values()]
        return [(t.view(torch.int16) if t.dtype is torch.bfloat16 else t).numpy(force=True) for t in found]

    # --- learning -----------------------------------------------------------------------------------------------

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert isinstance(batch.x, np.ndarray)
        self.inputs.observe(batch.x)
        now = self._rows(batch)
        if self.writes:
            now = now.keep(now.y < self.classes - 1)  # any other text: there is nothing to learn from it
        for part in self.techniques:
            keep = part.choose(now)
            now = now if keep is None else now.keep(keep)
        self.seen += len(batch)
        if not len(now):
            return
        self._mode(training=True)
        for _ in range(self.params.passes):
            self._update(now)
        self._mode(training=False)
        for part in (*self.techniques, self.policy):
            part.learnt(now)

    def _mode(self, *, training: bool) -> None:
        """``net.train(training)``, but past the setter of every module: it would cost a tenth of a small step."""
        for module in self._modules:
            vars(module)["training"] = training

    def _update(self, now: Rows) -> None:
        loss = self.policy.loss(now)
        for part in self.techniques:
            loss = add_stability(loss, part.penalty(now))
        grads = self._gradients(loss)
        only: dict[str, Only] = {}
        for part in (*self.techniques, self.policy):
            part.gradients(grads, only)
        if self.params.clip:
            clip_gradients(grads, self.params.clip)
        self.optimiser.step(self.weights, grads, only)
        self.updates += 1
        self._body_version += not self.params.head_only
        for part in (*self.techniques, self.policy):
            part.after_step(now)

    def logits(self, *rows: Rows) -> list[Tensor]:
        """The network's outputs in training mode for each part, in one pass, or each in its own: float32[B, C], or
        float32[B, A, V] of one that writes (A tokens of an answer)."""
        groups = [rows] if self.params.joint else [(part,) for part in rows]
        out: list[Tensor] = []
        for group in groups:
            for technique in self.techniques:
                technique.before_forward(group)
            one = len(group) == 1
            x = group[0].x if one else torch.cat([part.x for part in group])
            y = group[0].y if one else torch.cat([part.y for part in group])
            z = self.outputs(x, y)
            out += [z] if one else z.split([len(part) for part in group])
        self.said = next((z for z, part in zip(out, rows) if part.current), self.said)
        return out

    def outputs(self, x: Tensor, y: Tensor) -> Tensor:
        """One pass, in whatever mode the network is. y: int64[B], which only a network that writes reads."""
        if not self.params.head_only:
            return self.through.run(x, y)
        with self.through.around():
            with torch.no_grad():
                features = self.net.body.eval()(self.through.cast(x))
            z: Tensor = self.net.head(features)
        return z

    def recall(self, n: int) -> Rows | None:
        """n rows out of the memory (fewer while it has fewer), on the learner's device; None while it is empty."""
        return None if self.memory is None else self.memory.draw(n, self.device)

    def remember(self, rows: Rows, logits: Tensor | None = None) -> None:
        """Offer rows to the memory."""
        if self.memory is not None:
            self.memory.insert(rows, logits)

    def cross_entropy(self, z: Tensor, rows: Rows) -> Tensor:
        """Mean cross-entropy (of the answers' tokens, where the network writes); over the classes of each row's own
        experience where the scenario (or ``single_head``, for rows at hand) says so."""
        if self.writes:
            loss: Tensor = self.net.loss(z, rows.y)
            return loss
        z = z.float()
        if self.by_task or (self.params.single_head and rows.current):
            z = z.masked_fill(~self.own_classes(rows, z.shape[1]), -torch.inf)
        return F.cross_entropy(z, rows.y)

    def own_classes(self, rows: Rows, classes: int) -> Tensor:
        """bool[B or 1, C]: the classes of each row's experience; those present in the rows where no more is known."""
        if len(self.experience_classes) and "boundaries" in self.needs:
            return self.experience_classes.to(rows.y.device)[rows.task]
        present = torch.zeros((1, classes), dtype=torch.bool, device=rows.y.device)
        present[0, rows.y] = True
        return present

    def gradients_of(self, loss: Tensor) -> dict[str, Tensor | None]:
        """The gradient of a loss by every trained parameter's name; None where the loss does not depend on it."""
        weights = [self.weights[n] for n in self._trained]
        return dict(zip(self._trained, torch.autograd.grad(loss, weights, allow_unused=True)))

    def _gradients(self, loss: Loss) -> dict[str, Tensor | None]:
        total = loss.total()
        if total is None:
            return {}
        return self._gradients_apart(loss) if self.params.split_gradients else self.gradients_of(total)

    def _gradients_apart(self, loss: Loss) -> dict[str, Tensor | None]:
        """The same gradient as the sum of its two parts, whose norms and cosine are kept for the telemetry."""
        names = self._trained
        weights = [self.weights[n] for n in names]
        halves = []
        for half in (loss.plasticity, loss.stability):
            if half is None or not half.requires_grad:
                halves.append([torch.zeros_like(w) for w in weights])
            else:
                found = torch.autograd.grad(half, weights, allow_unused=True, retain_graph=True)
                halves.append([torch.zeros_like(w) if g is None else g for g, w in zip(found, weights)])
        flat = [torch.cat([g.flatten() for g in half]) for half in halves]
        norms = [float(f.norm()) for f in flat]
        cosine = float(flat[0] @ flat[1]) / (norms[0] * norms[1]) if min(norms) > 0 else 0.0
        self._split = dict(zip(self._split, (*norms, cosine)))
        return {n: a + b for n, a, b in zip(names, *halves)}

    def boundary(self, event: Boundary) -> None:
        self.task += 1
        self.seen = 0
        for part in (*self.techniques, self.policy):
            part.boundary()

    # --- rows ---------------------------------------------------------------------------------------------------

    def _tensor(self, x: Any) -> Tensor:
        return self.inputs.tensor(x).to(self.device)

    def _rows(self, batch: Batch) -> Rows:
        """The labelled rows at hand as tensors; the head grows to their classes."""
        assert batch.y is not None
        y = torch.from_numpy(np.ascontiguousarray(batch.y, np.int64)).to(self.device)
        self._grow(int(batch.y.max()) + 1)
        return Rows(self._tensor(batch.x), y, torch.full_like(y, self.task), current=True, ids=batch.ids)

    def _grow(self, classes: int) -> None:
        if classes <= self.classes:
            return
        grow_head(self.net, classes, self.seed)
        grow_slots(self.optimiser.slots, ("head.weight", "head.bias"), classes)
        self.rebuilt()
        for part in (*self.techniques, self.policy):
            for name in ("head.weight", "head.bias"):
                part.grown(name, classes)

    # --- state --------------------------------------------------------------------------------------------------

    def telemetry(self) -> dict[str, float]:
        kept = {} if self.memory is None else {"memory_rows": float(self.memory.size)}
        found = kept | {k: v for part in (*self.techniques, self.policy) for k, v in part.telemetry().items()}
        return found | self._split if self.params.split_gradients else found

    def facts(self) -> dict[str, Any]:
        return {k: v for part in (*self.techniques, self.policy) for k, v in part.facts().items()}

    def state(self) -> State:
        return {
            "net": tensors_of(self.net),
            "classes": self.classes,
            "optimiser": self.optimiser.state(),
            "inputs": self.inputs.state(),
            "memory": None if self.memory is None else self.memory.state(),
            "policy": self.policy.state(),
            "techniques": [part.state() for part in self.techniques],
            "counts": {"task": self.task, "seen": self.seen, "updates": self.updates},
        }

    def load(self, state: State) -> None:
        if int(state["classes"]) != self.classes:
            old, kind = self.net.head, self.net.head.weight.dtype
            self.net.head = Linear(old.in_features, int(state["classes"]), device=self.device, dtype=kind)
        counts = state["counts"]
        self.task, self.seen, self.updates = int(counts["task"]), int(counts["seen"]), int(counts["updates"])
        for part, kept in zip(self.techniques, state["techniques"], strict=True):
            part.load(kept)
        if self.memory is not None:
            self.memory.load(state["memory"])
        self.policy.load(state["policy"])
        load_tensors(self.net, state["net"])
        self.net.eval()
        self.optimiser.load(state["optimiser"])
        self.inputs.load(state["inputs"])
        self._body_version += 1
        self.rebuilt()


def _in_pieces(net: torch.nn.Module, rows: Tensor) -> Tensor:
    """The network's outputs for many rows, a bounded number at once."""
    most = max(1, PROBED_AT_ONCE // max(1, rows[0].numel())) if len(rows) else 1
    return net(rows) if len(rows) <= most else torch.cat([net(part) for part in rows.split(most)])


def add_stability(loss: Loss, penalty: Tensor | None) -> Loss:
    """The loss with a penalty added to its stability part."""
    if penalty is None:
        return loss
    return Loss(loss.plasticity, penalty if loss.stability is None else loss.stability + penalty)


def clip_gradients(grads: dict[str, Tensor | None], limit: float) -> None:
    """Scale all gradients so that their joint norm is at most ``limit``; compact ones count as they are."""
    there = [g for g in grads.values() if g is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in there]))
    scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
    for name, grad in grads.items():
        if grad is not None:
            grads[name] = grad * scale


def inputs_of(spec: StreamSpec) -> Pixels | Tokens | Columns:
    """What turns rows of the stream into tensors."""
    if spec.text is not None:
        return Tokens(spec.n_features, spec.text.length, spec.text.vocabulary, spec.text.pad)
    if spec.shape is not None and "mean" in spec.notes:
        return Pixels(spec.shape, spec.notes["mean"], spec.notes["std"])
    fan = [0 if c.categories is None else 64 if c.open else len(c.categories) for c in spec.columns]
    return Columns(fan, spec.shape if not any(fan) else None)


def _classes_of_experiences(spec: StreamSpec) -> Tensor:
    """bool[experiences, classes]: which classes each experience brings."""
    table = torch.zeros((len(spec.experiences), spec.n_classes or 0), dtype=torch.bool)
    for k, experience in enumerate(spec.experiences):
        table[k, list(experience.classes)] = True
    return table
