"""The faithful branch learns to restore LR pictures, as near to the photographs at every pixel as it can.

No code of the model has a part in it (models/branches.py), so nothing is generated: the pool holds pairs, which are
degraded more slowly than they are learned from.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from models.branches import FaithfulBranch
from models.varsr import VARSR
from utils.errors import UserError
from utils.ranks import Ranks

from .decoder import FIELDS, DecoderSettings, DecoderStage
from .pool import to_bytes
from .setup import Setup, generating_parts


@dataclass(frozen=True)
class FaithfulSettings(DecoderSettings):
    """Hyper-parameters of the stage."""

    batch_size: int = 16
    fresh: int = 8
    renew_every: int = 1
    max_iters: int = 10000
    learning_rate: float = 1e-3
    pool_size: int = 1024
    ssim_weight: float = 0.5
    chroma_weight: float = 4.0
    val_batch: int = 48


class FaithfulStage(DecoderStage):
    """Trains the faithful branch on pairs."""

    @staticmethod
    def _part(model: VARSR) -> FaithfulBranch:
        """See the base class."""
        if model.vqvae.faithful is None:
            raise UserError("the model has no faithful branch to train")
        return model.vqvae.faithful

    def _add_samples(self) -> float:
        """See the base class."""
        pairs, wait = self.next_pairs()
        self.pool.add(target=to_bytes(pairs.target), lr=to_bytes(pairs.lr))
        return wait

    def _restored(self, drawn: dict[str, Tensor], lr: Tensor) -> Tensor:
        """See the base class."""
        return self.trained(lr)


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises as `generating_parts`."""
    parts = generating_parts(args, device, ranks, FaithfulSettings, FIELDS)
    return Setup(parts.settings, parts.model, lambda: FaithfulStage(*parts, device))
