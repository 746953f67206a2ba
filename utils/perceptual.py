"""What stands for people's eyes in training, the same for all stages: a judge, and what discriminators look at.

The judge is a perceptual distance that was trained on people's judgements: LPIPS on VGG16 (Zhang et al., 2018) where
torchvision's weights lie in PyTorch's download cache (they are not fetched here: half a gigabyte), else ST-LPIPS on
VGG16 (`st_lpips.py`). Beside it there are the feature maps of a small network (`features.py`), for projected
discriminators and for a distance of their own, which stands in where there is no judge.
"""
from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from evaluation.metrics.st_lpips import STLPIPS, VGG16, find_weights
from models.discriminator import Seen

from .features import FeatureNetwork, NoFeatures, load_features, map_distance

# lpips' name, torchvision's builder and weights: the first that is here is taken
NETWORKS = (("vgg", "vgg16", "VGG16_Weights"), ("alex", "alexnet", "AlexNet_Weights"),
            ("squeeze", "squeezenet1_1", "SqueezeNet1_1_Weights"))
PUBLISHED_WEIGHTS = "IMAGENET1K_V1"


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


def _find_judge() -> tuple[nn.Module | None, str]:
    if importlib.util.find_spec("lpips") is not None:
        for name, builder, weights in NETWORKS:
            if _cached(weights) is not None:
                return _load(name), f"LPIPS ({builder})"
    path = find_weights(VGG16)
    return (None, "") if path is None else (Signed(STLPIPS(path, VGG16)), "ST-LPIPS (VGG16)")


def _cached(weights: str) -> Path | None:
    """The weights file of torchvision in the download cache, if it is there."""
    from torchvision import models
    url = models.get_weight(f"{weights}.{PUBLISHED_WEIGHTS}").url
    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlsplit(url).path).name)
    return path if path.is_file() else None


def _load(name: str) -> nn.Module:
    import lpips
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # torchvision's old flag; prints
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=name, verbose=False).eval().requires_grad_(False)
