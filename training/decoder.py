"""Third training stage: the decoder learns from the latents that the transformer really generates.

In the tokenizer stage the decoder saw latents of clean pictures only. Here transformer, refiner and encoder are
frozen; the decoder and its fidelity features are trained on generated latents and the LR picture, on pixels and
structural similarity (the idea of CodeFormer, stage III, and of StableSR's feature skips). The result is as faithful
as the model can be, and soft: sharpness is the detail stage's business (detail.py).
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloader.pairs import PairSource
from evaluation.metrics.full_reference import mean_ssim, smooth_luma
from models.varsr import VARSR
from utils.device import autocast
from utils.errors import UserError
from utils.ranks import Ranks

from .loop import numbers
from .pixel_losses import chroma_distance
from .pool import PooledSettings, PooledStage, from_bytes, to_bytes
from .setup import Setup, generating_parts
from .validation import Validation

# Flags that are fields of the settings under the same name.
FIELDS = {name: name for name in ("ssim_weight", "chroma_weight", "pool_size", "renew_every")}


@dataclass(frozen=True)
class DecoderSettings(PooledSettings):
    """Hyper-parameters of the decoder stage."""

    ssim_weight: float = 0.0  # of 1 - SSIM of the luma, beside the L1 of the pixels
    chroma_weight: float = 0.0  # of L1 of Cb and Cr besides


class DecoderStage(PooledStage):
    """Trains the decoder and its LR features on generated latents."""

    best_metric = ("psnr_y", 1.0)
    fidelity = 1.0

    def __init__(self, model: VARSR, pairs: PairSource, validation: Validation, settings: DecoderSettings,
                 device: torch.device) -> None:
        super().__init__(model, self._part(model), pairs, validation, settings, device)

    @staticmethod
    def _part(model: VARSR) -> torch.nn.Module:
        """What is trained. Raises UserError for a model whose decoder has no part in its pictures."""
        if model.vqvae.restores:
            raise UserError("a branch restores this model's pictures, not the decoder: train it with --stage faithful")
        parts = (model.vqvae.decoder, model.vqvae.post_quant, model.vqvae.fidelity)
        return torch.nn.ModuleList([part for part in parts if part is not None])

    def _add_samples(self) -> float:
        """See the base class."""
        pairs, latent, wait = self.generated()
        self.pool.add(latent=latent, target=to_bytes(pairs.target), lr=to_bytes(pairs.lr))
        return wait

    def train_step(self, iteration: int, place: float | None = None) -> dict[str, float]:
        """One step of the part. place: see `loop.Stage`; by default that of a run of iterations."""
        wait = self.renew(iteration)
        drawn = self.drawn()
        target, lr = from_bytes(drawn["target"]), from_bytes(drawn["lr"])
        rate = self.set_rate(iteration if place is None else place)
        with autocast(self.device, self.settings.precision):
            restored = self._restored(drawn, lr).float()
        metrics: dict[str, float | Tensor] = {"lr": self.settings.learning_rate * rate, "wait": wait,
                                              "samples": float(len(target))}
        loss = self._loss(restored, target, metrics)
        self.step(loss, iteration, metrics)
        return numbers({"loss": loss, **metrics})

    def _restored(self, drawn: dict[str, Tensor], lr: Tensor) -> Tensor:
        """What the part makes of a batch of the pool, in [-1, 1]."""
        return self.model.vqvae.decode_unclamped(drawn["latent"], lr)

    def _loss(self, restored: Tensor, target: Tensor, metrics: dict[str, float | Tensor]) -> Tensor:
        """L1 of the pixels and, with weights, of the colours, and structural similarity of the luma (Zhao et al. 2017,
        section III)."""
        loss = F.l1_loss(restored, target)
        metrics["pixel"] = loss
        if self.settings.ssim_weight > 0:
            similarity = mean_ssim(smooth_luma((restored + 1) / 2), smooth_luma((target + 1) / 2))
            metrics["ssim"] = similarity
            loss = loss + self.settings.ssim_weight * (1 - similarity)
        if self.settings.chroma_weight > 0:
            chroma = chroma_distance(restored, target)
            metrics["chroma"] = chroma
            loss = loss + self.settings.chroma_weight * chroma
        return loss


def set_up(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Setup:
    """The stage from the flags. Raises as `generating_parts`."""
    parts = generating_parts(args, device, ranks, DecoderSettings, FIELDS)
    return Setup(parts.settings, parts.model, lambda: DecoderStage(*parts, device))
