"""Give a trained model larger LR features for its decoder, so that the decoder stage can train them."""
from __future__ import annotations

import dataclasses

import torch

from models.varsr import VARSR


@torch.no_grad()
def with_fidelity(model: VARSR, width: int, blocks: int) -> VARSR:
    """The model with LR features of `width` channels and `blocks` residual blocks per level (`models/fidelity.py`).

    It restores as before: features of another width start anew, with outputs of zero; those of the same width keep
    their blocks, and the further ones begin as identities. Raises ValueError for fewer blocks than there are.
    """
    old = model.config.vqvae
    if width == old.fidelity_width and blocks < old.fidelity_blocks:
        raise ValueError(f"the model has {old.fidelity_blocks} fidelity blocks per level: they can grow, not shrink to "
                         f"{blocks}")
    config = dataclasses.replace(model.config, vqvae=dataclasses.replace(
        old, fidelity_width=width, fidelity_blocks=blocks))
    larger = VARSR(config)
    kept = {name: value for name, value in model.state_dict().items()
            if width == old.fidelity_width or not name.startswith("vqvae.fidelity.")}
    larger.load_state_dict(kept, strict=False)
    if width == old.fidelity_width:
        for level in larger.vqvae.fidelity.levels:
            for block in level[old.fidelity_blocks:]:
                torch.nn.init.zeros_(block.conv2.weight)
                torch.nn.init.zeros_(block.conv2.bias)
    return larger
