"""Training stage of the multi-scale VQVAE (VAR, section 3.2): reconstruct crops through the residual quantiser.

Losses: L1 + L2, a perceptual distance where it can be had, codebook and commitment at every scale, and after a warm-up
discriminators (VQGAN, section 3.1), so that codes carry texture and not only what squared error asks for. Part of each
batch is decoded from what training alone sees: the latent without quantisation, as the refiner's result will be, and
the sum of codes without the last scales, so that early scales say all they can.
"""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloader.pairs import CropSource
from dataloader.positions import Stream, generator_at
from evaluation.metrics.full_reference import luma, ssim
from models.vqvae import VQVAE
from models.weights.tokenizer_file import TOKENIZER_WEIGHTS, write_tokenizer
from pictures.sheets import write_grid
from utils.device import autocast
from utils.errors import UserError
from utils.ranks import Ranks

from .adversary import Adversary, AdversarySettings, Discriminators, Seen
from .flags import PATCH
from .log import spared
from .loop import numbers, timed
from .optim import MovingAverage, clipped_step, gradient_scaler, parameter_groups, restore_optimizer, set_rates
from .perceptual import Perceptual
from .schedule import Schedule, share_of

PEAK_TO_PEAK = 2.0  # of pictures in [-1, 1]
CONTINUOUS = "continuous"  # column of the latent that was not quantised
LATE = 0.1  # of the peak learning rate: below it codes are no longer moved
NO_DECAY = ("codebook",)


