"""Training stages of the debug preset on smooth random pictures, on any device."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from dataloader.entries import Failures
from dataloader.held_out import HeldOut
from dataloader.pairs import BatchLoader, ClassSource, CropSource, PairSource, WithNegatives, drawn
from dataloader.positions import Stream, generator_at
from models.config import HIGH_QUALITY, PRESETS
from models.initialization import initialize
from models.varsr import VARSR
from models.vqvae import VQVAE
from models.weights.transfer import with_detail, with_faithful
from training.class_detail import ClassDetailSettings, ClassDetailStage, DecodedClasses
from training.class_validation import ClassValidation
from training.decoder import DecoderSettings, DecoderStage
from training.detail import DetailSettings, DetailStage
from training.faithful import FaithfulSettings, FaithfulStage
from training.perceptual import FeatureNetwork, Perceptual
from training.tokenizer import TokenizerSettings, TokenizerStage
from training.transformer import TransformerSettings, TransformerStage, refiner_draws
from training.validation import Validation, ValidationSettings
from utils.ranks import Ranks

CPU = torch.device("cpu")
CLASSES = 3


class Blobs:
    """Smooth random pictures (32, 32, 3). count: how many different ones there are; without it, no end of them."""

    failures = Failures()

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        position = position if self.count is None else position % self.count
        coarse = torch.rand(1, 3, 4, 4, generator=generator_at(seed, Stream.CROP, position))
        smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)[0]
        return (smooth * 255).byte().permute(1, 2, 0).numpy(), self.label(position)

    def label(self, position: int) -> int:
        return HIGH_QUALITY


class ClassBlobs(Blobs):
    """The same in classes."""

    def label(self, position: int) -> int:
        return position % CLASSES


def blur(hr: Tensor, generator: torch.Generator) -> Tensor:
    small = torch.nn.functional.avg_pool2d(hr, 4)
    noisy = small + 0.02 * torch.randn(small.shape, generator=generator).to(hr.device)
    return torch.nn.functional.interpolate(noisy, size=hr.shape[-2:], mode="bilinear").clamp(0, 1)


def pairs(batch: int, negative_share: float = 0.0, source: Blobs | None = None) -> PairSource:
    return PairSource(BatchLoader(WithNegatives(source or Blobs(), negative_share), batch), blur, group=batch)


def validation() -> Validation:
    target = drawn(Blobs(), 4, seed=9)
    pairs = HeldOut(target, torch.nn.functional.avg_pool2d(target, 4))
    return Validation(pairs, ValidationSettings(precision="fp32", batch_size=3, sheet_rows=2))


def fresh_model() -> VARSR:
    torch.manual_seed(0)
    config = PRESETS["varsr-debug"]
    model = VARSR(dataclasses.replace(config, vqvae=dataclasses.replace(config.vqvae, fidelity_width=8)))
    initialize(model)
    return model


def fresh_class_model() -> VARSR:
    torch.manual_seed(0)
    config = PRESETS["varsr-debug"]
    transformer = dataclasses.replace(config.transformer, prefix=None, class_rows=CLASSES + 1)
    model = VARSR(dataclasses.replace(config, transformer=transformer))
    initialize(model)
    return model


def tokenizer_stage(perceptual: Perceptual | None = None, ranks: Ranks | None = None, device: torch.device = CPU,
                    source: Blobs | None = None, **changes: float) -> TokenizerStage:
    torch.manual_seed(0)
    settings = TokenizerSettings(**{"batch_size": 8, "max_iters": 60, "warmup_iters": 5, "learning_rate": 3e-3,
                                    "precision": "fp32", "revive_every": 10, **changes})
    validation = drawn(Blobs(), 8, seed=9)
    crops = CropSource(BatchLoader(source or Blobs(), 8))
    return TokenizerStage(VQVAE(PRESETS["varsr-debug"].vqvae), crops, validation, settings, device, perceptual, ranks)


def transformer_stage(device: torch.device = CPU, source: Blobs | None = None, **changes) -> TransformerStage:
    settings = TransformerSettings(**{"batch_size": 8, "max_iters": 40, "learning_rate": 3e-3, "precision": "fp32",
                                      **changes})
    return TransformerStage(fresh_model(), pairs(8, 0.25, source), validation(), settings, device)


def class_stage(device: torch.device = CPU, count: int | None = None, **changes) -> TransformerStage:
    settings = TransformerSettings(**{"batch_size": 8, "max_iters": 40, "learning_rate": 3e-3, "precision": "fp32",
                                      **changes})
    model = fresh_class_model()
    held_out = ClassSource(BatchLoader(ClassBlobs(), 4, seed=9)).draw(device)
    draws = partial(refiner_draws, model.config, settings.seed, device=device)
    validation = ClassValidation(held_out, held_out, draws, settings.precision, batch_size=3)
    return TransformerStage(model, ClassSource(BatchLoader(ClassBlobs(count), 8)), validation, settings, device)


def decoder_stage(device: torch.device = CPU, source: Blobs | None = None, **changes) -> DecoderStage:
    settings = DecoderSettings(**{"batch_size": 4, "fresh": 2, "pool_size": 8, "max_iters": 50, "warmup_iters": 2,
                                  "precision": "fp32", "learning_rate": 2e-3, **changes})
    return DecoderStage(fresh_model(), pairs(2, source=source), validation(), settings, device)


def faithful_stage(device: torch.device = CPU, source: Blobs | None = None, **changes) -> FaithfulStage:
    settings = FaithfulSettings(**{"batch_size": 4, "fresh": 2, "pool_size": 8, "max_iters": 40, "warmup_iters": 2,
                                   "precision": "fp32", "learning_rate": 4e-3, **changes})
    return FaithfulStage(with_faithful(fresh_model(), 8, 1), pairs(2, source=source), validation(), settings, device)


class Convolutions(torch.nn.Module):
    """Two random layers in place of a pretrained network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 8, 3, 2, 1)])
        self.feature_info = SimpleNamespace(channels=lambda: [4, 8])

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.layers[0](x)
        return [first, self.layers[1](first.relu())]


