"""Normalisation layers: batch, group and continual norm by name, and AdaB2N, which balances what batch norm averages.

Sources: group norm, Wu and He, ECCV 2018; continual norm, Pham et al., ICLR 2022 (group norm without affine parameters,
then batch norm); AdaB2N, Lyu et al., Overcoming Recency Bias of Normalization Statistics in Continual Learning, NeurIPS
2023, and its authors' code.

Of AdaB2N, from paper and code: the weights of samples, the schedule of the running statistics, the loss, psi starting
at 0 and never reset. Ours: groups that are absent from a batch take no part (``reference=True`` is the code's
treatment), the loss is held at ``clip`` a layer, the schedule's place is a buffer (the code loses it with every
checkpoint), a batch with one value per channel is normalised by the running statistics and moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels.balanced_batch_norm import Groups, Running, balanced_batch_norm

KINDS = ("batch", "group", "continual", "none")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def make_norm(kind: str, channels: int) -> nn.Module:
    """The norm named ``kind``, one of ``KINDS``, for inputs [N, channels, ...]; ``ValueError`` for any other name."""
    if kind == "batch":
        return BatchNorm(channels)
    if kind == "group":
        return nn.GroupNorm(group_count(channels), channels)
    if kind == "continual":
        plain = nn.GroupNorm(group_count(channels), channels, affine=False)
        return nn.Sequential(plain, BatchNorm(channels))
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"unknown norm {kind!r}: there are {', '.join(KINDS)}")


class BatchNorm(nn.BatchNorm2d):
    """PyTorch's for [N, C, ...], but one value a channel is normalised by the running statistics and moves nothing."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of positions, none included."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() <= self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def group_count(channels: int, most: int = 32) -> int:
    """The largest divisor of ``channels`` up to ``most`` that leaves each group two channels: 32 from 64 on."""
    return max(n for n in range(1, max(1, min(most, channels // 2)) + 1) if channels % n == 0)


class AdaB2N(nn.Module):
    """Adaptive balance of batch normalisation, for inputs [N, channels, ...]; in evaluation mode plain batch norm.

    Training statistics weigh the groups of samples (``set_groups``) by a Dirichlet posterior with learnable
    concentration exp(psi) (``kernels/balanced_batch_norm.py``); without groups they are those of batch norm, with the
    biased variance. Running statistics move at the rates

        eta_1 = momentum^kappa,   eta_{m+1} = eta_m / (eta_m + (1 - momentum)^kappa),

    from the cumulative average (kappa 0) to batch norm's moving average (kappa 1). The buffer ``span`` is 1 / eta_m,
    the number of batches that the statistics stand for; it follows span <- 1 + (1 - momentum)^kappa span.

    After a forward pass in training mode ``loss`` is how far this batch's statistics lie from the running ones, to be
    weighed into what is minimised (``ada_loss``). psi, float[groups], is to be kept out of weight decay.

    >>> layer = AdaB2N(3, kappa=0.0, groups=2)
    >>> with grouped(layer, [0, 0, 1]):
    ...     y = layer(torch.randn(3, 3, 4, 4))
    >>> float(layer.rate), float(layer.span)
    (1.0, 1.0)
    """

    running_mean: Tensor
    running_var: Tensor
    span: Tensor

    def __init__(
        self,
        channels: int,
        *,
        kappa: float = 0.7,
        momentum: float = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        groups: int = 1,
        reference: bool = False,
        clip: float = 10.0,
    ) -> None:
        super().__init__()
        if not (0 <= kappa <= 1 and 0 < momentum < 1 and clip > 0 and eps > 0 and groups >= 1):
            raise ValueError("kappa lies in 0..1, momentum between 0 and 1; clip, eps and groups are above 0")
        self.channels, self.kappa, self.momentum, self.eps = channels, kappa, momentum, eps
        self.reference, self.clip = reference, clip
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.psi = nn.Parameter(torch.zeros(groups))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("span", torch.zeros((), dtype=torch.float64))
        self.groups: Groups | None = None
        self.frozen = False
        self.loss: Tensor | None = None
        self.restart()
        self.register_load_state_dict_pre_hook(_fit_psi)

    @property
    def rate(self) -> Tensor:
        """eta of the last update, float64[]."""
        return self.span.reciprocal()

    def restart(self) -> None:
        """Begin the schedule anew (after a known change, say): the next update has the rate momentum^kappa."""
        self.span.fill_((self.momentum**-self.kappa - 1) / (1 - self.momentum) ** self.kappa)

    def forward(self, x: Tensor) -> Tensor:
        self.loss = None
        if not self.training or x.numel() <= self.channels:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if self.groups is not None and len(self.groups.ids) != len(x):
            raise ValueError(f"groups of {len(self.groups.ids)} samples were set, {len(x)} came")
        if self.frozen:
            scratch = Running(self.running_mean.clone(), self.running_var.clone(), 0.0, self.eps)
            return balanced_batch_norm(
                x, self.weight, self.bias, self.psi, self.groups, scratch, reference=self.reference
            )[0]
        self.span.mul_((1 - self.momentum) ** self.kappa).add_(1)
        running = Running(self.running_mean, self.running_var, self.rate, self.eps, self.clip)
        y, self.loss = balanced_batch_norm(
            x, self.weight, self.bias, self.psi, self.groups, running, reference=self.reference
        )
        return y

    def extra_repr(self) -> str:
        return f"{self.channels}, kappa={self.kappa}, groups={len(self.psi)}, reference={self.reference}"


def _fit_psi(layer: AdaB2N, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A state may know more groups, or fewer, than the layer that loads it."""
    psi = state.get(f"{prefix}psi")
    if psi is not None and psi.shape != layer.psi.shape:
        layer.psi = nn.Parameter(layer.psi.new_zeros(psi.shape))


def replace_norms(net: nn.Module, **settings: Any) -> list[AdaB2N]:
    """Put an ``AdaB2N`` (of these settings) in the place of every batch norm inside ``net``; returns them in order.

    Affine parameters, running statistics, eps and momentum are taken over; the schedule begins at its first update.
    """
    made: list[AdaB2N] = []
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BATCH_NORMS):
                made.append(_balanced(child, settings))
                setattr(parent, name, made[-1])
    return made


def _balanced(norm: Any, settings: dict[str, Any]) -> AdaB2N:
    own: dict[str, Any] = {"eps": norm.eps, "momentum": norm.momentum or 0.1, "affine": norm.affine}
    layer = AdaB2N(norm.num_features, **(own | settings))
    layer.train(norm.training)
    if norm.affine:
        layer.weight, layer.bias = norm.weight, norm.bias
    if norm.running_mean is not None:
        layer.running_mean.copy_(norm.running_mean)
        layer.running_var.copy_(norm.running_var)
        layer.to(norm.running_mean.device)
    return layer


def balanced_layers(net: nn.Module) -> list[AdaB2N]:
    """The AdaB2N layers of a network, in order; the functions below take such a list in the network's place."""
    return [m for m in net.modules() if isinstance(m, AdaB2N)]


def _all(net: nn.Module | Iterable[AdaB2N]) -> Iterable[AdaB2N]:
    return balanced_layers(net) if isinstance(net, nn.Module) else net


def set_groups(net: nn.Module | Iterable[AdaB2N], ids: Any | None) -> None:
    """Hand the group of every sample of the coming batches, int[N] from 0 on, to all layers; None: no groups.

    Raises ``ValueError`` for an id that the layers have no psi for.
    """
    groups: Groups | None = None
    for layer in _all(net):
        if ids is not None and groups is None:
            groups = Groups.of(ids, len(layer.psi), layer.psi.device)
        if groups is not None and len(groups.counts) > len(layer.psi):
            raise ValueError(f"group {len(groups.counts) - 1}, but there are {len(layer.psi)}: grow_groups first")
        layer.groups = groups


@contextmanager
def grouped(net: nn.Module | Iterable[AdaB2N], ids: Any | None) -> Iterator[None]:
    """``set_groups`` for the time of the block."""
    layers = list(_all(net))
    set_groups(layers, ids)
    try:
        yield
    finally:
        set_groups(layers, None)


def grow_groups(net: nn.Module | Iterable[AdaB2N], groups: int) -> bool:
    """Room for this many groups in every layer: psi gets zeros and keeps what it has. Whether parameters were replaced.

    An optimiser that holds the old parameters must be told of the new ones.
    """
    grown = False
    for layer in _all(net):
        missing = groups - len(layer.psi)
        if missing > 0:
            layer.psi = nn.Parameter(F.pad(layer.psi.detach(), (0, missing)))
            grown = True
    return grown


def ada_loss(net: nn.Module | Iterable[AdaB2N]) -> Tensor | None:
    """The sum of the layers' losses of the last forward pass, which they give up; None where there is none."""
    losses = []
    for layer in _all(net):
        if layer.loss is not None:
            losses.append(layer.loss)
            layer.loss = None
    return torch.stack(losses).sum() if losses else None


@contextmanager
def frozen_stats(net: nn.Module) -> Iterator[None]:
    """For the time of the block no forward pass moves running statistics, be it batch norm's or AdaB2N's.

    In training mode the statistics of the batch are still what normalises: for passes that score and do not train.
    """
    balanced = [(layer, layer.frozen) for layer in balanced_layers(net)]
    plain = [(m, m.track_running_stats) for m in net.modules() if isinstance(m, BATCH_NORMS)]
    for layer, _ in balanced:
        layer.frozen = True
    for norm, _ in plain:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for layer, was in balanced:
            layer.frozen = was
        for norm, was in plain:
            norm.track_running_stats = was
