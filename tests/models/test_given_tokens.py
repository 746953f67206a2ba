"""Codes that are given to a generation instead of being drawn."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from models.config import GenerationConfig
from models.varsr import VARSR, GivenTokens, RefinerNoise, ScaleStep
from utils.errors import UserError

SAMPLED = GenerationConfig(cfg=1.0, top_k=20, top_p=1.0)


def drawn(model: VARSR, lr: torch.Tensor, seed: int, given: GivenTokens | None = None,
          noise: RefinerNoise | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Latents, and the codes of every scale."""
    steps: list[ScaleStep] = []
    latent = model.generate_latent(lr, options=SAMPLED, seed=seed, on_scale=steps.append, refiner_noise=noise,
                                   given=given)
    return latent, [step.codes for step in steps]


def keeping(codes: list[torch.Tensor], share: float) -> GivenTokens:
    """About this share of the codes."""
    generator = torch.Generator().manual_seed(0)
    return GivenTokens(codes, [torch.rand(each.shape, generator=generator) < share for each in codes])


@pytest.fixture()
def noise(model: VARSR) -> RefinerNoise:
    """The same for every seed."""
    config, generator = model.config, torch.Generator().manual_seed(5)
    field = torch.randn(config.refiner_steps(SAMPLED) + 1, 2, config.vqvae.side ** 2, config.vqvae.latent_channels,
                        generator=generator)
    return RefinerNoise(field[0], field[1:])


def test_nothing_kept_is_a_plain_generation(model: VARSR, pictures: torch.Tensor) -> None:
    plain, codes = drawn(model, pictures[:2], 3)
    wrong = [torch.zeros_like(each) for each in codes]
    latent, again = drawn(model, pictures[:2], 3, keeping(wrong, 0))
    assert torch.equal(latent, plain) and all(map(torch.equal, again, codes))


def test_all_kept_gives_the_same_latents_with_any_seed(model: VARSR, pictures: torch.Tensor,
                                                       noise: RefinerNoise) -> None:
    expected, codes = drawn(model, pictures[:2], 3, noise=noise)
    assert not torch.equal(drawn(model, pictures[:2], 4, noise=noise)[0], expected)
    assert torch.equal(drawn(model, pictures[:2], 4, keeping(codes, 1), noise)[0], expected)


def test_what_is_drawn_depends_on_what_is_kept(model: VARSR, pictures: torch.Tensor) -> None:
    _, plain = drawn(model, pictures[:2], 4)
    given = keeping([torch.full_like(each, 7) for each in plain], 0.5)
    _, codes = drawn(model, pictures[:2], 4, given)
    assert all((code[keep] == 7).all() for code, keep in zip(codes, given.keep, strict=True))
    last = ~given.keep[-1]
    assert (codes[-1][last] != plain[-1][last]).any()


def test_such_a_generation_is_not_recorded(pictures: torch.Tensor, model: VARSR,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph would repeat the codes of the first one."""
    _, codes = drawn(model, pictures[:2], 3)
    expected = model.generate_latent(pictures[:2], options=SAMPLED, seed=9, given=keeping(codes, 0.5))
    monkeypatch.setattr(model, "graphs", object())
    assert torch.equal(model.generate_latent(pictures[:2], options=SAMPLED, seed=9, given=keeping(codes, 0.5)),
                       expected)


def test_what_does_not_fit_is_refused(model: VARSR, pictures: torch.Tensor) -> None:
    _, codes = drawn(model, pictures[:2], 3)
    with pytest.raises(UserError, match="shapes"):
        drawn(model, pictures[:1], 3, keeping(codes, 1))
    with pytest.raises(UserError, match="shapes"):
        drawn(model, pictures[:2], 3, GivenTokens(codes, keeping(codes[:-1], 1).keep))
    with pytest.raises(UserError, match="more_smooth"):
        model.generate_latent(pictures[:2], options=dataclasses.replace(SAMPLED, more_smooth=True),
                              given=keeping(codes, 1))
