"""Give a trained model larger LR features for its decoder, so that the decoder stage can train them."""
from __future__ import annotations

import dataclasses

import torch

from models.config import VQVAEConfig
from models.varsr import VARSR

FIDELITY = "vqvae.fidelity."
PIXELS = FIDELITY + "pixels."


@torch.no_grad()
def with_fidelity(model: VARSR, **changes: int) -> VARSR:
    """The model with larger LR features and corrections: `changes` are fields `fidelity_...` of `VQVAEConfig`.

    It restores as before: parts of another width start anew, with outputs of zero; those of the same width are kept,
    and further blocks begin as identities. Raises ValueError for fewer blocks than there are, and for another width of
    the correction.
    """
    old = model.config.vqvae
    new = dataclasses.replace(old, **changes)
    _require_growth(old, new)
    larger = VARSR(dataclasses.replace(model.config, vqvae=new))
    same_width = new.fidelity_width == old.fidelity_width
    kept = {name: value for name, value in model.state_dict().items()
            if same_width or not name.startswith(FIDELITY) or name.startswith(PIXELS)}
    larger.load_state_dict(kept, strict=False)
    if same_width:
        for level in larger.vqvae.fidelity.levels:
            _make_identities(level[old.fidelity_blocks:])
    if old.fidelity_trunk:
        _make_identities(larger.vqvae.fidelity.pixels.trunk.blocks[old.fidelity_trunk:])
    return larger


def _require_growth(old: VQVAEConfig, new: VQVAEConfig) -> None:
    if new.fidelity_width == old.fidelity_width and new.fidelity_blocks < old.fidelity_blocks:
        raise ValueError(f"the model has {old.fidelity_blocks} fidelity blocks per level: they can grow, not shrink to "
                         f"{new.fidelity_blocks}")
    if new.fidelity_trunk < old.fidelity_trunk:
        raise ValueError(f"the model corrects with {old.fidelity_trunk} blocks: they can grow, not shrink to "
                         f"{new.fidelity_trunk}")
    if old.fidelity_pixels and new.fidelity_pixels != old.fidelity_pixels:
        raise ValueError(f"the model corrects pixels with {old.fidelity_pixels} channels: they cannot become "
                         f"{new.fidelity_pixels}")


def _make_identities(blocks: torch.nn.Sequential) -> None:
    """Residual blocks that add nothing."""
    for block in blocks:
        torch.nn.init.zeros_(block.conv2.weight)
        torch.nn.init.zeros_(block.conv2.bias)
