"""The two-stage Real-ESRGAN degradation (Wang et al. 2021) on batches of tensors, on any device.

Every sample draws its own blur, noise and compression. The sizes of the resizing steps are shared by small groups
of neighbouring samples, so that a group stays one tensor.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from pictures.rgb import BT601
from utils.errors import UserError

from .jpeg import constant, jpeg
from .kernels import filter_each, gaussian_kernels, identity, sinc_kernels

DEFAULT_FILE = Path(__file__).with_name("degradation.yml")
LEVELS = 255.0
POISSON_COUNTS = 256.0  # photons that make white
MAX_SEED = 2 ** 62
SMALL_KERNEL = 13  # below this size a sinc kernel may cut off lower
SINC_CUTOFF_LARGE, SINC_CUTOFF_SMALL = torch.pi / 5, torch.pi / 3
RESIZE_MODES = ("area", "bilinear", "bicubic")
KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")

Range = tuple[float, float]


@dataclass(frozen=True)
class StageConfig:
    """One of the two stages: blur, resize, noise, JPEG."""

    blur_sigma: Range
    sinc_prob: float
    blur_prob: float
    resize_prob: dict[str, float]  # up, down, keep
    resize_range: Range
    gaussian_noise_prob: float  # else Poisson
    gaussian_sigma: Range  # of 255
    poisson_scale: Range
    gray_noise_prob: float
    jpeg_quality: Range


@dataclass(frozen=True)
class DegradationConfig:
    """Parameters of the whole degradation; see degradation.yml."""

    scale: int
    kernel_sizes: tuple[int, ...]
    kernels: dict[str, float]
    generalized_beta: Range
    plateau_beta: Range
    rotation: Range
    resize_modes: tuple[str, ...]
    stage1: StageConfig
    stage2: StageConfig
    final_sinc_prob: float
    light_probability: float = 0.0  # share of the groups that are only reduced, slightly noised and compressed
    light_noise_sigma: Range = field(default=(0.0, 4.0))  # of 255
    light_jpeg_quality: Range = field(default=(80.0, 100.0))
    upsample_modes: tuple[str, ...] = ("area", "bilinear", "bicubic")  # back to HR size, drawn uniformly
    group: int = 4  # neighbouring samples that share the sizes of their resizing steps

    @classmethod
    def load(cls, path: str | Path = DEFAULT_FILE, **changes: Any) -> DegradationConfig:
        """Read the YAML file; `changes` override its fields. Raises ValueError for missing or unknown fields."""
        values = {**yaml.safe_load(Path(path).read_text(encoding="utf-8")), **changes}
        for descriptive in ("final_order", "clamp_and_round"):  # said in words in the file, fixed in the code
            values.pop(descriptive, None)
        try:
            for stage in ("stage1", "stage2"):
                values[stage] = StageConfig(**values[stage])
            return cls(**values)
        except KeyError as error:
            raise UserError(f"{path}: {error} is missing") from error
        except TypeError as error:
            raise UserError(f"{path}: {error}") from error

    def __post_init__(self) -> None:
        """Raises ValueError for values that no degradation can have."""
        if self.scale < 1 or self.group < 1:
            raise UserError(f"scale and group must be at least 1, got {self.scale} and {self.group}")
        if not 0 <= self.light_probability <= 1:
            raise UserError(f"light_probability must be in [0, 1], got {self.light_probability}")
        if not self.kernel_sizes or any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise UserError(f"kernel_sizes must be odd and positive, got {self.kernel_sizes}")
        unknown = {*self.resize_modes, *self.upsample_modes} - set(RESIZE_MODES)
        if unknown or not self.resize_modes or not self.upsample_modes:
            raise UserError(f"resizing modes must be some of {RESIZE_MODES}, got {sorted(unknown) or 'none'}")
        unknown = set(self.kernels) - set(KERNEL_KINDS)
        if unknown:
            raise UserError(f"kernels must be some of {KERNEL_KINDS}, got {sorted(unknown)}")


class _Draws:
    """Random numbers of one call. All choices come from a CPU generator and stay there until a tensor needs them, so
    that nothing waits for the device; only noise is drawn on the device, by a generator that the CPU's one seeds."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._noise: torch.Generator | None = None

    def uniform(self, bounds: Range, count: int = 1) -> Tensor:
        low, high = bounds
        return low + (high - low) * torch.rand(count, generator=self.generator)

    def chance(self, probability: float, count: int = 1) -> Tensor:
        return torch.rand(count, generator=self.generator) < probability

    def pick(self, weights: list[float], count: int = 1) -> Tensor:
        return torch.multinomial(torch.tensor(weights), count, replacement=True, generator=self.generator)

    def choice(self, options: tuple | list) -> Any:
        return options[int(torch.randint(len(options), (1,), generator=self.generator))]

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal numbers in the shape of x, on its device."""
        if x.device.type == "cpu":
            return torch.randn(x.shape, generator=self.generator)
        if self._noise is None:
            seed = int(torch.randint(MAX_SEED, (1,), generator=self.generator))
            self._noise = torch.Generator(x.device).manual_seed(seed)
        return torch.randn(x.shape, generator=self._noise, device=x.device)


class Degradation:
    """HR batch in, LR batch out; configured once, random only through the generator it is given."""

    def __init__(self, config: DegradationConfig | None = None) -> None:
        self.config = config or DegradationConfig.load()

    def __call__(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        """hr: (B, 3, H, W) in [0, 1], any float type and device. Returns (B, 3, H // scale, W // scale) float32 on its
        device, in [0, 1] and rounded to 8 bits. `generator`: a CPU one; the same state gives the same result on the
        same kind of device.

        Raises ValueError for another shape.
        """
        _check(hr)
        draws = _Draws(generator)
        return torch.cat([self._group(part.float(), draws) for part in hr.split(self.config.group)])

    def and_upsample(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        """As the call, then resized back to HR size with a random mode per group, as training sees it: (B, 3, H, W)."""
        _check(hr)
        draws = _Draws(generator)
        parts = []
        for part in hr.split(self.config.group):
            lr = self._group(part.float(), draws)
            parts.append(_resize(lr, part.shape[-2:], draws.choice(self.config.upsample_modes)).clamp(0, 1))
        return torch.cat(parts)

    def _group(self, hr: Tensor, draws: _Draws) -> Tensor:
        config = self.config
        target = (max(hr.shape[-2] // config.scale, 1), max(hr.shape[-1] // config.scale, 1))
        if draws.chance(config.light_probability):
            return self._light(hr, target, draws)
        x = self._stage(hr, hr.shape[-2:], config.stage1, draws)
        x = jpeg(x, draws.uniform(config.stage1.jpeg_quality, len(x)))
        x = self._stage(x, target, config.stage2, draws)
        quality = draws.uniform(config.stage2.jpeg_quality, len(x))
        if draws.chance(0.5):
            x = jpeg(self._final_resize(x, target, draws), quality)
        else:
            x = self._final_resize(jpeg(x, quality), target, draws)
        return (x.clamp(0, 1) * LEVELS).round() / LEVELS

    def _light(self, hr: Tensor, target: tuple[int, int], draws: _Draws) -> Tensor:
        """A good reduction, slight noise, slight compression."""
        config = self.config
        if draws.chance(0.5):
            x = _resize(hr, target, "area")
        else:  # as picture programs do it
            x = F.interpolate(hr, size=target, mode="bicubic", align_corners=False, antialias=True)
        sigma = draws.uniform(config.light_noise_sigma, len(x)) / LEVELS
        x = x + _per_sample(sigma, x) * draws.normal(x)
        return jpeg(x.clamp(0, 1), draws.uniform(config.light_jpeg_quality, len(x)))

    def _stage(self, x: Tensor, reference: tuple[int, int], stage: StageConfig, draws: _Draws) -> Tensor:
        """Blur, resize relative to the `reference` size, add noise."""
        x = filter_each(x, self._kernels(x, stage, draws))
        factor = self._resize_factor(stage, draws)
        size = tuple(max(round(side * factor), 1) for side in reference)
        x = _resize(x, size, draws.choice(self.config.resize_modes)).clamp(0, 1)
        return self._noise(x, stage, draws)

    def _resize_factor(self, stage: StageConfig, draws: _Draws) -> float:
        low, high = stage.resize_range
        kinds = {"up": (1.0, high), "down": (low, 1.0), "keep": (1.0, 1.0)}
        names = list(stage.resize_prob)
        kind = names[int(draws.pick([stage.resize_prob[name] for name in names]))]
        return float(draws.uniform(kinds[kind]))

    def _kernels(self, x: Tensor, stage: StageConfig, draws: _Draws) -> Tensor:
        """One blur kernel a sample, on its device: Gaussian family or sinc, or the identity where the sample is not
        blurred."""
        config, count = self.config, len(x)
        canvas = max(config.kernel_sizes)
        sizes = torch.tensor(config.kernel_sizes)[draws.pick([1.0] * len(config.kernel_sizes), count)]
        names = list(config.kernels)
        kinds = [names[i] for i in draws.pick([config.kernels[name] for name in names], count)]
        isotropic = torch.tensor(["aniso" not in kind for kind in kinds])
        plateau = torch.tensor([kind.startswith("plateau") for kind in kinds])
        generalized = torch.tensor([kind.startswith("generalized") for kind in kinds])
        sigma_x, sigma_y = draws.uniform(stage.blur_sigma, count), draws.uniform(stage.blur_sigma, count)
        beta = torch.where(generalized, self._beta(config.generalized_beta, count, draws), torch.ones(count))
        beta = torch.where(plateau, self._beta(config.plateau_beta, count, draws), beta)
        shapes = (sizes, sigma_x, torch.where(isotropic, sigma_x, sigma_y), draws.uniform(config.rotation, count), beta,
                  plateau)
        use_sinc, cutoff = draws.chance(stage.sinc_prob, count), self._cutoff(sizes, draws)
        sizes, *shapes, use_sinc, cutoff, blurred = _sent(
            x.device, *shapes, use_sinc, cutoff, draws.chance(stage.blur_prob, count))
        kernels = torch.where(use_sinc[:, None, None], sinc_kernels(canvas, sizes, cutoff),
                              gaussian_kernels(canvas, sizes, *shapes))
        return torch.where(blurred[:, None, None], kernels, identity(canvas, x.device))

    @staticmethod
    def _beta(bounds: Range, count: int, draws: _Draws) -> Tensor:
        """Half of the shapes below 1 (peaked), half above (flat), as the method draws them."""
        low, high = bounds
        below = draws.uniform((min(low, 1.0), 1.0), count)
        above = draws.uniform((1.0, high), count)
        return torch.where(draws.chance(0.5, count), below, above)

    @staticmethod
    def _cutoff(sizes: Tensor, draws: _Draws, lowest: float | None = None) -> Tensor:
        """Cutoffs (B,) of low-pass kernels; `lowest`: the lowest one of large kernels, if not the usual one."""
        count = len(sizes)
        large = torch.full((count,), SINC_CUTOFF_LARGE if lowest is None else lowest)
        low = torch.where(sizes < SMALL_KERNEL, torch.full((count,), SINC_CUTOFF_SMALL), large)
        return low + (torch.pi - low) * draws.uniform((0.0, 1.0), count)

    def _final_resize(self, x: Tensor, target: tuple[int, int], draws: _Draws) -> Tensor:
        """Resize to the target size, then ring like a sharpened or over-compressed picture."""
        config = self.config
        x = _resize(x, target, draws.choice(config.resize_modes)).clamp(0, 1)
        canvas = max(config.kernel_sizes)
        sizes = torch.tensor(config.kernel_sizes)[draws.pick([1.0] * len(config.kernel_sizes), len(x))]
        cutoff = self._cutoff(sizes, draws, lowest=SINC_CUTOFF_SMALL)
        sizes, cutoff, ringing = _sent(x.device, sizes, cutoff, draws.chance(config.final_sinc_prob, len(x)))
        kernels = torch.where(ringing[:, None, None], sinc_kernels(canvas, sizes, cutoff), identity(canvas, x.device))
        return filter_each(x, kernels).clamp(0, 1)

    @staticmethod
    def _noise(x: Tensor, stage: StageConfig, draws: _Draws) -> Tensor:
        """Gaussian or Poisson noise per sample, gray or coloured."""
        count = len(x)
        gaussian = _per_sample(draws.chance(stage.gaussian_noise_prob, count), x)
        gray = _per_sample(draws.chance(stage.gray_noise_prob, count), x)
        sigma = _per_sample(draws.uniform(stage.gaussian_sigma, count) / LEVELS, x)
        scale = _per_sample(draws.uniform(stage.poisson_scale, count), x)
        clean = torch.where(gray, (x * constant(BT601, x.device).view(1, 3, 1, 1)).sum(1, keepdim=True), x)
        normal = draws.normal(x)
        normal = torch.where(gray, normal[:, :1], normal)
        # shot noise of 256 counts at white: a Gaussian of its mean and variance, without the skew of few counts
        shot = scale * (clean.clamp(0, 1) / POISSON_COUNTS).sqrt()
        return (x + torch.where(gaussian, sigma, shot) * normal).clamp(0, 1)


def _check(hr: Tensor) -> None:
    if hr.ndim != 4 or hr.shape[1] != 3 or not hr.shape[0] or not hr.is_floating_point():
        raise UserError(f"expected pictures (B, 3, H, W) of a float type in [0, 1], got {tuple(hr.shape)} {hr.dtype}")


def _sent(device: torch.device, *values: Tensor) -> list[Tensor]:
    """Values of the CPU on a device."""
    return [value.to(device, non_blocking=True) for value in values]


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Values (B,) on the CPU beside pictures: (B, 1, 1, 1) on their device."""
    return values.to(x.device, non_blocking=True)[:, None, None, None]


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if mode == "area":
        return F.interpolate(x, size=size, mode="area")
    return F.interpolate(x, size=size, mode=mode, align_corners=False)
