"""Optimiser groups by one rule, gradient clipping that notices broken steps, and a moving average of weights."""
from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


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


def gradient_scaler(device: torch.device, precision: str, loss_scale: float) -> torch.amp.GradScaler:
    """Scales losses for fp16, from `loss_scale` on; passes them and the gradients on unchanged at other precisions."""
    return torch.amp.GradScaler(device.type, init_scale=loss_scale, enabled=precision == "fp16")


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


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Take a saved state. Raises ValueError where it is not that of these parameters."""
    optimizer.load_state_dict(state)
    check_moments(optimizer)


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where the moments have not the shapes of their parameters: the fused kernels take that for
    granted, and would write beyond the end of smaller ones."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            fits = isinstance(parameter, Tensor) and isinstance(value, Tensor) and (
                value.shape == (torch.Size() if name == "step" else parameter.shape))
            if not fits:
                raise ValueError(f"{name} of a parameter does not fit it")


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
        """Restore what `state_dict` gave."""
        self.model.load_state_dict(state)

    def whole(self, _: torch.device) -> nn.Module:
        """The averaged model (of shards: `parallel.ShardedAverage`)."""
        return self.model
