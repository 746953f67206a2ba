"""What stands for people's eyes in training, the same for all stages: a distance, and what discriminators look at.

The distance is LPIPS on VGG16 (Zhang et al., 2018) where torchvision's weights lie in PyTorch's download cache, else
that of the feature maps of a small network (`features.py`), which projected discriminators look at too. LPIPS' network
is not fetched here: it is half a gigabyte.
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

from models.discriminator import Seen

from .features import FeatureNetwork, NoFeatures, load_features, map_distance

# lpips' name, torchvision's builder and weights: the first that is here is taken
NETWORKS = (("vgg", "vgg16", "VGG16_Weights"), ("alex", "alexnet", "AlexNet_Weights"),
            ("squeeze", "squeezenet1_1", "SqueezeNet1_1_Weights"))
PUBLISHED_WEIGHTS = "IMAGENET1K_V1"


class Perceptual:
    """Either network may be missing; `description` says in one line which distance it is, or why there is none."""

    def __init__(self, features: FeatureNetwork | None = None, lpips: nn.Module | None = None,
                 description: str = "none") -> None:
        self.features, self.lpips, self.description = features, lpips, description

    @property
    def exists(self) -> bool:
        """Whether there is a distance."""
        return self.features is not None or self.lpips is not None

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the feature maps; none without their network."""
        return () if self.features is None else self.features.channels

    def look(self, pictures: Tensor) -> Seen:
        """Pictures (B, 3, H, W) in [-1, 1] with their feature maps. Gradients go through."""
        return Seen(pictures, [] if self.features is None else self.features(pictures))

    def distance(self, fake: Seen, real: Seen) -> Tensor:
        """Mean distance of what was seen. Only where there is a network."""
        if self.lpips is not None:
            return self.lpips(fake.picture, real.picture).mean()
        return map_distance(fake.maps, real.maps)

    def calibrate(self, pictures: Tensor) -> None:
        """Even out the channels of the feature maps on photographs (M, 3, H, W) in [-1, 1]."""
        if self.features is not None:
            self.features.calibrate(pictures)


def find_perceptual(device: torch.device) -> Perceptual:
    """What can be had here: LPIPS without a download, and the feature maps."""
    try:
        features, why_not = load_features(device), ""
    except NoFeatures as error:
        features, why_not = None, str(error)
    if importlib.util.find_spec("lpips") is not None:
        for name, builder, weights in NETWORKS:
            if _cached(weights) is not None:
                return Perceptual(features, _load(name).to(device), f"LPIPS ({builder})")
    if features is None:
        return Perceptual(description=f"none, {why_not}")
    return Perceptual(features, description="feature maps (EfficientNet-Lite0)")


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
