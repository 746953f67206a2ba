"""Free-running validation of a super-resolution model while it trains: held-out pairs through the one generation path.

Teacher-forced losses say little about what a model does on its own wrong codes, so the pictures are generated as a
user would have them, from the bicubic LR picture with the model's own sampling settings, and measured.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dataloader.held_out import HeldOut
from evaluation.metrics.full_reference import gmsd, gray, high_frequency, luma, psnr_y, ssim_y
from evaluation.metrics.learned import LearnedMetrics
from evaluation.protocols import ST_LPIPS
from models.config import HIGH_QUALITY, GenerationConfig
from models.quantizer import Quantized
from models.varsr import VARSR, ScaleStep
from pictures.rgb import save_picture, upsample
from pictures.sheets import SheetLayout, comparison_sheet
from utils.device import autocast

from .log import spared

if TYPE_CHECKING:
    from .perceptual import Perceptual


Metric = Callable[[Tensor, Tensor], float]
METRICS: dict[str, Metric] = {"psnr_y": psnr_y, "ssim_y": ssim_y,
                              "gmsd": lambda image, reference: gmsd(gray(image), gray(reference))}
SHEET_COLUMN = 256  # pixels
DETAIL_SHARE = 3  # a third of a side is magnified
LR_COLUMN, BICUBIC_COLUMN, OUR_COLUMN, HR_COLUMN = "LR", "bicubic", "ours", "HR"


@dataclass(frozen=True)
class ValidationSettings:
    """How held-out pairs are restored and shown."""

    precision: str = "bf16"
    batch_size: int = 8
    seed: int = 0
    sheet_rows: int = 6


class Validation:
    """Held-out pairs, ready to be restored again and again."""

    def __init__(self, pairs: HeldOut, settings: ValidationSettings | None = None) -> None:
        self.settings, self.pairs = settings or ValidationSettings(), pairs
        scale = pairs.target.shape[-1] / pairs.lr.shape[-1]
        self.guides = torch.stack([upsample(lr, scale) for lr in pairs.lr.cpu()])  # bicubic, (M, 3, S, S)
        self.learned = LearnedMetrics(torch.device("cpu"), (ST_LPIPS,))
        self.bicubic = {f"{name}_bicubic": value for name, value in self._measure(self.guides).items()}

    @property
    def photographs(self) -> Tensor:
        """The HR pictures (M, 3, S, S) in [0, 1]."""
        return self.pairs.target

    @torch.no_grad()
    def run(self, model: VARSR, sheet: Path | None = None, fidelity: float | None = None,
            perceptual: Perceptual | None = None) -> dict[str, float]:
        """Means over the pairs: PSNR-Y, SSIM-Y, GMSD and, with its weights here, ST-LPIPS of the restored pictures and
        of bicubic enlargement, high-frequency energy as a share of the HR pictures', and the share of right codes of
        every scale's side ("accuracy_SIDE"; "forced_accuracy_SIDE" of the same scale when all codes before it are the
        right ones).

        sheet: file for the columns LR, bicubic, ours, HR. fidelity: see `VARSR.decode`. perceptual: the distance
        of restored and HR pictures that it sees is measured too. The model is left as it was; nothing random is drawn
        from global generators.
        """
        restored, hits, forced = [], [], []
        options = model.config.generation
        if fidelity is not None:
            options = dataclasses.replace(options, fidelity=fidelity)
        for part in torch.arange(len(self.guides)).split(self.settings.batch_size):
            target, guides = self.pairs.target[part].to(model.device), self.guides[part].to(model.device)
            with autocast(model.device, self.settings.precision):
                expected = model.vqvae.quantizer.encode(model.vqvae.encode(target * 2 - 1))
                forced.append(_forced_hits(model, guides, expected))
                seeds = [self.settings.seed + int(i) for i in part]
                pictures, right = _generate(model, guides, options, seeds, expected.codes)
            restored.append(pictures)
            hits.append(right)
        pictures = torch.cat(restored)
        if sheet is not None:
            self._write_sheet(pictures, sheet)
        sides = model.config.vqvae.scales
        values = self._measure(pictures)
        if perceptual is not None:
            values["perceptual"] = mean_distance(pictures, self.pairs.target, perceptual, self.settings.batch_size,
                                                 model.device)
        return {**values, **self.bicubic, **_shares("accuracy", hits, sides),
                **_shares("forced_accuracy", forced, sides)}

    def _measure(self, pictures: Tensor) -> dict[str, float]:
        """`measure`, and the learned metrics that can be had here."""
        rows = [self.learned.distance(*(each.float().cpu() for each in pair))
                for pair in zip(pictures, self.pairs.target, strict=True)]
        learned = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return {**measure(pictures, self.pairs.target), **learned}

    def _write_sheet(self, restored: Tensor, path: Path) -> None:
        size = self.pairs.target.shape[-2:]
        enlarged = torch.nn.functional.interpolate(self.pairs.lr.float().cpu(), size=size, mode="nearest")
        rows = {}
        for i in range(min(self.settings.sheet_rows, len(restored))):
            rows[str(i)] = {LR_COLUMN: enlarged[i], BICUBIC_COLUMN: self.guides[i], OUR_COLUMN: restored[i],
                            HR_COLUMN: self.pairs.target[i].cpu()}
        layout = SheetLayout(column=SHEET_COLUMN, whole=SHEET_COLUMN, detail=SHEET_COLUMN, per_line=1,
                             magnification=max(SHEET_COLUMN * DETAIL_SHARE // min(size), 1))
        with spared("the sheet", path.parent):
            save_picture(comparison_sheet(rows, layout), path)


def _generate(model: VARSR, guides: Tensor, options: GenerationConfig, seeds: list[int],
              expected: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Pictures restored from guides (B, 3, S, S) in [0, 1]; for each scale, which codes are the `expected` ones."""
    hits: list[Tensor] = []

    def compare(step: ScaleStep) -> None:
        hits.append((step.codes == expected[step.scale]).float().cpu())
    pictures = model.generate(guides, options=options, seed=seeds, on_scale=compare)
    return pictures.float().cpu(), hits


