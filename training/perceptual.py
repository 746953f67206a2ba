"""What people see, as losses: the feature maps of a perceptual network, and a judge's distance.

The network is EfficientNet-Lite0 (`evaluation/metrics/efficientnet.py`). Its maps serve as a perceptual distance
(Johnson et al., 2016) and as what projected discriminators look at (Sauer et al., 2021, who use this very network).
"""
from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from evaluation.metrics.efficientnet import NoFeatures, load_network, network_input
from evaluation.metrics.st_lpips import STLPIPS, VGG16, find_weights
from utils.errors import UserError

from .adversary import Seen

log = logging.getLogger(__name__)

MAPS = (0, 1, 2, 3)  # at 1/2, 1/4, 1/8 and 1/16 of the side
DEPTH_WEIGHT = 0.6  # of each map's distance beside the one before it, whose gradients at the pixels are smaller
SMALLEST_DEVIATION = 1e-3  # channels that never answer are not blown up

LPIPS_WEIGHTS = "VGG16_Weights.IMAGENET1K_V1"  # torchvision's name


class FeatureNetwork(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to maps of 16, 24, 40 and 112 channels at 1/2 to 1/16 of the side, each channel
    divided by its deviation over photographs (`calibrate`). Its own weights do not train."""

    def __init__(self, network: nn.Module) -> None:
        """network: timm's, made with `features_only`."""
        super().__init__()
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.channels = tuple(network.feature_info.channels())
        for i, channels in enumerate(self.channels):
            self.register_buffer(f"deviation{i}", torch.ones(1, channels, 1, 1))

    def train(self, _: bool = True) -> FeatureNetwork:
        """It stays as it is: its norms keep the statistics they were trained with."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """See the class."""
        maps = self.network(network_input((pictures + 1) / 2))
        return [each / deviation for each, deviation in zip(maps, self._deviations(), strict=True)]

    @torch.no_grad()
    def calibrate(self, pictures: Tensor) -> None:
        """Measure the channels' deviations on photographs (M, 3, H, W) in [-1, 1]."""
        for deviation, each in zip(self._deviations(), self.forward(pictures), strict=True):
            spread = (each.float() * deviation).std(dim=(0, 2, 3), keepdim=True)
            deviation.copy_(spread.clamp(min=SMALLEST_DEVIATION))

    def _deviations(self) -> list[Tensor]:
        return [getattr(self, f"deviation{i}") for i in range(len(self.channels))]


def map_distance(maps: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """Weighted mean over the maps of the mean distance of their values: all maps pull alike at the pixels."""
    weights = [DEPTH_WEIGHT ** i for i in range(len(maps))]
    distances = [weight * (a.float() - b.float()).abs().mean()
                 for weight, a, b in zip(weights, maps, references, strict=True)]
    return torch.stack(distances).sum() / sum(weights)


def load_features(device: torch.device) -> FeatureNetwork:
    """The network, not calibrated. Raises NoFeatures where its weights cannot be had."""
    return FeatureNetwork(load_network(features_only=True, out_indices=MAPS)).to(device)


class Signed(nn.Module):
    """A distance of pictures in [0, 1] for those in [-1, 1]."""

    def __init__(self, distance: nn.Module) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, pictures: Tensor, references: Tensor) -> Tensor:
        return self.distance((pictures + 1) / 2, (references + 1) / 2)


class Perceptual:
    """Either network may be missing; `description` says in one line which distance there is, or why there is none."""

    def __init__(self, features: FeatureNetwork | None = None, judge: nn.Module | None = None,
                 description: str = "none") -> None:
        """judge: a distance of two batches (B, 3, H, W) in [-1, 1], a value each."""
        self.features, self.judge, self.description = features, judge, description

    @property
    def exists(self) -> bool:
        """Whether there is a distance."""
        return self.features is not None or self.judge is not None

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the feature maps; none without their network."""
        return () if self.features is None else self.features.channels

    def look(self, pictures: Tensor) -> Seen:
        """Pictures (B, 3, H, W) in [-1, 1] with their feature maps. Gradients go through."""
        return Seen(pictures, [] if self.features is None else self.features(pictures))

    def distance(self, fake: Seen, real: Seen) -> Tensor:
        """The judge's mean distance of what was seen, or that of the maps. Only where there is a network."""
        return map_distance(fake.maps, real.maps) if self.judge is None else self.judged(fake, real)

    def judged(self, fake: Seen, real: Seen, side: int | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """The judge's mean distance. side: of a random part of the pictures, for less work."""
        pictures = fake.picture, real.picture
        room = [edge - min(side or edge, edge) for edge in fake.picture.shape[-2:]]
        if any(room):
            top, left = (int(torch.randint(edge + 1, (1,), generator=generator)) for edge in room)
            pictures = (each[..., top:top + side, left:left + side] for each in pictures)
        return self.judge(*pictures).mean()

    def calibrate(self, pictures: Tensor) -> None:
        """Even out the channels of the feature maps on photographs (M, 3, H, W) in [-1, 1]."""
        if self.features is not None:
            self.features.calibrate(pictures)


def find_perceptual(device: torch.device) -> Perceptual:
    """What can be had here: a judge without a download, and the feature maps."""
    try:
        features, why_not = load_features(device), ""
    except NoFeatures as error:
        features, why_not = None, str(error)
    judge, description = _find_judge()
    if judge is not None:
        return Perceptual(features, judge.to(device), description)
    if features is None:
        return Perceptual(description=f"none, {why_not}")
    return Perceptual(features, description="feature maps (EfficientNet-Lite0)")


def needed_perceptual(stage: str, device: torch.device, judge_weight: float | None = None) -> Perceptual:
    """The same for a stage that cannot do without feature maps. judge_weight: --perceptual_weight, where it was given.
    Raises UserError where there are no maps, or no judge for such a weight."""
    perceptual = find_perceptual(device)
    if perceptual.features is None:
        raise UserError(f"--stage {stage} needs a perceptual network: {perceptual.description}")
    if judge_weight and perceptual.judge is None:
        raise UserError(f"--perceptual_weight {judge_weight:g} needs a perceptual distance: install "
                        "requirements-perceptual.txt, or leave it out")
    log.info("perceptual losses: %s", perceptual.description)
    return perceptual


def _find_judge() -> tuple[nn.Module | None, str]:
    if importlib.util.find_spec("lpips") is not None and _weights_are_cached():
        return _load_lpips(), "LPIPS (vgg16)"
    path = find_weights(VGG16)
    return (None, "") if path is None else (Signed(STLPIPS(path, VGG16)), "ST-LPIPS (VGG16)")


def _weights_are_cached() -> bool:
    """Whether torchvision's file of LPIPS' network is in the download cache."""
    from torchvision import models
    url = models.get_weight(LPIPS_WEIGHTS).url
    return Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlsplit(url).path).name).is_file()


def _load_lpips() -> nn.Module:
    import lpips
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # torchvision's old flag; prints
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
