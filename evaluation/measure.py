"""A protocol's metrics of a picture and its reference: the one place where protocols meet functions."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .metrics.fsim import fsim
from .metrics.full_reference import eight_bit, gmsd, gray, luma, ms_ssim, psnr, require_comparable, ssim
from .metrics.learned import LearnedMetrics
from .metrics.piqe import piqe
from .protocols import Metric, Protocol

PLANES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "y_studio": luma,
    "y_studio_rounded": lambda image: luma(image).round(),
    "gray": gray,
    "rgb": eight_bit,
    "picture": lambda image: image,
}
FULL_REFERENCE: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim, "gmsd": gmsd, "fsim": fsim}


def full_reference(metric: Metric, image: Tensor, reference: Tensor) -> float:
    """Our own full-reference metric of pictures (3, H, W) in [0, 1], by the metric's choices.

    Raises ValueError where the sizes differ or are too small.
    """
    require_comparable(image, reference, 2 * metric.crop + 1, metric.label)
    planes = [PLANES[metric.planes](_cropped(picture, metric.crop)) for picture in (image, reference)]
    if metric.kind == "ssim":
        return ssim(*planes, floor=metric.contrast_floor)
    return FULL_REFERENCE[metric.kind](*planes)


def _cropped(image: Tensor, border: int) -> Tensor:
    height, width = image.shape[-2:]
    return image[..., border:height - border, border:width - border]


class Measurer:
    """Measures pictures by a protocol; `missing` says which of its metrics cannot be had here, and why."""

    def __init__(self, protocol: Protocol, device: torch.device) -> None:
        self.protocol = protocol
        self.learned = LearnedMetrics(device, protocol.metrics)
        self.missing = self.learned.missing

    def measure(self, image: Tensor, reference: Tensor | None) -> tuple[dict[str, float], dict[str, str]]:
        """Values by column in the protocol's order, and the reasons why others could not be computed.

        image, reference: (3, H, W) in [0, 1]; without a reference only the metrics that need none.
        Raises ValueError where the sizes differ.
        """
        if reference is not None:
            require_comparable(image, reference)
        values, refused = self.learned.measure(image, reference), {}
        for metric in self.protocol.metrics:
            if metric.kind == "piqe":
                values[metric.column] = piqe(image)
            elif metric.kind in FULL_REFERENCE and reference is not None:
                try:
                    values[metric.column] = full_reference(metric, image, reference)
                except ValueError as error:  # too small for this metric
                    refused[metric.column] = str(error)
        return {metric.column: values[metric.column] for metric in self.protocol.metrics
                if metric.column in values}, refused