@dataclass
class Reconstruction:
    """values: "psnr_SIDE" in dB over RGB and "ssim_SIDE" on luma after each scale and of the continuous latent, and
    the codebook's use. rows: the first pictures (M, 3, S, S) in [-1, 1], then the same after each scale and of the
    continuous latent."""

    values: dict[str, float]
    rows: list[Tensor]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of all pictures in [-1, 1] together."""
    return 10 * torch.log10(PEAK_TO_PEAK ** 2 / (a - b).square().mean())


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


@dataclass(frozen=True)
class TokenizerSettings:
    """Hyper-parameters of the tokenizer stage."""

    batch_size: int = 16
    max_iters: int = 2000
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_iters: int = 50
    clip: float = 1.0
    commitment: float = 0.25
    continuous_share: float = 0.25  # of a batch is decoded without quantisation
    scale_dropout: float = 0.1  # share of the other rows that are decoded without their last scales
    max_dropped: int = 3  # scales that such a row loses at most
    perceptual_weight: float = 1.0  # of the perceptual distance, where it can be had
    adversary: str = PATCH
    adversarial_weight: float = 0.1  # 0: no discriminator
    adversarial_start: float = 0.5  # share of the iterations without it
    revive_every: int = 25
    revive_threshold: float = 0.1  # hits per step below which a code counts as dead
    ema: float = 0.999
    precision: str = "bf16"
    loss_scale: float = 2.0 ** 11  # initial, fp16 only
    seed: int = 0
    val_batch: int = 32

    def __post_init__(self) -> None:
        """Raises ValueError for values that no training can have."""
        for name in ("continuous_share", "scale_dropout", "adversarial_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share: must be in [0, 1], got {getattr(self, name)}")
        for name in ("commitment", "perceptual_weight", "adversarial_weight", "max_dropped", "revive_threshold"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.batch_size < 1 or self.revive_every < 1:
            raise UserError(f"batch_size and revive_every must be at least 1, got {self.batch_size} and "
                             f"{self.revive_every}")


class TokenizerStage:
    """Trains the tokenizer (a `loop.Stage`). A moving average of the weights is what it validates and exports."""

    def __init__(self, model: VQVAE, crops: CropSource, validation: Tensor, settings: TokenizerSettings,
                 device: torch.device, perceptual: Perceptual | None = None, ranks: Ranks | None = None) -> None:
        """`validation`: held-out crops (M, 3, S, S) in [0, 1]. `perceptual`: see `find_perceptual`; none by default;
        projected discriminators need its feature maps.
        ranks: processes that train it together: each must be given the same model and crops of its own.
        Gradients are averaged after the backward pass: one step calls several parts of the model, not
        one forward that DDP could wrap."""
        self.settings, self.device, self.crops, self.ranks = settings, device, crops, ranks or Ranks()
        self.best_metric = (f"psnr_{model.config.side}", 1.0)
        self.model = model.to(device, memory_format=torch.channels_last).train().requires_grad_(True)
        self.parameters = list(self.model.parameters())
        self.validation = validation[:settings.val_batch].to(device) * 2 - 1
        self.perceptual = perceptual or Perceptual()
        self.perceptual.calibrate(self.validation)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay, NO_DECAY),
                                           lr=settings.learning_rate, betas=settings.betas, fused=True)
        self.scaler = gradient_scaler(device, settings.precision, settings.loss_scale)
        self.schedule = Schedule("cos", settings.max_iters, settings.warmup_iters)
        self.average = MovingAverage(model, settings.ema)
        self.adversary = None
        if settings.adversarial_weight > 0:
            self.adversary = Adversary(
                AdversarySettings(settings.adversarial_weight, round(settings.adversarial_start * settings.max_iters),
                                  learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
                                  betas=settings.betas, clip=settings.clip, precision=settings.precision,
                                  loss_scale=settings.loss_scale),
                Discriminators(settings.adversary, self.perceptual.channels, conditional=False), device, self.ranks)

    def train_step(self, iteration: int, place: float | None = None) -> dict[str, float]:
        """One step on a fresh batch, and one of the discriminator once it takes part. place: see `loop.Stage`; by
        default that of a run of iterations."""
        place = iteration if place is None else place
        settings, rate = self.settings, self.schedule.rate(place)
        crops, wait = timed(self.crops.draw, self.device)
        image = crops * 2 - 1
        set_rates(self.optimizer, settings.learning_rate * rate, settings.weight_decay)
        continuous = share_of(settings.continuous_share, iteration * len(image), len(image))
        kept = self._kept_scales(len(image), iteration)
        with autocast(self.device, settings.precision):
            latent = self.model.encode(image).float()
            quantized, code_loss, _ = self.model.quantizer(latent, settings.commitment,
                                                           kept.to(self.device, non_blocking=True), self.ranks.sum_)
            decoded = self.model.decode_unclamped(torch.cat([latent[:continuous], quantized[continuous:]])).float()
        metrics: dict[str, float | Tensor] = {"lr": settings.learning_rate * rate, "wait": wait,
                                              "samples": float(len(image))}
        with autocast(self.device, settings.precision):
            fake = self._look(decoded, place)
            with torch.no_grad():
                real = self._look(image, place)
        loss = self._loss(fake, real, code_loss, place, metrics)
        self.scaler.scale(loss).backward()
        self.crops.draw_ahead(self.device)
        self.ranks.average_([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        metrics["grad_norm"] = clipped_step([self.optimizer], self.parameters, settings.clip, self.scaler)
        if self._adversarial(place):
            metrics["discriminator"] = self.adversary.step(fake, real, None, rate)
        metrics["revived"] = float(self._revive(latent.detach(), iteration, rate, metrics["grad_norm"]))
        self.average.update(self.model, iteration)
        metrics["psnr"] = self._psnr_of_codes(decoded.detach(), image, kept, continuous)
        return numbers(metrics)

    def _psnr_of_codes(self, decoded: Tensor, image: Tensor, kept: Tensor, continuous: int) -> Tensor | float:
        """Of the rows that say what the codes can do: all scales kept, not continuous."""
        whole = kept == len(self.model.config.scales)
        whole[:continuous] = False
        rows = whole.nonzero().flatten().to(self.device, non_blocking=True)
        return psnr(decoded[rows], image[rows]) if len(rows) else math.nan

    def _kept_scales(self, batch: int, iteration: int) -> Tensor:
        """How many scales each row (B,) keeps: all, or, for some, all but the last few. The first one always stays."""
        scales = len(self.model.config.scales)
        most = min(self.settings.max_dropped, scales - 1)
        if not most or not self.settings.scale_dropout:
            return torch.full((batch,), scales)
        place = iteration * self.ranks.world + self.ranks.rank
        generator = generator_at(self.settings.seed, Stream.SCALES, place)
        chosen = torch.rand(batch, generator=generator) < self.settings.scale_dropout
        dropped = torch.randint(1, most + 1, (batch,), generator=generator)
        return scales - dropped * chosen

    def _adversarial(self, place: float) -> bool:
        return self.adversary is not None and self.adversary.takes_part(place)

    def _look(self, pictures: Tensor, place: float) -> Seen:
        """Pictures, with their feature maps where somebody needs them in this step."""
        projected = self._adversarial(place) and self.settings.adversary != PATCH
        distance = self._perceives and self.perceptual.judge is None
        return self.perceptual.look(pictures) if projected or distance else Seen(pictures)

    @property
    def _perceives(self) -> bool:
        return self.perceptual.exists and self.settings.perceptual_weight > 0

    @property
    def distance(self) -> str:
        """Which perceptual distance it trains on."""
        return self.perceptual.description if self._perceives else "none"

    def _loss(self, fake: Seen, real: Seen, code_loss: Tensor, place: float,
              metrics: dict[str, float | Tensor]) -> Tensor:
        """All losses of the tokenizer together; each is told in `metrics`."""
        decoded, image = fake.picture, real.picture
        pixel = F.l1_loss(decoded, image) + F.mse_loss(decoded, image)
        reconstruction = pixel
        if self._perceives:
            with autocast(self.device, self.settings.precision):
                perceptual = self.perceptual.distance(fake, real).float()
            metrics["perceptual"] = perceptual
            reconstruction = reconstruction + self.settings.perceptual_weight * perceptual
        loss = reconstruction + code_loss
        if self._adversarial(place):
            loss = loss + self.adversary.balanced_loss(reconstruction, fake, None, self.model.decoder.conv_out.weight,
                                                       metrics)
        metrics |= {"loss": loss, "pixel": pixel, "codes": code_loss}
        return loss

    def _revive(self, latent: Tensor, iteration: int, rate: float, norm: float) -> int:
        """Move dead codes now and then, not late, when they could not settle any more, and not by a broken step."""
        due = (iteration + 1) % self.settings.revive_every == 0 and rate > LATE and math.isfinite(norm)
        if not due:
            return 0
        quantizer = self.model.quantizer
        moved = quantizer.revive_dead_codes(latent, self.settings.revive_threshold, self.generator)
        with torch.no_grad():
            places = quantizer.codebook.weight[moved]
            self.ranks.share_(places)
            quantizer.codebook.weight[moved] = places
            # between its old and its new place an averaged code would mean nothing
            self.average.model.quantizer.codebook.weight[moved] = places
        return len(moved)

    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """The averaged model on held-out crops (`Reconstruction.values`), codes in use while training; a sheet."""
        if not self.ranks.is_main:
            return {}
        model = self.average.model
        result = reconstruct(model, self.validation, self.settings.precision, self.settings.batch_size)
        with spared("the sheet", folder / "sheets"):
            write_grid(folder / "sheets" / f"{iteration:07d}.png", [(row + 1) / 2 for row in result.rows])
        alive = model.quantizer.code_usage.sum(0) >= self.settings.revive_threshold
        return {**result.values, "codes_alive": float(alive.sum())}

    def state_dict(self) -> dict[str, Any]:
        """Configuration, model, average, optimiser, loss scale, discriminator, generator and data position."""
        return {"config": dataclasses.asdict(self.model.config), "model": self.model.state_dict(),
                "average": self.average.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "adversary": None if self.adversary is None else self.adversary.state_dict(),
                "generator": self.generator.get_state(), "data": self.crops.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`. Raises ValueError for the state of another tokenizer, or where only one of both
        runs has a discriminator."""
        if state["config"] != dataclasses.asdict(self.model.config):
            raise UserError("the state saved in --output is of a tokenizer of another shape: resume with the flags of "
                             "that run, take another --output, or start over with --resume no")
        if (state["adversary"] is None) != (self.adversary is None):
            raise UserError("the saved state and --adversarial_weight disagree on whether there is a discriminator: "
                             "resume with the flags of the run, or start over with --resume no")
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.generator.set_state(state["generator"])
        self.crops.load_state_dict(state["data"])

    def export(self, folder: Path) -> None:
        """The averaged weights as a tokenizer file of its own."""
        if self.ranks.is_main:
            write_tokenizer(self.average.model, folder / TOKENIZER_WEIGHTS)