def _forced_hits(model: VARSR, guides: Tensor, expected: Quantized) -> list[Tensor]:
    """For each scale, which codes are right when it is predicted from the right codes of the scales before it."""
    labels = torch.full((len(guides),), HIGH_QUALITY, device=model.device)
    _, logits = model.transformer(labels, expected.inputs, model.transformer.prefix_encoder(guides * 2 - 1))
    predictions = logits.argmax(-1).split([side * side for side in model.config.vqvae.scales], dim=1)
    return [(codes == right).float().cpu() for codes, right in zip(predictions, expected.codes, strict=True)]


def measure(pictures: Tensor, targets: Tensor) -> dict[str, float]:
    """Means of METRICS over pictures (M, 3, H, W) in [0, 1], and their high-frequency energy over the targets'."""
    pictures, targets = pictures.float().cpu(), targets.float().cpu()
    values = {name: sum(metric(*pair) for pair in zip(pictures, targets, strict=True)) / len(pictures)
              for name, metric in METRICS.items()}
    detail = high_frequency(luma(targets))
    values["high_frequency"] = high_frequency(luma(pictures)) / detail if detail else float("nan")
    return values


def mean_distance(pictures: Tensor, targets: Tensor, perceptual: Perceptual, batch_size: int,
                  device: torch.device) -> float:
    """Mean perceptual distance of pictures (M, 3, H, W) in [0, 1] from their targets, looked at in batches."""
    total = 0.0
    for part in torch.arange(len(pictures)).split(batch_size):
        seen = [perceptual.look(each[part].float().to(device) * 2 - 1) for each in (pictures, targets)]
        total += perceptual.distance(*seen).item() * len(part)
    return total / len(pictures)


def _shares(name: str, hits: list[list[Tensor]], sides: tuple[int, ...]) -> dict[str, float]:
    """Mean of each scale's hits over all batches."""
    return {f"{name}_{side}": torch.cat([batch[scale] for batch in hits]).mean().item()
            for scale, side in enumerate(sides)}


def scale_metrics(model: VARSR, token_losses: Tensor, hits: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and the share of right codes of every scale's side, of values (B, tokens)."""
    sides = model.config.vqvae.scales
    return {f"{name}_{side}": value for name, values in (("cross_entropy", token_losses), ("accuracy", hits))
            for side, value in zip(sides, model.by_scale(values), strict=True)}
