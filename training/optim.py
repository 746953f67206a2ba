"""Optimiser groups by one rule, gradient clipping that notices broken steps, and a moving average of weights."""
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def _flat_then_linear(flat: float) -> Callable[[float, float], float]:
    """1 for the first `flat` of the way, then a straight line to the final value."""
    def curve(passed: float, final: float) -> float:
        if passed < flat:
            return 1.0
        return final + (1 - final) * (1 - passed) / (1 - flat)
    return curve


def _cosine(passed: float, final: float) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * passed))


def _exponential(passed: float, final: float, flat: float = 0.15) -> float:
    if passed < flat:
        return 1.0
    return final ** ((passed - flat) / (1 - flat))


CURVES: dict[str, Callable[[float, float], float]] = {
    "cos": _cosine,
    "lin": _flat_then_linear(0.15),
    "lin0": _flat_then_linear(0.3),
    "lin00": _flat_then_linear(0.0),
    "exp": _exponential,
}


def short_warmup(warmup_iters: int, max_iters: int) -> int:
    """The warm-up of a run that may be shorter than the warm-up itself."""
    return min(warmup_iters, max_iters // 2)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then one of CURVES (names as the published command line has them)."""

    name: str = "lin0"
    max_iters: int = 1000
    warmup_iters: int = 100
    warmup_start: float = 0.005  # of the peak rate
    final: float = 0.01  # of the peak rate

    def __post_init__(self) -> None:
        if self.name not in CURVES:
            raise ValueError(f"unknown schedule {self.name!r}: choose one of {', '.join(CURVES)}")
        if not 0 <= self.warmup_iters < self.max_iters:
            raise ValueError(f"warm-up of {self.warmup_iters} iterations must be shorter than "
                             f"the {self.max_iters} iterations of training")

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration (0-based) as a fraction of the peak."""
        if iteration < self.warmup_iters:
            return self.warmup_start + (1 - self.warmup_start) * iteration / self.warmup_iters
        passed = (iteration - self.warmup_iters) / max(self.max_iters - 1 - self.warmup_iters, 1)
        return CURVES[self.name](min(passed, 1.0), self.final)

    def weight_decay(self, iteration: int, start: float, end: float) -> float:
        """Weight decay of an iteration: half a cosine from `start` to `end`."""
        passed = min(iteration / max(self.max_iters - 1, 1), 1.0)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * passed))


def parameter_groups(model: nn.Module, weight_decay: float, no_decay: Sequence[str] = ()) -> list[dict]:
    """Two AdamW groups: matrices with weight decay; 1-d parameters, biases and `no_decay` names without.

    `no_decay` holds parts of names ("class_embedding", "refiner."); a parameter whose name contains one is exempt.
    """
    decayed, exempt = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim == 1 or name.endswith("bias") or any(part in name for part in no_decay)
        (exempt if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay, "decays": True},
            {"params": exempt, "weight_decay": 0.0, "decays": False}]


def set_rates(optimizer: torch.optim.Optimizer, rate: float, weight_decay: float) -> None:
    """Set the learning rate of all groups and the weight decay of those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def clipped_step(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], max_norm: float,
                 scaler: torch.amp.GradScaler | None = None) -> float:
    """Clip to max_norm (0: no clipping), step and clear the gradients; returns the gradient norm.

    A step with a non-finite norm is left out.
    """
    scales = scaler is not None and scaler.is_enabled()  # a disabled one would step whatever the gradients are
    if scales:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # of shards (parallel.py)
    if scales:
        scaler.step(optimizer)  # leaves out steps with inf/nan gradients by itself
        scaler.update()
    elif math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def average_decay(decay: float, iteration: int) -> float:
    """Decay of a moving average at an iteration: early on lower, so that the start is forgotten."""
    return min(decay, (1 + iteration) / (10 + iteration))


class MovingAverage:
    """Exponential moving average of a module's weights; buffers are taken over as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Move towards `model` (see `average_decay`)."""
        averaged: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, [p.detach() for p in model.parameters()],
                             1 - average_decay(self.decay, iteration))
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state)

    def whole(self, _: torch.device) -> nn.Module:
        """The averaged model (of shards: `parallel.ShardedAverage`)."""
        return self.model
