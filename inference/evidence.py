"""What a generation knows of its own uncertainty: how undecided each token was, and further results of other seeds."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import VARSRConfig
from models.generation import ScaleStep
from models.sampling import in_cache

from .lr_statistics import NAMES as LR_NAMES
from .windows import place_seed

SHARED_SHARE = 0.1  # of the tokens, those of the coarse scales that further results share
RADII = (1, 3, 7)  # of neighbourhoods of a pixel, in cells of the grid that errors are estimated on


def input_names(config: VARSRConfig) -> dict[str, tuple[str, ...]]:
    """Names of the inputs of a model's heads, in their order."""
    of_scales = [f"{what} of {side}x{side}" for side in config.vqvae.scales for what in ("entropy", "margin")]
    contrasts = [f"contrast of {what} within {radius}" for what in ("LR", "SR") for radius in RADII]
    changes = [*(f"change within {radius}" for radius in RADII[:2]), "change that a blur keeps", "gradient"]
    one = (*of_scales, *contrasts, *changes, *LR_NAMES)
    return {"one": one, "several": (*one, *(f"spread within {radius}" for radius in RADII[:2]))}


def first_varied(config: VARSRConfig) -> int:
    """The first scale (0-based) that further results do not share: the coarse ones before it say what is in the picture
    and have a tenth of the tokens at most."""
    sides = config.vqvae.scales
    total = sum(side * side for side in sides)
    shared = [k for k in range(1, len(sides)) if sum(side * side for side in sides[:k]) <= SHARED_SHARE * total]
    return max(shared, default=1)


def sample_seed(seed: int, sample: int) -> int:
    """The seed of a picture's further result."""
    return place_seed(seed, -1 - sample)  # no window has such a place


def token_evidence(step: ScaleStep, side: int) -> Tensor:
    """How undecided the tokens of a scale were, (B, 2, side, side), each at the place where its token acts: entropy, as
    a share of the largest, and how much likelier the likeliest code was than the next."""
    maps = torch.cat([_undecided(part.float()) for part in in_cache(step.logits.flatten(0, 1))], dim=1)
    maps = maps.view(2, -1, step.side, step.side).transpose(0, 1)
    return F.interpolate(maps, size=(side, side), mode="bilinear")


def _undecided(logits: Tensor) -> Tensor:
    """Entropy and margin (2, M) of logits (M, V)."""
    below = logits - logits.amax(-1, keepdim=True)
    mass = below.exp()
    total = mass.sum(-1)
    entropy = (total.log() - below.mul_(mass).sum(-1) / total) / math.log(logits.shape[-1])
    others = mass.frac_()  # the likeliest's mass is 1, whose fraction is 0; all others' are below
    tied = total - others.sum(-1) > 1.5  # several are the likeliest
    margin = torch.where(tied, 0.0, (1 - others.amax(-1)) / total)
    return torch.stack([entropy, margin])
