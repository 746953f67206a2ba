"""The faithful branch and the detail branch on its features: what they depend on, and what of a model they replace."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import small_class_model, small_model
from torch import Tensor

from models.branches import LatentCells
from models.config import PRESETS, ConfigError
from models.varsr import VARSR
from models.weights.save import save_pretrained
from models.weights.transfer import with_detail, with_faithful, with_fidelity

SIDE = 160
WINDOW = 32  # of the small model
SHAPES = [(1, 1), (2, 1), (1, 3)]  # blocks of the faithful and of the detail branch


def branched(faithful: int = 1, detail: int = 1) -> VARSR:
    """A small model with both branches, whose outputs are as large as a trained one's."""
    torch.manual_seed(0)
    model = with_detail(with_faithful(small_model(), 8, faithful), 8, detail).eval().requires_grad_(False)
    for branch in (model.vqvae.faithful, model.vqvae.detail):
        torch.nn.init.normal_(branch.conv_out.weight, std=0.1)
    return model


def lr_pictures(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, WINDOW, WINDOW, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_is_finished_reaches_as_far_as_gradients_come_from(shape: tuple[int, int], share: float) -> None:
    vqvae, farthest = branched(*shape).vqvae.double(), 0
    factor = vqvae.config.downsampling
    generator = torch.Generator().manual_seed(1)
    lr = (torch.rand(1, 3, SIDE, SIDE, generator=generator) * 2 - 1).double().requires_grad_()
    cells = torch.randn(1, 8, SIDE // factor, SIDE // factor, generator=generator).double().requires_grad_()
    middle = SIDE // 2
    for row in range(middle, middle + factor):  # all places within a latent cell
        output = vqvae.finish(lr, lr, cells, share)[0, :, row, middle].sum()
        pixels, latent = torch.autograd.grad(output, (lr, cells), allow_unused=True)
        seen = pixels.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
        farthest = max(farthest, row - seen[0], seen[-1] - row)
        assert (latent is None) == (share == 0)
        if latent is not None:
            read = latent.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
            assert max(row - read[0] * factor, read[-1] * factor + factor - 1 - row) <= vqvae.detail.reach
    assert farthest == vqvae.finishing_reach(share)


def test_codes_have_no_part_in_the_faithful_picture_and_one_in_the_detail() -> None:
    model, lr = branched(), lr_pictures()
    latents = [torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    first, second = (model.decode(latent, lr, fidelity=1.0) for latent in latents)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    expected = (model.vqvae.faithful(lr * 2 - 1) + 1) / 2
    torch.testing.assert_close(first, expected.clamp(0, 1), atol=1e-6, rtol=0)
    assert (first - lr).abs().mean() > 1e-3
    first, second = (model.decode(latent, lr, fidelity=0.0) for latent in latents)
    assert (first - second).abs().mean() > 1e-3


def test_fidelity_is_a_share_of_the_detail() -> None:
    model, lr = branched(), lr_pictures()
    latent = model.generate_latent(lr)
    sharp, middle, faithful = (model.decode(latent, lr, fidelity=value) for value in (0.0, 0.5, 1.0))
    inside = (sharp > 0) & (sharp < 1) & (faithful > 0) & (faithful < 1)
    assert (sharp - faithful).abs().mean() > 1e-3
    torch.testing.assert_close(middle[inside], (sharp / 2 + faithful / 2)[inside], atol=1e-5, rtol=0)


def test_the_tokenizer_decodes_as_before_where_there_is_no_lr_picture() -> None:
    latent = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(branched().decode(latent), small_model().decode(latent))


def test_a_latent_cell_says_something_else_at_each_of_its_places() -> None:
    """Against a product of matrices for one place."""
    torch.manual_seed(0)
    cells, latent = LatentCells(3, 2), torch.randn(1, 3, 4, 5)
    cells.deviation.copy_(torch.tensor([0.5, 1.0, 2.0]))
    made = cells(latent)
    assert made.shape == (1, 3, 8, 10)
    for row, column in ((0, 0), (3, 6), (7, 9)):
        place = (row % 2) * 2 + column % 2
        weight, bias = (each.detach().flatten(1)[place::4] for each in (cells.conv.weight, cells.conv.bias[:, None]))
        expected = weight @ (latent[0, :, row // 2, column // 2] / cells.deviation) + bias[:, 0]
        torch.testing.assert_close(made[0, :, row, column], expected)


def test_faint_channels_of_the_latent_are_heard_like_strong_ones() -> None:
    """A model whose codes are larger in some channels, and whose latents are, makes the same detail."""
    models, factors = [], torch.tensor([1.0, 20.0] * 4)
    for factor in (torch.ones(8), factors):
        torch.manual_seed(0)
        plain = with_faithful(small_model(), 8, 1)
        plain.vqvae.quantizer.codebook.weight.data.mul_(factor)
        torch.manual_seed(1)
        models.append(with_detail(plain, 8, 1).eval())
    lr, latent = lr_pictures() * 2 - 1, torch.randn(2, 8, 4, 4)
    first, second = (model.vqvae.detail for model in models)
    second.load_state_dict({**first.state_dict(), "latent_cells.deviation": second.latent_cells.deviation})
    seen = models[0].vqvae.faithful.features(lr)
    torch.testing.assert_close(second(seen, latent * factors[:, None, None]), first(seen, latent), atol=1e-5, rtol=1e-4)


def test_a_faithful_branch_takes_the_place_of_lr_features_and_of_the_detail_on_them() -> None:
    seeing = with_detail(with_fidelity(small_model(), 8, 1, 4), 8, 1)
    model = with_faithful(seeing, 12, 2)
    config = model.config.vqvae
    assert (config.faithful_width, config.faithful_blocks, config.fidelity_width, config.fidelity_pixels,
            config.detail_width) == (12, 2, 0, 0, 0)
    before = seeing.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith("vqvae.faithful."):
            torch.testing.assert_close(value, before[name])
    assert with_faithful(model, 12, 2) is model


def test_both_are_saved_and_loaded(tmp_path) -> None:
    model, lr = branched(), lr_pictures()
    save_pretrained(model, tmp_path)
    torch.testing.assert_close(VARSR.from_pretrained(tmp_path).generate(lr), model.generate(lr), atol=1e-5, rtol=0)


def test_configurations_that_cannot_be() -> None:
    tiny = PRESETS["varsr-tiny"].vqvae
    with pytest.raises(ConfigError, match="fidelity_width to 0"):
        dataclasses.replace(tiny, faithful_width=8, fidelity_width=8)
    with pytest.raises(ConfigError, match="faithful_width must be a multiple of 4"):
        dataclasses.replace(tiny, faithful_width=6)
    with pytest.raises(ConfigError, match="faithful branch needs a down-sampling"):
        dataclasses.replace(tiny, faithful_width=8, stem=1)
    for config, message in ((small_class_model().config, "no LR picture that a faithful branch"),
                            (small_model().config, "detail_lr to true")):
        vqvae = dataclasses.replace(config.vqvae, faithful_width=8, detail_lr=False)
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(config, vqvae=vqvae)
