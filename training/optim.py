"""Optimisers and their groups by one rule, gradient clipping that notices broken steps, a moving average of weights."""
from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from utils.errors import UserError


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


def matrix_muon(matrices: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Muon (Jordan et al., 2024) for matrices: it orthogonalises what momentum has gathered, so that all directions of
    a weight learn alike. Rates are scaled to be those of AdamW. Raises UserError for a PyTorch without it."""
    if not hasattr(torch.optim, "Muon"):
        raise UserError("this optimiser, Muon, came with PyTorch 2.9: install that or a newer one")
    return torch.optim.Muon([{"params": list(matrices), "decays": True}], lr=lr, weight_decay=weight_decay,
                            adjust_lr_fn="match_rms_adamw")


class ConvMuon(torch.optim.Optimizer):
    """Muon for weights of convolutions, each taken as the matrix (out, in * h * w) that it is: PyTorch's own, which
    does the work, knows matrices alone."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        """Raises UserError for a PyTorch without Muon."""
        super().__init__([{"params": list(weights), "decays": True}], {"lr": lr, "weight_decay": weight_decay})
        self.matrices = matrix_muon([nn.Parameter(weight.detach().flatten(1).clone()) for weight in weights], lr,
                                    weight_decay)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of all weights that have a gradient."""
        group, inner = self.param_groups[0], self.matrices.param_groups[0]
        inner.update(lr=group["lr"], weight_decay=group["weight_decay"])
        pairs = list(zip(group["params"], inner["params"], strict=True))
        for weight, matrix in pairs:
            matrix.copy_(weight.flatten(1))
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        self.matrices.step()
        for weight, matrix in pairs:
            weight.copy_(matrix.view(weight.shape))

    def state_dict(self) -> dict:
        """Momenta and groups."""
        return self.matrices.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave. Raises ValueError where it is not that of these weights."""
        restore_optimizer(self.matrices, state)


def hybrid_optimizers(module: nn.Module, hidden: Sequence[nn.Parameter], lr: float, weight_decay: float,
                      betas: tuple[float, float], no_decay: Sequence[str] = (),
                      fused: bool = True) -> list[torch.optim.Optimizer]:
    """Muon for the `hidden` weights of a module, matrices or convolutions, AdamW for its others: inputs, outputs and
    biases. no_decay: see `parameter_groups`. fused: one kernel for AdamW."""
    chosen = {id(weight) for weight in hidden}
    groups = [{**group, "params": [each for each in group["params"] if id(each) not in chosen]}
              for group in parameter_groups(module, weight_decay, no_decay)]
    adam = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if not chosen:
        return [adam]
    muon = matrix_muon if all(weight.ndim == 2 for weight in hidden) else ConvMuon
    return [adam, muon(hidden, lr, weight_decay)]


def gradient_scaler(device: torch.device, precision: str, loss_scale: float) -> torch.amp.GradScaler:
    """Scales losses for fp16, from `loss_scale` on; passes them and the gradients on unchanged at other precisions."""
    return torch.amp.GradScaler(device.type, init_scale=loss_scale, enabled=precision == "fp16")


def set_rates(optimizer: torch.optim.Optimizer, rate: float, weight_decay: float) -> None:
    """Set the learning rate of all groups and the weight decay of those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def clipped_step(optimizers: Sequence[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], max_norm: float,
                 scaler: torch.amp.GradScaler | None = None) -> float:
    """Clip to max_norm (0: no clipping), step and clear the gradients; returns the gradient norm.

    A step with a non-finite norm is left out.
    """
    scales = scaler is not None and scaler.is_enabled()  # a disabled one would step whatever the gradients are
    if scales:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # of shards (parallel.py)
    for optimizer in optimizers:
        if math.isfinite(norm):  # of all together: a scaler would leave out the optimiser with the infinite ones alone
            scaler.step(optimizer) if scales else optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if scales:
        scaler.update()
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