class Squares(torch.nn.Module):
    """A judge."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean(dim=(1, 2, 3))


def perceptual(judge: torch.nn.Module | None = None, device: torch.device = CPU) -> Perceptual:
    return Perceptual(FeatureNetwork(Convolutions()).to(device), judge, description="two layers")


def detail_stage(device: torch.device = CPU, source: Blobs | None = None, faithful: bool = True,
                 **changes) -> DetailStage:
    """faithful: whether the branch goes on from a faithful one, or from decoded pictures."""
    torch.manual_seed(0)
    settings = DetailSettings(**{"batch_size": 4, "fresh": 2, "renew_every": 2, "pool_size": 8, "max_iters": 40,
                                 "warmup_iters": 2, "precision": "fp32", "learning_rate": 2e-3, **changes})
    start = fresh_model()
    model = with_detail(with_faithful(start, 8, 1) if faithful else start, 8, 1)
    return DetailStage(model, pairs(2, source=source), validation(), settings, perceptual(Squares(), device), device)


class MeanColours:
    """In place of a network's features: the mean colours of the quarters of pictures."""

    def of_all(self, batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.adaptive_avg_pool2d(batch.float().cpu(), 2).flatten(1).double()
                          for batch in batches])


def class_detail_stage(device: torch.device = CPU, count: int | None = None, **changes) -> ClassDetailStage:
    torch.manual_seed(0)
    settings = ClassDetailSettings(**{"batch_size": 4, "fresh": 2, "renew_every": 2, "pool_size": 8, "max_iters": 40,
                                       "warmup_iters": 2, "precision": "fp32", "learning_rate": 2e-3, **changes})
    held_out = ClassSource(BatchLoader(ClassBlobs(), 5, seed=9)).draw(device)
    expected = DecodedClasses(held_out, MeanColours(), settings.precision, batch_size=3)
    model, crops = with_detail(fresh_class_model(), 8, 1), ClassSource(BatchLoader(ClassBlobs(count), 2))
    return ClassDetailStage(model, crops, expected, settings, perceptual(Squares(), device), device)
