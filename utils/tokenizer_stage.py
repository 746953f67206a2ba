"""Training stage of the multi-scale VQVAE: reconstruct crops through the residual quantiser."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.vqvae import VQVAE

from .grid import write_grid
from .optim import MovingAverage, clipped_step, parameter_groups, set_rates
from .pairs import Sampler
from .precision import autocast
from .schedule import Schedule

PEAK_TO_PEAK = 2.0  # of pictures in [-1, 1]
INIT_STD = 0.02


@dataclass(frozen=True)
class TokenizerSettings:
    """Hyper-parameters of the tokenizer stage."""

    batch_size: int = 16
    max_iters: int = 2000
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    warmup_iters: int = 50
    clip: float = 1.0
    commitment: float = 0.25
    continuous_share: float = 0.25  # of a batch is decoded without quantisation, as the refiner's result will be
    revive_every: int = 25
    revive_threshold: float = 0.1  # hits per step below which a code counts as dead
    ema: float = 0.999
    precision: str = "bf16"
    seed: int = 0
    val_batch: int = 32


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of pictures in [-1, 1]."""
    return float(10 * torch.log10(PEAK_TO_PEAK ** 2 / (a - b).square().mean()))


class TokenizerStage:
    """See `loop.Stage`. Keeps a moving average of the weights, which is what it validates and exports."""

    def __init__(self, model: VQVAE, sample: Sampler, validation: Tensor, settings: TokenizerSettings,
                 device: torch.device) -> None:
        """`validation`: held-out crops (M, 3, S, S) in [0, 1]."""
        self.settings, self.device, self.sample = settings, device, sample
        self.model = model.to(device, memory_format=torch.channels_last)
        self.validation = validation[:settings.val_batch].to(device) * 2 - 1
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay, ("codebook",)),
                                           lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
        self.schedule = Schedule("cos", settings.max_iters, settings.warmup_iters)
        self.average = MovingAverage(model, settings.ema)

    def train_step(self, iteration: int) -> dict[str, float]:
        """One step on a fresh batch."""
        settings = self.settings
        image = self.sample(settings.batch_size, self.generator).to(self.device) * 2 - 1
        set_rates(self.optimizer, settings.learning_rate * self.schedule.rate(iteration), settings.weight_decay)
        with autocast(self.device, settings.precision):
            latent = self.model.encode(image).float()
            quantized, code_loss, result = self.model.quantizer(latent, settings.commitment)
            continuous = round(settings.continuous_share * len(image))
            decoded = self.model.decode_unclamped(torch.cat([latent[:continuous], quantized[continuous:]])).float()
            pixel_loss = F.l1_loss(decoded, image) + F.mse_loss(decoded, image)
            loss = pixel_loss + code_loss
        loss.backward()
        norm = clipped_step(self.optimizer, self.model.parameters(), settings.clip)
        revived = 0
        if (iteration + 1) % settings.revive_every == 0 and self.schedule.rate(iteration) > 0.1:
            revived = self.model.quantizer.revive_dead_codes(
                latent.detach(), settings.revive_threshold, self.generator)
        self.average.update(self.model, iteration)
        return {"loss": loss.item(), "pixel": pixel_loss.item(), "codes": code_loss.item(), "grad_norm": norm,
                "psnr": psnr(decoded.detach()[continuous:], image[continuous:]), "revived": float(revived)}

    @torch.no_grad()
    def report(self, folder: Path, iteration: int) -> dict[str, float]:
        """Reconstruction PSNR of the held-out crops, after each scale and of the continuous latent; a sheet."""
        model, image = self.average.model, self.validation
        with autocast(self.device, self.settings.precision):
            latent = model.encode(image).float()
            codes = model.quantizer.encode(latent).codes
            values, shown, f_hat = {}, [image], torch.zeros_like(latent)
            for scale, indices in enumerate(codes):
                f_hat = f_hat + model.quantizer.contribution(model.quantizer.lookup(indices, scale), scale)
                decoded = model.decode(f_hat)
                values[f"psnr_{model.config.scales[scale]}"] = psnr(decoded, image)
                shown.append(decoded)
            shown.append(model.decode(latent))
        values["psnr_continuous"] = psnr(shown[-1], image)
        values["codes_used"] = float((model.quantizer.code_usage.sum(0) > self.settings.revive_threshold).sum())
        write_grid(folder / "sheets" / f"{iteration:07d}.png", [(rows[:8] + 1) / 2 for rows in shown])
        return values

    def state_dict(self) -> dict[str, Any]:
        """Model, average, optimiser and generator."""
        return {"model": self.model.state_dict(), "average": self.average.model.state_dict(),
                "optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])

    def export(self, folder: Path) -> None:
        """`vqvae.safetensors` of the averaged weights, float32."""
        tensors = {name: tensor.contiguous() for name, tensor in self.average.model.state_dict().items()}
        save_file(tensors, folder / "vqvae.safetensors")
