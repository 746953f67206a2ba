"""Give a trained model parts that a later stage trains: larger LR features for its decoder, a detail branch."""
from __future__ import annotations

import dataclasses

import torch

from ..varsr import VARSR

FIDELITY = "vqvae.fidelity."
PIXELS = FIDELITY + "pixels."
DETAIL = "vqvae.detail."


@torch.no_grad()
def with_fidelity(model: VARSR, width: int, blocks: int, pixels: int) -> VARSR:
    """The model with LR features of `width` channels and `blocks` residual blocks per level, and a correction of the
    decoded pixels of `pixels` channels (0: none; all of them in `models/lr_features.py`).

    It restores as before: parts of another width start anew, with outputs of zero; those of the same width are kept,
    and further blocks begin as identities. Raises ValueError for fewer blocks than there are.
    """
    old = model.config.vqvae
    if width == old.fidelity_width and blocks < old.fidelity_blocks:
        raise ValueError(f"the model has {old.fidelity_blocks} fidelity blocks per level: they can grow, not shrink to "
                         f"{blocks}")
    if old.fidelity_pixels and pixels != old.fidelity_pixels:
        raise ValueError(f"the model corrects pixels with {old.fidelity_pixels} channels: they cannot become {pixels}")
    larger = VARSR(dataclasses.replace(model.config, vqvae=dataclasses.replace(
        old, fidelity_width=width, fidelity_blocks=blocks, fidelity_pixels=pixels)))
    kept = {name: value for name, value in model.state_dict().items()
            if width == old.fidelity_width or not name.startswith(FIDELITY) or name.startswith(PIXELS)}
    larger.load_state_dict(kept, strict=False)
    if width == old.fidelity_width:
        for level in larger.vqvae.fidelity.levels:
            for block in level[old.fidelity_blocks:]:
                torch.nn.init.zeros_(block.conv2.weight)
                torch.nn.init.zeros_(block.conv2.bias)
    return larger


def with_detail(model: VARSR, width: int, blocks: int) -> VARSR:
    """The model with a detail branch of `width` channels and `blocks` residual blocks (`models/detail.py`), fresh
    unless it has one of that shape already."""
    old = model.config.vqvae
    if (old.detail_width, old.detail_blocks) == (width, blocks):
        return model
    larger = VARSR(dataclasses.replace(model.config, vqvae=dataclasses.replace(
        old, detail_width=width, detail_blocks=blocks)))
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(DETAIL)}
    larger.load_state_dict(kept, strict=False)
    return larger
