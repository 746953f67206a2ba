"""Last training stage: the detail branch learns to make faithful pictures look like photographs.

All of the model but the branch (models/lr_features.py) is frozen. Its pictures and the feature maps of what does not
change, HR and LR picture, are computed once for each sample of a pool. Losses: pixels, a perceptual distance, feature
maps, and discriminators that see the LR picture too.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.device import autocast
from utils.ranks import Ranks

from .adversary import Seen
from .judged import JUDGED_FIELDS, JudgedSettings, JudgedStage
from .perceptual import needed_perceptual
from .pool import SamplePool, from_bytes, to_bytes
from .setup import Setup, generating_parts

HR, LR = "hr", "lr"  # whose maps the pool holds


@dataclass(frozen=True)
class DetailSettings(JudgedSettings):
    """Hyper-parameters of the detail stage."""

    max_iters: int = 10000
    learning_rate: float = 3e-4
    ema: float = 0.999
    val_batch: int = 24


class DetailStage(JudgedStage):
    """Trains the detail branch, and discriminators beside it."""

    best_metric = ("st_lpips", -1.0)  # without its weights there is no best one, just the last
    fidelity = 0.0
    conditional = True

    @torch.no_grad()
    def _add_samples(self) -> float:
        """See the base class."""
        pairs, latent, wait = self.generated()
        with autocast(self.device, self.settings.precision):
            decoded = self.model.vqvae.decode_unclamped(latent, pairs.lr).float()
        pictures = {"decoded": to_bytes(decoded), HR: to_bytes(pairs.target), LR: to_bytes(pairs.lr)}
        self.pool.add(latent=latent.half(), **pictures, **self._maps(pictures))
        return wait

    @torch.no_grad()
    def _maps(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps of HR and LR pictures in half precision, by the pool's names."""
        maps = {}
        for name in (HR, LR):
            with autocast(self.device, self.settings.precision):
                seen = self.perceptual.look(from_bytes(pictures[name].to(self.device)))
            maps |= {_map_name(name, i): each.half() for i, each in enumerate(seen.maps)}
        return maps

    def _restore(self, drawn: Mapping[str, Tensor]) -> tuple[Tensor, Seen, Seen]:
        """See the base class."""
        decoded, real, condition = (from_bytes(drawn[name]) for name in ("decoded", HR, LR))
        added = self.trained(decoded, condition, drawn["latent"].float()).float()
        return decoded + added, self._seen(HR, real, drawn), self._seen(LR, condition, drawn)

    def _seen(self, name: str, picture: Tensor, drawn: Mapping[str, Tensor]) -> Seen:
        return Seen(picture, [drawn[_map_name(name, i)].float() for i in range(len(self.perceptual.channels))])

    def state_dict(self) -> dict[str, Any]:
        """As the base class's, the pool without its maps."""
        state = super().state_dict()
        fields = {name: value for name, value in state["pool"]["fields"].items()
                  if name in ("latent", "decoded", HR, LR)}
        return {**state, "pool": {**state["pool"], "fields": fields}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        if len(self.pool):
            self._restore_maps()

    def _restore_maps(self) -> None:
        """Compute the maps of the pool's pictures again, which states leave out."""
        count, maps = len(self.pool), SamplePool(self.settings.pool_size, self.pool.device)
        for part in torch.arange(count).split(self.settings.batch_size):
            maps.add(**self._maps({name: self.pool.fields[name][part] for name in (HR, LR)}))
        self.pool.fields |= maps.fields


def _map_name(picture: str, index: int) -> str:
    return f"{picture}_map{index}"


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises as `generating_parts`, and where there is no perceptual network."""
    parts = generating_parts(args, device, ranks, DetailSettings, JUDGED_FIELDS)
    perceptual = needed_perceptual(args.stage, device)
    return Setup(parts.settings, parts.model, lambda: DetailStage(*parts, perceptual, device))
