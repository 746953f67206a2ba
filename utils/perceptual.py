"""The perceptual loss of tokenizer training: LPIPS (Zhang et al., 2018) where its weights are on this machine.

The `lpips` package brings the small linear layers; the network below them is torchvision's and is looked for in
PyTorch's download cache only. Nothing is fetched here: it is half a gigabyte for VGG.
"""
from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from torch import Tensor

# lpips' name, torchvision's builder and weights: the first that is here is taken
NETWORKS = (("vgg", "vgg16", "VGG16_Weights"), ("alex", "alexnet", "AlexNet_Weights"),
            ("squeeze", "squeezenet1_1", "SqueezeNet1_1_Weights"))
PUBLISHED_WEIGHTS = "IMAGENET1K_V1"
REMEDY = ("`pip install lpips`, then `python -c \"import torchvision; "
          f"torchvision.models.vgg16(weights='{PUBLISHED_WEIGHTS}')\"`")


@dataclass
class Perceptual:
    """LPIPS as a loss, or none; `description` says in one line which, or why there is none."""

    network: torch.nn.Module | None
    description: str

    def __call__(self, picture: Tensor, reference: Tensor) -> Tensor:
        """Mean LPIPS of pictures (B, 3, H, W) in [-1, 1]. Only where there is a network."""
        return self.network(picture, reference).mean()


def find_perceptual(device: torch.device) -> Perceptual:
    """The loss that can be had here without a download."""
    if importlib.util.find_spec("lpips") is None:
        return Perceptual(None, f"none, the lpips package is not installed ({REMEDY})")
    for name, builder, weights in NETWORKS:
        if _cached(weights) is not None:
            return Perceptual(_load(name).to(device), f"LPIPS ({builder})")
    return Perceptual(None, f"none, no network for LPIPS in {_cache()} ({REMEDY})")


def _cache() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


def _cached(weights: str) -> Path | None:
    """The weights file of torchvision in the download cache, if it is there."""
    from torchvision import models
    url = models.get_weight(f"{weights}.{PUBLISHED_WEIGHTS}").url
    path = _cache() / PurePosixPath(urlsplit(url).path).name
    return path if path.is_file() else None


def _load(name: str) -> torch.nn.Module:
    import lpips
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # torchvision's old flag; prints
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=name, verbose=False).eval().requires_grad_(False)
