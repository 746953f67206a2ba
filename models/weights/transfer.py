"""Starting from another model's weights: what fits is copied, what can be made to fit is, the rest is named.

A super-resolution model starts from a class-to-image one, of ours, of VARSR's authors or the original VAR, whose
scales and classes are others. A model may also grow a part: LR features, a detail branch.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from utils.errors import UserError

from ..varsr import VARSR
from .load import LooseTensors, load_loose
from .unpickle import CheckpointError
from .weight_file import finite

LEVELS = "transformer.level_embedding.weight"
CLASSES = "transformer.class_embedding.weight"
START = "transformer.start_position"
BLOCKS = "transformer.blocks."
FIDELITY = "vqvae.fidelity."
PIXELS = FIDELITY + "pixels."
DETAIL = "vqvae.detail."
FAITHFUL = "vqvae.faithful."


@dataclass(frozen=True)
class Transfer:
    """What `transfer_weights` did, by our tensor names."""

    loaded: list[str]
    resized: dict[str, str]  # name: how
    fresh: list[str]  # of the model, left as they were
    unused: list[str]  # of the file


@torch.no_grad()
def transfer_weights(model: VARSR, source: str | PathLike | LooseTensors) -> Transfer:
    """Copy into a model every tensor of a file (`load_loose`) that it has under the same name and shape, or that can
    be made to have it. Raises CheckpointError when nothing of the transformer fits or a value is not finite.
    """
    file = source if isinstance(source, LooseTensors) else load_loose(source)
    own = model.state_dict()
    loaded, resized = [], {}
    for name, tensor in file.tensors.items():
        if name not in own or tensor.is_floating_point() != own[name].is_floating_point():
            continue
        how = None
        if tensor.shape != own[name].shape:
            tensor, how = _resized(name, tensor, own[name], file, model.config.vqvae.scales)
            if tensor is None:
                continue
        if tensor.is_floating_point() and not finite(tensor):
            raise CheckpointError(f"{source}: tensor '{name}' has NaN or infinite values")
        own[name].copy_(tensor)
        if how is None:
            loaded.append(name)
        else:
            resized[name] = how
    core = file.super_resolution is None or any(name.startswith(BLOCKS) and name.endswith(".weight") for name in loaded)
    if not loaded or not core:
        raise CheckpointError(f"{source} has no tensor of a transformer that fits this model: its size or kind differs")
    taken = {*loaded, *resized}
    return Transfer(loaded, resized, [name for name in own if name not in taken],
                    [name for name in file.tensors if name not in taken])


def _resized(name: str, tensor: Tensor, target: Tensor, file: LooseTensors,
             scales: tuple[int, ...]) -> tuple[Tensor | None, str]:
    """A tensor in the shape of the model's, and how that was done; None where it cannot be."""
    if tensor.ndim != target.ndim or tensor.shape[-1] != target.shape[-1]:
        return None, ""
    if name == LEVELS and file.scales is not None:
        rows = [min(range(len(file.scales)), key=lambda row: abs(file.scales[row] - side)) for side in scales]
        return tensor[rows], f"rows of the nearest of the scales {'_'.join(map(str, file.scales))}"
    if name == CLASSES and len(tensor) > 1:
        conditional = tensor[:-1].mean(0, keepdim=True).expand(len(target) - 1, -1)
        return torch.cat([conditional, tensor[-1:]]), (f"{len(tensor) - 1} classes averaged to {len(target) - 1}, the "
                                                       "unconditional one kept")
    if name == START and len(tensor) == 1 and 0 < tensor.shape[1] < target.shape[1]:
        grown = target.clone()
        grown[:, -tensor.shape[1]:] = tensor
        return grown, "the class token's position; those of the prefix stay as drawn"
    return None, ""


@torch.no_grad()
def with_fidelity(model: VARSR, width: int, blocks: int, pixels: int) -> VARSR:
    """The model with LR features of `width` channels and `blocks` residual blocks per level, and a correction of the
    decoded pixels of `pixels` channels (0: none; all of them in `models/branches.py`).

    It restores as before: parts of another width start anew, with outputs of zero; those of the same width are kept,
    and further blocks begin as identities. Raises ValueError for fewer blocks than there are.
    """
    old = model.config.vqvae
    if width == old.fidelity_width and blocks < old.fidelity_blocks:
        raise UserError(f"the model has {old.fidelity_blocks} fidelity blocks per level: they can grow, not shrink to "
                         f"{blocks}")
    if old.fidelity_pixels and pixels != old.fidelity_pixels:
        raise UserError(f"the model corrects pixels with {old.fidelity_pixels} channels: they cannot become {pixels}")
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


@torch.no_grad()
def with_faithful(model: VARSR, width: int, blocks: int) -> VARSR:
    """The model with a faithful branch of `width` channels and `blocks` residual blocks (`models/branches.py`) in place
    of what its decoder sees of the LR picture, fresh unless it has one of that shape already. A detail branch that was
    trained for another faithful picture goes."""
    old = model.config.vqvae
    if (old.faithful_width, old.faithful_blocks) == (width, blocks):
        return model
    larger = VARSR(dataclasses.replace(model.config, vqvae=dataclasses.replace(
        old, faithful_width=width, faithful_blocks=blocks, fidelity_width=0, fidelity_pixels=0, detail_width=0)))
    kept = {name: value for name, value in model.state_dict().items()
            if not name.startswith((FIDELITY, FAITHFUL, DETAIL))}
    larger.load_state_dict(kept, strict=False)
    return larger


@torch.no_grad()
def with_detail(model: VARSR, width: int, blocks: int) -> VARSR:
    """The model with a detail branch of `width` channels and `blocks` residual blocks (`models/branches.py`), fresh
    unless it has one of that shape already. It sees the LR picture in a super-resolution model; on a faithful branch it
    hears the latent's channels by their deviations, which are taken from those of the code vectors."""
    old = model.config.vqvae
    if (old.detail_width, old.detail_blocks) == (width, blocks):
        return model
    larger = VARSR(dataclasses.replace(model.config, vqvae=dataclasses.replace(
        old, detail_width=width, detail_blocks=blocks, detail_lr=model.config.is_super_resolution)))
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(DETAIL)}
    larger.load_state_dict(kept, strict=False)
    if larger.vqvae.restores:
        larger.vqvae.detail.latent_cells.deviation.copy_(model.vqvae.quantizer.codebook.weight.std(0))
    return larger
