"""Last training stage: the detail branch learns to make faithful pictures look like photographs.

All of the model but the branch (models/branches.py) is frozen. What the branch sees and the feature maps of what does
not change, HR and LR picture, are computed once for each sample of a pool. Losses: pixels, a perceptual distance,
feature maps, rims, meshes, coarser pictures, contrasts, what a shift of the grid changes, and discriminators
that see the LR picture too.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloader.pairs import Pairs
from models.branches import Part
from models.config import DETAIL_STRIDE
from models.generation import GivenTokens
from utils.device import autocast
from utils.errors import UserError
from utils.ranks import Ranks

from .adversary import Seen
from .judged import JUDGED_FIELDS, JudgedSettings, JudgedStage, Term
from .perceptual import needed_perceptual
from .pixel_losses import coarse_distance, contrast_distance, lattice, overshoot
from .pool import SamplePool, from_bytes, right_codes, to_bytes
from .schedule import share_of
from .setup import Setup, generating_parts

HR, LR = "hr", "lr"  # whose maps the pool holds
SEEN = "seen"  # features of the faithful branch
LATTICE_CELLS = 4  # of the latent, to a side of the squares that are searched for a mesh
RIM_RADIUS = 3  # pixels beside an edge
SHIFT_EDGE = 4  # pixels at the borders that are not compared: there is more zero padding in sight
SAVED = ("latent", "decoded", HR, LR)  # fields of the pool that states hold; the others follow from them


@dataclass(frozen=True)
class DetailSettings(JudgedSettings):
    """Hyper-parameters of the detail stage."""

    max_iters: int = 10000
    ema: float = 0.99  # a longer average is softer than any of the weights that it is made of
    val_batch: int = 24
    rim_weight: float = 4.0  # of `overshoot`
    lattice_weight: float = 4.0  # of `lattice`
    coarse_weight: float = 2.0  # of `coarse_distance`
    contrast_weight: float = 12.0  # of `contrast_distance`
    shift_weight: float = 4.0  # of what depends on where the grid of cells lies
    right_share: float = 0.5  # of samples of the right codes: from generated ones alone none are learned to be heard

    def __post_init__(self) -> None:
        """Raises ValueError for values that no training can have."""
        super().__post_init__()
        if not 0 <= self.right_share <= 1:
            raise UserError(f"right_share must be in [0, 1], got {self.right_share}")


class DetailStage(JudgedStage):
    """Trains the detail branch, and discriminators beside it."""

    best_metric = ("st_lpips", -1.0)  # without its weights there is no best one, just the last
    fidelity = 0.0
    conditional = True

    def given(self, pairs: Pairs) -> GivenTokens | None:
        """The right codes of the first of the pairs, `right_share` of all that are drawn."""
        count = share_of(self.settings.right_share, self.pool.added, len(pairs.target))
        return right_codes(self.model, pairs.target, count) if count else None

    @torch.no_grad()
    def _add_samples(self) -> float:
        """See the base class."""
        pairs, latent, wait = self.generated()
        with autocast(self.device, self.settings.precision):
            decoded = self.model.vqvae.decode_unclamped(latent, pairs.lr).float()
        pictures = {"decoded": to_bytes(decoded), HR: to_bytes(pairs.target), LR: to_bytes(pairs.lr)}
        self.pool.add(latent=latent.half(), **pictures, **self._derived(pictures))
        return wait

    @torch.no_grad()
    def _derived(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What follows from HR and LR pictures (M, 3, S, S) of the pool, in half precision by the pool's names: feature
        maps, and what the branch sees of a faithful one."""
        derived = {}
        with autocast(self.device, self.settings.precision):
            for name in (HR, LR):
                seen = self.perceptual.look(from_bytes(pictures[name].to(self.device)))
                derived |= {_map_name(name, i): each.half() for i, each in enumerate(seen.maps)}
            if self.model.vqvae.restores:
                derived[SEEN] = self.model.vqvae.faithful.features(from_bytes(pictures[LR].to(self.device))).half()
        return derived

    def _restore(self, drawn: Mapping[str, Tensor]) -> tuple[Tensor, Seen, Seen]:
        """See the base class."""
        decoded, real, condition = (from_bytes(drawn[name]) for name in ("decoded", HR, LR))
        seen = drawn[SEEN].float() if SEEN in drawn else self._what_is_seen(decoded, condition)
        added = self.trained(seen, drawn["latent"].float()).float()
        return decoded + added, self._seen(HR, real, drawn), self._seen(LR, condition, drawn)

    def _terms(self, drawn: Mapping[str, Tensor], restored: Seen, real: Seen) -> dict[str, tuple[float, Term]]:
        """See the base class."""
        settings, pictures = self.settings, (restored.picture, real.picture)
        side, period = self.model.config.vqvae.side, self.model.config.vqvae.downsampling
        return {
            "rims": (settings.rim_weight, lambda: overshoot(*pictures, RIM_RADIUS)),
            "lattice": (settings.lattice_weight, lambda: lattice(*pictures, period, min(LATTICE_CELLS, side))),
            "coarse": (settings.coarse_weight, lambda: coarse_distance(*pictures)),
            "contrast": (settings.contrast_weight, lambda: contrast_distance(*pictures)),
            "shift": (settings.shift_weight * (side > 1), lambda: self._shift_distance(drawn)),
        }

    def _shift_distance(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """Mean difference of what the branch adds to half of a batch, and of what it adds where the grid of its cells
        lies 1 to 3 pixels further on: a weave has the grid's place, a photograph's detail knows none. The latent, which
        cannot be moved so little, is the same everywhere: its mean."""
        start = int(torch.randint(1, DETAIL_STRIDE, (1,), generator=self.generator))
        count, cells = -(-len(drawn["latent"]) // 2), drawn["latent"].shape[-1] - 1
        side = cells * self.model.config.vqvae.downsampling
        decoded, lr = (from_bytes(torch.cat([Part(at, at, side, side).of(drawn[name][:count]) for at in (0, start)]))
                       for name in ("decoded", LR))
        latent = drawn["latent"].float().mean((0, 2, 3))[:, None, None].expand(2 * count, -1, cells, cells)
        with autocast(self.device, self.settings.precision):
            with torch.no_grad():
                seen = self._what_is_seen(decoded, lr)
            before, after = self.trained(seen, latent).float().chunk(2)
        edge, common = min(SHIFT_EDGE, side // 4), side - start
        inner = Part(edge, edge, common - 2 * edge, common - 2 * edge)
        return F.l1_loss(inner.of(after), inner.of(before[..., start:, start:]))

    def _what_is_seen(self, decoded: Tensor, lr: Tensor) -> Tensor:
        """What the branch sees of faithful and LR pictures in [-1, 1]."""
        vqvae = self.model.vqvae
        return vqvae.faithful.features(lr) if vqvae.restores else self.trained.picture_cells(decoded, lr)

    def _seen(self, name: str, picture: Tensor, drawn: Mapping[str, Tensor]) -> Seen:
        return Seen(picture, [drawn[_map_name(name, i)].float() for i in range(len(self.perceptual.channels))])

    def state_dict(self) -> dict[str, Any]:
        """As the base class's, the pool without what follows from the rest of it."""
        state = super().state_dict()
        fields = {name: value for name, value in state["pool"]["fields"].items() if name in SAVED}
        return {**state, "pool": {**state["pool"], "fields": fields}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        if len(self.pool):
            self._restore_pool()

    def _restore_pool(self) -> None:
        """Compute again what states leave out of the pool."""
        left_out = SamplePool(self.settings.pool_size, self.pool.device)
        for part in torch.arange(len(self.pool)).split(self.settings.batch_size):
            left_out.add(**self._derived({name: self.pool.fields[name][part] for name in (HR, LR)}))
        self.pool.fields |= left_out.fields


def _map_name(picture: str, index: int) -> str:
    return f"{picture}_map{index}"


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises as `generating_parts`, and where there is no perceptual network."""
    own = {name: name for name in ("rim_weight", "lattice_weight", "coarse_weight", "contrast_weight", "shift_weight",
                                   "right_share")}
    parts = generating_parts(args, device, ranks, DetailSettings, JUDGED_FIELDS | own)
    perceptual = needed_perceptual(args.stage, device, args.perceptual_weight)
    return Setup(parts.settings, parts.model, lambda: DetailStage(*parts, perceptual, device))
