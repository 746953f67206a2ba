"""Fitting an error model: the expected error by maximum likelihood, its band by conformal prediction.

The network minimises the negative likelihood of errors that are exponentially distributed around what it expects, whose
minimum is the mean error. Then the band: of crops that it was not fitted to, the quantile of error by expected error
(split conformal prediction, Papadopoulos et al. 2002, Lei et al. 2018). It holds for pictures like those.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.uncertainty import at_full_size
from models.error_model import MARGIN, ErrorHead

from .examples import Example


@dataclass(frozen=True)
class FitConfig:
    """How a network is fitted. step: one cell in so many along each side is an example."""

    iterations: int = 3000
    batch: int = 4096
    rate: float = 3e-3
    weight_decay: float = 1e-3
    step: int = 2
    jitter: float = 0.3  # standard deviations of noise on the inputs: other pictures are not quite like these
    held_out: int = 4  # one crop in so many is for the band alone
    coverage: float = 0.9


def fitted_head(found: Sequence[Example], inputs: int, config: FitConfig, seed: int = 0) -> ErrorHead:
    """An error model of the first so many inputs of examples."""
    torch.manual_seed(seed)
    order = torch.randperm(len(found)).tolist()  # crops of every kind, whatever the order they come in
    head = ErrorHead(inputs)
    kept = [found[i] for i in order[::config.held_out]]
    learnt = [found[i] for place, i in enumerate(order) if place % config.held_out]
    rows = torch.cat([_cells(each.inputs[:inputs], config.step) for each in learnt])
    errors = torch.cat([_cells(each.coarse[None], config.step)[:, 0] for each in learnt]) + MARGIN
    head.fit_range(rows)
    _train(head, rows, errors, config, torch.Generator().manual_seed(seed))
    head.eval().requires_grad_(False)
    head.fit_familiar(torch.stack([each.inputs[:inputs].flatten(1).mean(1) for each in found]))
    ratios = torch.cat([(each.error / (expected(head, each) + MARGIN)).flatten() for each in kept])
    head.band.copy_(quantile(ratios, config.coverage))
    return head


def _cells(maps: Tensor, step: int) -> Tensor:
    """Maps (F, h, w) to rows (M, F)."""
    return maps[:, ::step, ::step].flatten(1).T


def _train(head: ErrorHead, rows: Tensor, errors: Tensor, config: FitConfig, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), config.rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
    for _ in range(config.iterations):
        chosen = torch.randint(len(rows), (config.batch,), generator=generator)
        noise = torch.randn(config.batch, rows.shape[1], generator=generator) * config.jitter * head.deviation
        log_error = head.log_error(rows[chosen] + noise)
        loss = (errors[chosen] * (-log_error).exp() + log_error).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def expected(head: ErrorHead, example: Example) -> Tensor:
    """What a head expects of an example, (H, W) in levels."""
    return at_full_size(head(example.inputs[:len(head.mean)]))


def quantile(values: Tensor, share: float) -> Tensor:
    """A quantile of many values, with the correction of conformal prediction for their number."""
    rank = min(int(torch.ceil(torch.tensor(share * (len(values) + 1)))), len(values))
    return values.kthvalue(rank).values
