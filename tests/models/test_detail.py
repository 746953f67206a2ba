"""The detail branch: what it depends on, how it starts, and what a share of it is."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import small_class_model, small_model
from torch import Tensor

from models.branches import DetailBranch
from models.config import PRESETS, ConfigError, GenerationConfig
from models.varsr import VARSR
from models.weights.save import save_pretrained
from models.weights.transfer import with_detail

SIDE = 256


def branch(blocks: int) -> DetailBranch:
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["varsr-tiny"].vqvae, detail_width=8, detail_blocks=blocks)
    return DetailBranch(config).double()


def inputs(side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (1, 3, side, side), (1, 3, side, side), (1, 16, side // 8, side // 8)
    return tuple((torch.rand(shape, generator=generator) * 2 - 1).double() for shape in shapes)


def detailed(model: VARSR, seed: int = 0) -> VARSR:
    torch.manual_seed(seed)
    return with_detail(model, 8, 1).eval().requires_grad_(False)


@pytest.mark.parametrize("blocks", [1, 3])
def test_its_reach_is_the_distance_that_gradients_come_from(blocks: int) -> None:
    network, farthest = branch(blocks), 0
    decoded, lr, latent = (each.requires_grad_() for each in inputs())
    for row in range(SIDE // 2, SIDE // 2 + 8):  # all places within a latent cell
        output = network(network.picture_cells(decoded, lr), latent)[0, :, row, SIDE // 2].sum()
        pixels, cells = torch.autograd.grad(output, (decoded, latent))
        seen = pixels.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
        read = cells.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
        farthest = max(farthest, row - min(*seen, read[0] * 8), max(*seen, read[-1] * 8 + 7) - row)
    assert farthest == network.reach


def test_a_spike_changes_nothing_far_away() -> None:
    """No norms: what droplets came from (StyleGAN 2, section 2)."""
    network = branch(2)
    assert not [each for each in network.modules() if "norm" in type(each).__name__.lower()]
    decoded, lr, latent = inputs()
    spiked = decoded.clone()
    spiked[..., 128, 128] = 100.0
    spiked, calm = (network(network.picture_cells(each, lr), latent) for each in (spiked, decoded))
    change = (spiked - calm).abs().amax((0, 1))
    changed = change.nonzero()
    assert len(changed) and (changed - 128).abs().max() <= network.reach


def test_it_starts_near_zero_with_a_signal_to_learn_from() -> None:
    network, (decoded, lr, latent) = branch(10), inputs(64)
    detail = network(network.picture_cells(decoded, lr), latent)
    assert 1e-3 < detail.abs().mean() < 0.2
    detail.square().mean().backward()
    first, last = network.conv_in.weight.grad.norm(), network.conv_out.weight.grad.norm()
    assert first > 1e-3 * last


def test_fidelity_is_a_share_of_the_detail() -> None:
    """0 adds all of it, 1 gives the model without a branch bit for bit, between them lies a mixture."""
    plain = small_model()
    model = detailed(plain)
    lr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    latent = model.generate_latent(lr)
    torch.testing.assert_close(latent, plain.generate_latent(lr), atol=0, rtol=0)
    sharp, middle, faithful = (model.decode(latent, lr, fidelity) for fidelity in (0.0, 0.5, 1.0))
    torch.testing.assert_close(faithful, plain.decode(latent, lr), atol=0, rtol=0)
    assert (sharp - faithful).abs().mean() > 1e-3
    inside = (sharp > 0) & (sharp < 1) & (faithful > 0) & (faithful < 1)
    torch.testing.assert_close(middle[inside], (sharp / 2 + faithful / 2)[inside], atol=1e-5, rtol=0)


def test_the_models_own_fidelity_and_that_of_a_generation() -> None:
    model = detailed(small_model())
    lr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = model.config.generation
    sharp, faithful = (model.generate(lr, options=dataclasses.replace(options, fidelity=value)) for value in (0.0, 1.0))
    torch.testing.assert_close(model.generate(lr), sharp, atol=0, rtol=0)
    assert (sharp - faithful).abs().mean() > 1e-3
    model.config = dataclasses.replace(model.config, generation=dataclasses.replace(options, fidelity=1.0))
    torch.testing.assert_close(model.generate(lr), faithful, atol=0, rtol=0)


def test_pictures_of_classes_have_detail_without_an_lr_picture() -> None:
    """The branch sees the decoded picture and the latent alone; a share of 0 gives the model without it."""
    plain = small_class_model()
    model, labels = detailed(plain), torch.tensor([0, 2])
    assert model.vqvae.detail.conv_in.in_channels == 3 * 16 + 8  # of a picture in cells of 4x4, and of the latent
    latent = model.generate_latent(labels=labels)
    sharp, faithful = (model.decode(latent, fidelity=value) for value in (0.0, 1.0))
    torch.testing.assert_close(faithful, plain.decode(latent), atol=0, rtol=0)
    decoded = model.vqvae.decode_unclamped(latent).clamp(-1, 1)
    detail = model.vqvae.detail
    expected = (decoded + detail(detail.picture_cells(decoded, None), latent)).clamp(-1, 1)
    torch.testing.assert_close(sharp, (expected + 1) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.generate(labels=labels), sharp, atol=0, rtol=0)
    assert (sharp - faithful).abs().mean() > 1e-3


def test_a_super_resolution_model_decodes_without_detail_where_there_is_no_lr_picture() -> None:
    """As while its tokenizer is looked at."""
    plain = small_model()
    latent = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(detailed(plain).decode(latent), plain.decode(latent), atol=0, rtol=0)


def test_a_branch_is_kept_or_drawn_anew() -> None:
    model = detailed(small_model())
    assert with_detail(model, 8, 1) is model
    wider = with_detail(model, 12, 1)
    assert wider.config.vqvae.detail_width == 12
    for name, value in model.state_dict().items():
        if not name.startswith("vqvae.detail."):
            torch.testing.assert_close(wider.state_dict()[name], value)


def test_it_is_saved_and_loaded(tmp_path) -> None:
    model = detailed(small_model())
    save_pretrained(model, tmp_path)
    lr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(VARSR.from_pretrained(tmp_path).generate(lr), model.generate(lr), atol=1e-5, rtol=0)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"fidelity must be in \[0, 1\], got 2"):
        GenerationConfig(fidelity=2)
    with pytest.raises(ConfigError, match="multiple of 4"):
        dataclasses.replace(PRESETS["varsr-tiny"].vqvae, detail_width=6)
    with pytest.raises(ConfigError, match="down-sampling"):
        dataclasses.replace(PRESETS["varsr-tiny"].vqvae, stem=1, detail_width=8)
    config = PRESETS["varsr-tiny-c2i"]
    with pytest.raises(ConfigError, match="detail_lr"):
        dataclasses.replace(config, vqvae=dataclasses.replace(config.vqvae, detail_width=8))
