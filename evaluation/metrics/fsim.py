"""FSIMc: similarity of phase congruency, gradients and chroma (Zhang et al. 2011).

Phase congruency is Kovesi's (1999): log-Gabor filters of four scales and four orientations, and a noise threshold
estimated from the finest scale.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .full_reference import require_comparable, yiq

# Similarity constants for phase congruency, gradient and the two chroma planes; exponent of the chroma part
T_PHASE, T_GRADIENT, T_CHROMA, CHROMA_EXPONENT = 0.85, 160.0, 200.0, 0.03
WORKING_SIDE = 256  # the shorter side is brought near this by whole-number averaging

SCALES, ORIENTATIONS = 4, 4
FINEST_WAVELENGTH, WAVELENGTH_STEP = 6.0, 2.0
BANDWIDTH = 0.55  # sigma of the log-Gabor over its centre frequency
ANGULAR_RATIO = 1.2  # angle between orientations over the angular sigma
LOWPASS_CUTOFF, LOWPASS_ORDER = 0.45, 15
NOISE_SIGMAS, NOISE_RESCALE = 2.0, 1.7
TINY = 1e-4


def fsim(image: Tensor, reference: Tensor) -> float:
    """FSIMc of pictures (3, H, W) in [0, 1]; 1 for equal ones."""
    require_comparable(image, reference)
    a, b = (_reduce(yiq(picture)) for picture in (image, reference))  # (3, h, w) each
    phase_a, phase_b = phase_congruency(a[0]), phase_congruency(b[0])
    similarity = _similarity(phase_a, phase_b, T_PHASE) * _similarity(_scharr(a[0]), _scharr(b[0]), T_GRADIENT)
    chroma = _similarity(a[1], b[1], T_CHROMA) * _similarity(a[2], b[2], T_CHROMA)
    # a negative product has no real power: its magnitude counts, as in pyiqa
    weight = torch.maximum(phase_a, phase_b)
    total = weight.sum()
    if total == 0:  # two flat planes have no features to differ in
        return 1.0
    return (similarity * chroma.abs() ** CHROMA_EXPONENT * weight).sum().item() / total.item()


def phase_congruency(plane: Tensor) -> Tensor:
    """Phase congruency (H, W) in [0, 1] of a plane (H, W) at the scale 0..255."""
    spectrum = torch.fft.fft2(plane)
    radius, angle = _frequency_grid(plane)
    bands = _radial_bands(radius)
    energy, amplitude = torch.zeros_like(plane), torch.zeros_like(plane)
    for i in range(ORIENTATIONS):
        filters = bands * _angular_window(angle, i * math.pi / ORIENTATIONS)  # (scales, H, W)
        responses = torch.fft.ifft2(spectrum * filters)
        total = responses.sum(0)
        direction = total / (total.abs() + TINY)
        aligned = responses * direction.conj()
        oriented = (aligned.real - aligned.imag.abs()).sum(0)
        energy += (oriented - _noise_threshold(filters, responses[0])).clamp(min=0)
        amplitude += responses.abs().sum(0)
    return energy / amplitude.clamp(min=torch.finfo(plane.dtype).tiny)


def _frequency_grid(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Radius and angle of every frequency of an FFT of this size; the constant's radius is 1."""
    def axis(length: int) -> Tensor:
        steps = torch.arange(length, dtype=plane.dtype, device=plane.device) - length // 2
        return torch.fft.ifftshift(steps / max(length - length % 2, 1))
    y, x = torch.meshgrid(axis(plane.shape[0]), axis(plane.shape[1]), indexing="ij")
    radius = (x.square() + y.square()).sqrt()
    radius[0, 0] = 1.0
    return radius, torch.atan2(-y, x)


def _radial_bands(radius: Tensor) -> Tensor:
    """Log-Gabor transfer functions (scales, H, W), finest first, cut off towards the corners."""
    lowpass = 1 / (1 + (radius / LOWPASS_CUTOFF) ** (2 * LOWPASS_ORDER))
    lowpass[0, 0] = 0.0  # no response to the mean
    wavelengths = [FINEST_WAVELENGTH * WAVELENGTH_STEP ** i for i in range(SCALES)]
    return torch.stack([
        lowpass * torch.exp(-(radius * length).log().square() / (2 * math.log(BANDWIDTH) ** 2))
        for length in wavelengths])


def _angular_window(angle: Tensor, center: float) -> Tensor:
    sigma = math.pi / ORIENTATIONS / ANGULAR_RATIO
    distance = torch.atan2(torch.sin(angle - center), torch.cos(angle - center))
    return torch.exp(-distance.square() / (2 * sigma ** 2))


def _noise_threshold(filters: Tensor, finest: Tensor) -> Tensor:
    """Energy that noise alone would give: a Rayleigh distribution scaled by the finest response's median."""
    power = finest.abs().square().flatten()
    median = (power.kthvalue((len(power) + 1) // 2).values + power.kthvalue(len(power) // 2 + 1).values) / 2
    noise_power = median / math.log(2) / filters[0].square().sum()
    impulse = torch.fft.ifft2(filters).real.sum(0) * math.sqrt(filters[0].numel())
    scale = (noise_power * impulse.square().sum()).sqrt()
    return (math.sqrt(math.pi / 2) + NOISE_SIGMAS * math.sqrt(2 - math.pi / 2)) * scale / NOISE_RESCALE


def _reduce(planes: Tensor) -> Tensor:
    """Average (C, H, W) so that the shorter side comes near 256 pixels."""
    factor = max(1, math.floor(min(planes.shape[-2:]) / WORKING_SIDE + 0.5))
    return F.avg_pool2d(planes[None], factor)[0] if factor > 1 else planes


def _scharr(plane: Tensor) -> Tensor:
    """Gradient magnitude (H, W), zeros around it."""
    across = plane.new_tensor([[3, 0, -3], [10, 0, -10], [3, 0, -3]]) / 16
    kernels = torch.stack([across, across.T])[:, None]
    return F.conv2d(plane[None, None], kernels, padding=1)[0].square().sum(0).sqrt()


def _similarity(a: Tensor, b: Tensor, constant: float) -> Tensor:
    return (2 * a * b + constant) / (a.square() + b.square() + constant)
