"""How well a tokenizer reconstructs pictures, scale by scale, and how much of its codebook it uses."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.metrics.full_reference import ssim
from models.vqvae import VQVAE
from pictures.luma import luma

from .device import autocast

PEAK_TO_PEAK = 2.0  # of pictures in [-1, 1]
CONTINUOUS = "continuous"  # column of the latent that was not quantised


@dataclass
class Reconstruction:
    """values: "psnr_SIDE" in dB over RGB and "ssim_SIDE" on luma after each scale and of the continuous latent, and
    the codebook's use. rows: the first pictures (M, 3, S, S) in [-1, 1], then the same after each scale and of the
    continuous latent."""

    values: dict[str, float]
    rows: list[Tensor]


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of all pictures in [-1, 1] together."""
    return float(10 * torch.log10(PEAK_TO_PEAK ** 2 / (a - b).square().mean()))


def codebook_use(codes: Tensor, vocab_size: int) -> dict[str, float]:
    """How many codes occur, and the perplexity: how many equally frequent ones would be as hard to guess."""
    share = torch.bincount(codes.flatten().cpu(), minlength=vocab_size).double() / codes.numel()
    entropy = -torch.special.xlogy(share, share).sum()
    return {"codes_used": float((share > 0).sum()), "perplexity": float(entropy.exp())}


@torch.no_grad()
def reconstruct(model: VQVAE, pictures: Tensor, precision: str, batch_size: int, shown: int = 8) -> Reconstruction:
    """Encode, quantise and decode `pictures` (M, 3, S, S) in [-1, 1], `batch_size` at a time.

    shown: how many pictures the rows hold.
    """
    names = [*map(str, model.config.scales), CONTINUOUS]
    errors, similarity = torch.zeros(len(names)), torch.zeros(len(names))
    codes: list[Tensor] = []
    rows: list[list[Tensor]] = [[] for _ in range(len(names) + 1)]
    for part in pictures.split(batch_size):
        with autocast(part.device, precision):
            decoded, part_codes = _decoded(model, part)
        codes += part_codes
        reference = luma((part + 1) / 2)
        for i, picture in enumerate(decoded):
            errors[i] += (picture - part).square().mean().cpu() * len(part)
            similarity[i] += ssim(luma((picture + 1) / 2), reference) * len(part)
        missing = shown - sum(map(len, rows[0]))
        for row, picture in zip(rows, [part, *decoded], strict=True):
            row.append(picture[:max(missing, 0)].cpu())
    values = {}
    for i, name in enumerate(names):
        values[f"psnr_{name}"] = float(10 * torch.log10(PEAK_TO_PEAK ** 2 * len(pictures) / errors[i]))
        values[f"ssim_{name}"] = float(similarity[i] / len(pictures))
    values |= codebook_use(torch.cat([part.flatten() for part in codes]), model.config.vocab_size)
    return Reconstruction(values, [torch.cat(row) for row in rows])


def _decoded(model: VQVAE, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures after each scale and of the continuous latent, clamped; and the codes of each scale."""
    latent = model.encode(pictures).float()
    codes = model.quantizer.encode(latent).codes
    decoded, f_hat = [], torch.zeros_like(latent)
    for scale, indices in enumerate(codes):
        f_hat = f_hat + model.quantizer.contribution(model.quantizer.lookup(indices, scale), scale)
        decoded.append(model.decode(f_hat))
    return [*decoded, model.decode(latent)], codes
