"""How good pictures of classes are: whether they are distributed like real ones, and whether they show their class.

Measured by the features of EfficientNet-Lite0, the mean over the picture of its last block's map. The distance is
Fréchet's between two normal distributions (Heusel et al., 2017), as in FID, but of another network's features: values
compare with one another alone. For FID proper see `evaluate.py`.
"""
from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .metrics.efficientnet import load_network, network_input

LAST_BLOCK = 4  # of 320 channels at 1/32 of the side
PROBE_DECAY = 1e-3  # of the probe's weights, on features of unit deviation
PROBE_STEPS = 200
SMALLEST_DEVIATION = 1e-6


class ClassFeatures:
    """Pictures (B, 3, H, W) in [0, 1] to features (B, 320) float64 on the CPU."""

    def __init__(self, device: torch.device) -> None:
        """Raises NoFeatures where the network's weights cannot be had."""
        self.device = device
        self.network = load_network(features_only=True, out_indices=(LAST_BLOCK,)).to(device)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """See the class."""
        return self.network(network_input(pictures.to(self.device)))[0].mean((2, 3)).double().cpu()

    def of_all(self, batches: Iterable[Tensor]) -> Tensor:
        """Features (M, 320) of batches of pictures."""
        return torch.cat([self(batch) for batch in batches])


def frechet_distance(features: Tensor, references: Tensor) -> float:
    """Fréchet's distance of the normal distributions with the means and covariances of two sets (M, D) and (N, D):
    |m - n|² + tr(A + B - 2 (A B)^½). It falls with the number of samples, so compare sets of the same size."""
    first, second = features.double(), references.double()
    root = _root(torch.atleast_2d(first.T.cov()))
    product = root @ torch.atleast_2d(second.T.cov()) @ root
    cross = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    difference = first.mean(0) - second.mean(0)
    spread = first.var(0).sum() + second.var(0).sum()
    return (difference.square().sum() + spread - 2 * cross).item()


def _root(symmetric: Tensor) -> Tensor:
    """Square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class LinearProbe:
    """A linear classifier on features, fitted to real crops: what tells whether a picture shows its class."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        """Fit by multinomial logistic regression to features (M, D) and labels (M,) of 0 to K - 1."""
        self.mean, self.deviation = features.mean(0), features.std(0).clamp(min=SMALLEST_DEVIATION)
        self.linear = nn.Linear(features.shape[1], int(labels.max()) + 1).double()
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        inputs = self._scaled(features)
        optimizer = torch.optim.LBFGS(self.linear.parameters(), max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            decay = PROBE_DECAY * self.linear.weight.square().sum()
            value = F.cross_entropy(self.linear(inputs), labels) + decay
            value.backward()
            return value
        optimizer.step(loss)

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """The likeliest class (M,) of features (M, D)."""
        return self.linear(self._scaled(features)).argmax(1)


def nearest(features: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """For each of (M, D) the number (M,) of the nearest of (N, D), and its Euclidean distance (M,)."""
    distances, places = torch.cdist(features.double(), references.double()).min(1)
    return places, distances
