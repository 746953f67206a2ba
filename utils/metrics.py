"""Image metrics: PSNR and SSIM on luma as the paper reports them, learned ones through pyiqa where installed."""
from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

# BT.601 studio range: Y in 16..235 from R, G, B in [0, 1]
LUMA_WEIGHTS, LUMA_OFFSET = (65.481, 128.553, 24.966), 16.0
PEAK = 255.0
SSIM_SIDE, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004

# pyiqa names of the learned metrics, and whether they compare with a reference
LEARNED = {"lpips": True, "dists": True, "niqe": False, "musiq": False, "maniqa": False, "clipiqa": False}


def luma(image: Tensor) -> Tensor:
    """Studio-range Y (..., H, W) float64 in 16..235 of RGB (..., 3, H, W) in [0, 1], of its 8-bit rounding."""
    rounded = (image.double().clamp(0, 1) * PEAK).round() / PEAK
    weights = torch.tensor(LUMA_WEIGHTS, dtype=torch.float64, device=image.device).view(3, 1, 1)
    return (rounded * weights).sum(-3) + LUMA_OFFSET


def _require_same_size(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise ValueError(f"picture {tuple(image.shape)} and reference {tuple(reference.shape)} differ in size")


def psnr_y(image: Tensor, reference: Tensor) -> float:
    """PSNR in dB on luma; pictures (3, H, W) in [0, 1]. Infinite for equal pictures."""
    _require_same_size(image, reference)
    error = (luma(image) - luma(reference)).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(PEAK ** 2 / error)


def ssim_y(image: Tensor, reference: Tensor) -> float:
    """SSIM on luma with an 11x11 Gaussian window, over the positions where it fits; pictures (3, H, W) in [0, 1].

    Raises ValueError for pictures smaller than the window.
    """
    _require_same_size(image, reference)
    if min(image.shape[-2:]) < SSIM_SIDE:
        raise ValueError(f"SSIM needs at least {SSIM_SIDE}x{SSIM_SIDE} pixels, got {tuple(image.shape[-2:])}")
    offsets = torch.arange(SSIM_SIDE, dtype=torch.float64, device=image.device) - SSIM_SIDE // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA ** 2))
    window = window / window.sum()

    def smooth(plane: Tensor) -> Tensor:
        rows = F.conv2d(plane[None, None], window.view(1, 1, -1, 1))
        return F.conv2d(rows, window.view(1, 1, 1, -1))[0, 0]

    a, b = luma(image), luma(reference)
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a ** 2, smooth(b * b) - mean_b ** 2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    ratio = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (ratio / ((mean_a ** 2 + mean_b ** 2 + c1) * (var_a + var_b + c2))).mean().item()


class LearnedMetrics:
    """The learned metrics of the paper through pyiqa; empty (with one log line) where it is not installed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.metrics: dict[str, object] = {}
        if importlib.util.find_spec("pyiqa") is None:
            log.info("pyiqa is not installed: LPIPS, DISTS, NIQE, MUSIQ, MANIQA, CLIPIQA and FID are left out "
                     "(pip install -r requirements-metrics.txt; its licence is non-commercial)")
            return
        import pyiqa
        for name in LEARNED:
            try:
                self.metrics[name] = pyiqa.create_metric(name, device=device)
            except Exception as error:  # pyiqa downloads weights: any network or cache failure ends here
                log.warning("metric %s is left out: its weights cannot be had (%s)", name, error)

    def measure(self, image: Tensor, reference: Tensor | None) -> dict[str, float]:
        """All available metrics of one picture (3, H, W) in [0, 1]."""
        values = {}
        for name, metric in self.metrics.items():
            if LEARNED[name] and reference is None:
                continue
            pictures = [image] if not LEARNED[name] else [image, reference]
            values[name] = float(metric(*(p[None].to(self.device) for p in pictures)))
        return values

    def fid(self, results: Path, references: Path) -> float | None:
        """FID between two folders, or None where it cannot be computed."""
        if not self.metrics:
            return None
        import pyiqa
        try:
            return float(pyiqa.create_metric("fid", device=self.device)(str(results), str(references)))
        except Exception as error:  # as above
            log.warning("FID is left out (%s)", error)
            return None
