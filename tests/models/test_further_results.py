"""Further results that go on from one generation: they change nothing of it, and depend on their own noise alone."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.config import GenerationConfig
from models.generation import Branches, Generation, RefinerNoise
from models.sampling import Noise
from models.varsr import VARSR, ScaleStep

SAMPLED = GenerationConfig(cfg=1.0, top_k=20, top_p=1.0)
LIKELIEST = GenerationConfig(cfg=1.0, top_k=1)
GUIDANCE = [(0.0, 0), (1.5, 0), (1.5, 1), (1.5, 2)]  # cfg, cfg_from_scale: of the scales 0 to 2
SCALES = (1, 2)  # that results may part at


def refiner_noise(model: VARSR, rows: int, options: GenerationConfig = SAMPLED, seed: int = 5) -> RefinerNoise:
    config, generator = model.config.vqvae, torch.Generator().manual_seed(seed)
    field = torch.randn(model.config.refiner_steps(options) + 1, rows, config.side ** 2, config.latent_channels,
                        generator=generator)
    return RefinerNoise(field[0], field[1:])


def repeated(noise: RefinerNoise, count: int) -> RefinerNoise:
    return RefinerNoise(noise.initial.repeat_interleave(count, 0), noise.fresh.repeat_interleave(count, 1))


def forked(model: VARSR, lr: Tensor, options: GenerationConfig, scale: int, seeds: Sequence[int],
           noise: RefinerNoise, seed: int = 3) -> tuple[Tensor, Tensor]:
    """The main latents, and those of the copies (B, count, c, N, N); all of one refiner noise of the main rows."""
    kept: list[Tensor] = []
    copies = repeated(noise, len(seeds) // len(lr))
    main = model.generate_latent(lr, options=options, seed=seed, refiner_noise=noise,
                                 branches=Branches(scale, options, seeds, copies, kept.append))
    assert len(kept) == 1
    return main, kept[0]


@pytest.mark.parametrize("options", [SAMPLED, LIKELIEST, dataclasses.replace(SAMPLED, more_smooth=True)],
                         ids=["sampled", "likeliest", "mixed"])
@pytest.mark.parametrize("scale", SCALES)
def test_branches_change_nothing_of_the_main_result(model: VARSR, pictures: Tensor, options: GenerationConfig,
                                                    scale: int) -> None:
    plain: list[ScaleStep] = []
    expected = model.generate_latent(pictures[:2], options=options, seed=3, on_scale=plain.append)
    steps: list[ScaleStep] = []
    branches = Branches(scale, options, [7, 8, 9, 10], refiner_noise(model, 4), lambda latents: None)
    latent = model.generate_latent(pictures[:2], options=options, seed=3, on_scale=steps.append, branches=branches)
    assert torch.equal(latent, expected)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(plain, steps, strict=True))


@pytest.mark.parametrize("cfg, first", GUIDANCE)
@pytest.mark.parametrize("scale", SCALES)
def test_a_copy_that_takes_the_likeliest_codes_too_is_the_main_result(pictures: Tensor, model: VARSR, scale: int,
                                                                      cfg: float, first: int) -> None:
    options = dataclasses.replace(LIKELIEST, cfg=cfg, cfg_from_scale=first)
    main, copies = forked(model, pictures[:2], options, scale, [1, 2, 3, 4], refiner_noise(model, 2))
    torch.testing.assert_close(copies, main[:, None].expand_as(copies), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg, first", GUIDANCE)
@pytest.mark.parametrize("scale", SCALES)
def test_a_copy_with_the_main_noise_is_the_main_result(model: VARSR, pictures: Tensor, scale: int, cfg: float,
                                                       first: int) -> None:
    options, rows = dataclasses.replace(SAMPLED, cfg=cfg, cfg_from_scale=first), 2
    prefix = model.transformer.prefix_encoder(2 * pictures[:rows] - 1)
    noise, again = (Noise([11, 12], model.device) for _ in range(2))
    generation = Generation(model, torch.zeros(rows, dtype=torch.long), prefix, options, noise)
    for k in range(scale):
        generation.step(k)
        again.uniform(model.config.vqvae.scales[k] ** 2)  # what the scale has drawn
    fork = generation.fork(scale, options, again)
    steps = []
    for k in range(scale, 3):
        ours, copy = generation.step(k), fork.step(k)
        torch.testing.assert_close(copy.logits, ours.logits, atol=1e-4, rtol=1e-4)
        steps.append((ours.codes, copy.codes))
    assert all(torch.equal(*codes) for codes in steps)
    refined = [each.refined(refiner_noise(model, rows)) for each in (generation, fork)]
    torch.testing.assert_close(refined[1], refined[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_copies_share_what_was_before_and_differ_from_then_on(pictures: Tensor, model: VARSR, scale: int) -> None:
    prefix = model.transformer.prefix_encoder(2 * pictures[:2] - 1)
    generation = Generation(model, torch.zeros(2, dtype=torch.long), prefix, SAMPLED, Noise([1, 2], model.device))
    for k in range(scale):
        generation.step(k)
    shared = generation.f_hat.clone()
    fork = generation.fork(scale, SAMPLED, Noise([5, 6, 7, 5, 6, 7], model.device))
    assert torch.equal(fork.f_hat, shared.repeat_interleave(3, 0))
    step = fork.step(scale)
    logits, codes = (each.unflatten(0, (2, 3)) for each in (step.logits, step.codes))
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits), atol=1e-4, rtol=1e-4)  # of the same past
    for row in range(2):
        assert len({tuple(each.tolist()) for each in codes[row]}) == 3
    assert torch.equal(generation.f_hat, shared)


def test_one_copy_a_seed(pictures: Tensor, model: VARSR) -> None:
    main, copies = forked(model, pictures[:1], SAMPLED, 1, [1, 2, 1], refiner_noise(model, 1))
    assert copies.shape == (1, 3, *main.shape[1:])
    torch.testing.assert_close(copies[0, 0], copies[0, 2], atol=1e-5, rtol=1e-5)
    assert (copies[0, 0] - copies[0, 1]).abs().max() > 0.1


@pytest.mark.parametrize("first", [0, 1, 2])
def test_copies_do_not_depend_on_the_batch(pictures: Tensor, model: VARSR, first: int) -> None:
    options, noise = dataclasses.replace(SAMPLED, cfg_from_scale=first), refiner_noise(model, 3)
    seeds = [21, 22, 31, 32, 41, 42]
    together = forked(model, pictures, options, 1, seeds, noise, seed=100)
    for i in range(3):
        own = RefinerNoise(noise.initial[i:i + 1], noise.fresh[:, i:i + 1])
        alone = forked(model, pictures[i:i + 1], options, 1, seeds[2 * i:2 * i + 2], own, seed=100 + i)
        for some, one in zip(together, alone, strict=True):
            torch.testing.assert_close(some[i:i + 1], one, atol=1e-4, rtol=1e-4)


def test_copies_in_half_precision(weights: Path) -> None:
    """The cache of copies is of the model's own precision."""
    model = VARSR.from_pretrained(weights, dtype=torch.bfloat16)
    lr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    main, copies = forked(model, lr, LIKELIEST, 1, [1, 2], refiner_noise(model, 1, LIKELIEST))
    torch.testing.assert_close(copies, main[:, None].expand_as(copies), atol=0.05, rtol=0.05)
