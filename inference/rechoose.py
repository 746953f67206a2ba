"""Codes of the last scales chosen again beside the LR picture, before pixels are projected (`consistency.py`).

The transformer says how likely a code is, the LR picture how well it fits: by Bayes' rule the logarithms add up. The
misfit is the energy E = |D(decode(latent)) - LR|^2 in squared levels; its gradient through the decoder says to first
order what any other code would change, so that one backward pass serves all candidates (as in gradient-guided discrete
search, Shin et al., AutoPrompt, 2020, equation 2).
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.sampling import to_device
from models.varsr import VARSR
from pictures.rgb import LEVELS_8

from .consistency import ReducedAxis, Reduction, target_region
from .settings import LRConsistency
from .windows import TiledPicture, Window

SCALES = 2  # the last ones
CANDIDATES = 32  # likeliest codes that are looked at for each token
WEIGHT = 0.1  # of E beside log p: a misfit of normal distribution, its deviation (2 * 0.1)^-1/2 = 2.2 levels


class WindowFit:
    """The misfit of a window: only what lies in the picture counts, and the LR pixels that see nothing beside it."""

    def __init__(self, picture: TiledPicture, window: Window, noise: float, device: torch.device) -> None:
        size, source = picture.config.image_size, picture.source
        top, left = window.top * picture.factor, window.left * picture.factor
        rows = ReducedAxis(picture.height, source.height, top, min(top + size, picture.height), device)
        columns = ReducedAxis(picture.width, source.width, left, min(left + size, picture.width), device)
        self.reduction = Reduction(rows, columns)
        self.target = target_region(source, noise, rows.start, columns.start, rows.stop - rows.start,
                                    columns.stop - columns.start).to(device)

    def energy(self, pixels: Tensor) -> Tensor:
        """Sum of squared differences in levels of pixels (3, S, S) in [0, 1]."""
        inside = pixels[:, :self.reduction.rows.count, :self.reduction.columns.count]
        return ((self.reduction(inside) - self.target) * LEVELS_8).square().sum()


class Rechooser:
    """A `varsr.Rechoose` for a batch of windows and their guides (B, 3, S, S) in [0, 1].

    One window after the other: the decoder's backward pass needs far more memory than generating, and a window's codes
    are the same whatever the batch. Detail and colour fix, which come later, are left out of the energy.
    """

    def __init__(self, model: VARSR, windows: Sequence[tuple[TiledPicture, Window]], guides: Tensor,
                 consistency: LRConsistency, weight: float = WEIGHT) -> None:
        self.model, self.guides, self.weight = model, guides, weight
        with torch.inference_mode(False):  # a caller may be in it, and its tensors know no gradients
            self.fits = [WindowFit(*each, consistency.noise, model.device) for each in windows]
        count = len(model.config.vqvae.scales)
        self.scales = range(max(count - SCALES, 0), count)

    def __call__(self, scale: int, logits: Tensor, codes: Tensor, f_hat: Tensor) -> Tensor:
        """See `varsr.Rechoose`. The codes with the largest log p - weight * dE; among those that are likelier than the
        sampler's own, its choice stays free: they count as likely as that. Weight 0 leaves the codes as they are."""
        if not self.weight:
            return codes
        return torch.stack([self._window(i, scale, *each)
                            for i, each in enumerate(zip(logits.float(), codes, f_hat, strict=True))])

    def _window(self, index: int, scale: int, logits: Tensor, codes: Tensor, f_hat: Tensor) -> Tensor:
        """Codes (L,) of logits (L, V), codes (L,) and a latent (c, N, N): the new ones where, all together, they do fit
        better than the old ones, which a first-order estimate cannot know."""
        if self.fits[index].reduction.is_empty:
            return codes
        before, gradient = self.gradient(index, scale, codes, f_hat)
        chosen = self._likely(logits, codes, gradient)
        after = self.energy(index, scale, self.model.vqvae.quantizer.lookup(chosen[None], scale), f_hat)
        return torch.where(after < before, chosen, codes)

    def _likely(self, logits: Tensor, codes: Tensor, gradient: Tensor) -> Tensor:
        """Codes (L,) by likelihood and gradient (L, c)."""
        vectors = self.model.vqvae.quantizer.codebook.weight.float()
        likely = logits.topk(min(CANDIDATES, logits.shape[-1])).indices  # (L, C)
        likelihood = logits.gather(1, likely) - logits.gather(1, codes[:, None])  # log p(v) - log p(own)
        change = ((vectors[likely] - vectors[codes][:, None]) * gradient[:, None]).sum(-1)
        score, best = (likelihood.clamp(max=0) - self.weight * change).max(-1)
        return torch.where(score > 0, likely.gather(1, best[:, None])[:, 0], codes)

    def energy(self, index: int, scale: int, embedding: Tensor, f_hat: Tensor) -> Tensor:
        """E of a window with code vectors (1, c, n, n) at a scale, on the latent (c, N, N) of the scales before."""
        vqvae = self.model.vqvae
        latent = f_hat[None] + vqvae.quantizer.contribution(embedding, scale)
        guide = to_device(self.guides[index:index + 1], self.model.device) * 2 - 1
        detail = 1.0 if vqvae.restores else 0.0  # all that codes have a part in, where a branch restores the picture
        return self.fits[index].energy((vqvae.decode_unclamped(latent, guide, detail)[0].float() + 1) / 2)

    def gradient(self, index: int, scale: int, codes: Tensor, f_hat: Tensor) -> tuple[Tensor, Tensor]:
        """E, and its gradient (L, c) by the code vectors of a scale. Inference mode's tensors know no gradients: what
        comes from there is copied."""
        with torch.inference_mode(False), torch.enable_grad():
            codes, f_hat = codes.clone(), f_hat.clone()
            embedding = self.model.vqvae.quantizer.lookup(codes[None], scale).float().detach().requires_grad_()
            energy = self.energy(index, scale, embedding, f_hat)
            gradient, = torch.autograd.grad(energy, embedding)
        return energy.detach(), gradient[0].flatten(1).T
