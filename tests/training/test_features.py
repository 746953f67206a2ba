"""The perceptual network: its weights are in the right places, its maps are even, its distance is one."""
from __future__ import annotations

import pytest
import skimage.data
import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from evaluation.metrics import efficientnet
from evaluation.metrics.efficientnet import NETWORK, REMEDY, NoFeatures, packaged_weights, timm_name
from training.perceptual import load_features, map_distance

CPU = torch.device("cpu")
needs_weights = pytest.mark.skipif(packaged_weights() is None, reason=f"the network is not installed: {REMEDY}")
# Photographs of scikit-image, and ImageNet classes of what they show
PHOTOGRAPHS = {"chelsea": {281, 282, 285}, "coffee": {967, 968, 504}, "rocket": {657, 744}}


def photograph(name: str, side: int = 224) -> Tensor:
    """The middle of a photograph, (1, 3, side, side) in [-1, 1]."""
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    short = min(picture.size)
    left, top = ((edge - short) // 2 for edge in picture.size)
    middle = picture.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.BICUBIC)
    return pil_to_tensor(middle)[None] / 127.5 - 1


@needs_weights
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_it_knows_what_photographs_show(name: str) -> None:
    network = timm.create_model(NETWORK, pretrained=False)
    network.load_state_dict(packaged_weights())
    levels = (photograph(name) + 1) * 127.5
    with torch.no_grad():
        best = network.eval()((levels - 127) / 128).topk(3).indices[0].tolist()
    assert set(best) & PHOTOGRAPHS[name]


def test_names_by_hand() -> None:
    assert timm_name("_conv_stem.weight") == "conv_stem.weight"
    assert timm_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert timm_name("_blocks.4._expand_conv.weight") == "blocks.2.1.conv_pw.weight"
    assert timm_name("_blocks.15._bn2.running_var") == "blocks.6.0.bn3.running_var"


@needs_weights
def test_its_maps() -> None:
    network = load_features(CPU)
    pictures = torch.cat([photograph(name, 128) for name in PHOTOGRAPHS])
    network.calibrate(pictures)
    maps = network(pictures)
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8)]
    for each in maps:
        torch.testing.assert_close(each.std((0, 2, 3)), torch.ones(each.shape[1]), atol=0.01, rtol=0)
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.train().training


@needs_weights
def test_blur_is_farther_than_a_little_light() -> None:
    """Squared error says the opposite of these two."""
    network, picture = load_features(CPU), photograph("coffee", 128)
    network.calibrate(picture)
    blurred = torch.nn.functional.avg_pool2d(picture, 3, 1, 1)
    brighter = (picture + 0.12).clamp(-1, 1)
    assert (brighter - picture).square().mean() > (blurred - picture).square().mean()
    distances = [map_distance(network(other), network(picture)).item() for other in (blurred, brighter, picture)]
    assert distances[0] > distances[1] > distances[2] == 0


def test_the_distance_by_hand() -> None:
    maps, others = [torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 2, 2)], [torch.ones(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)]
    assert map_distance(maps, others).item() == pytest.approx(1)
    assert map_distance(maps, [others[0], maps[1]]).item() == pytest.approx(1 / 1.6)  # the second counts 0.6


def test_without_weights_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **settings: object) -> None:
        assert settings["pretrained"]
        raise OSError("no network\nmore lines")
    monkeypatch.setattr(efficientnet, "packaged_weights", lambda: None)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(NoFeatures, match="no network") as error:
        load_features(CPU)
    assert REMEDY in str(error.value) and "\n" not in str(error.value)
