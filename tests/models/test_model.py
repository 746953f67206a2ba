"""The generation path: determinism, independence of the batch, guidance, errors that say what to do."""
from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import small_class_model, small_model

from inference.classes import ClassPicture, draw
from inference.settings import prepare
from models.config import GenerationConfig
from models.fastvar import SHARED, FastVARConfig
from models.initialization import initialize
from models.varsr import VARSR

PRUNINGS = [None, FastVARConfig({2: 0.5, 4: 0.5}, 0, 1), FastVARConfig({4: 0.5}, 0, 1, SHARED)]
SAMPLED = GenerationConfig(cfg=1.5, top_k=10, top_p=0.9)


def test_same_seed_same_pictures(model: VARSR, pictures: torch.Tensor) -> None:
    first, second = (model.generate(pictures, options=SAMPLED, seed=5) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.generate(pictures, options=SAMPLED, seed=6))
    assert first.shape == pictures.shape and first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("options", [SAMPLED, GenerationConfig(cfg=0.0),
                                     GenerationConfig(cfg=1.0, top_k=0, top_p=1.0, more_smooth=True)])
def test_a_picture_does_not_depend_on_its_batch(model: VARSR, pictures: torch.Tensor,
                                                options: GenerationConfig) -> None:
    together = model.generate(pictures, options=options, seed=[3, 4, 5])
    alone = model.generate(pictures[1:2], options=options, seed=[4])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


def test_no_guidance_equals_conditional_rows_alone(model: VARSR, pictures: torch.Tensor) -> None:
    """Without guidance the unconditional rows are left out; a vanishing guidance must give the same."""
    plain = model.generate(pictures, options=GenerationConfig(cfg=0.0))
    guided = model.generate(pictures, options=GenerationConfig(cfg=1e-9))
    torch.testing.assert_close(plain, guided, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fastvar", PRUNINGS)
@pytest.mark.parametrize("first", [1, 2])
def test_late_guidance_without_weight_is_no_guidance(model: VARSR, pictures: torch.Tensor, first: int,
                                                     fastvar: FastVARConfig | None) -> None:
    plain = model.generate(pictures, options=GenerationConfig(cfg=0.0), fastvar=fastvar)
    late = model.generate(pictures, options=GenerationConfig(cfg=1e-9, cfg_from_scale=first), fastvar=fastvar)
    torch.testing.assert_close(plain, late, atol=1e-4, rtol=0)


@pytest.mark.parametrize("first", [1, 2])
def test_late_guidance_is_that_of_rows_which_were_conditional_before(model: VARSR, pictures: torch.Tensor,
                                                                     first: int) -> None:
    """Against all rows computed at all scales, the unconditional ones under the conditional class at first."""
    transformer, steps = model.transformer, []
    options = GenerationConfig(cfg=3.0, cfg_from_scale=first)
    model.generate_latent(pictures, options=options, on_scale=steps.append)
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    prefix = transformer.prefix_encoder(pictures * 2 - 1).repeat(2, 1, 1)
    cache = transformer.new_cache(6, torch.float32, torch.device("cpu"))
    for k, step in enumerate(steps):
        blocks, head = transformer.modulations(rows if k >= first else torch.zeros_like(rows))
        inputs = None if k == 0 else model.vqvae.quantizer.next_input(steps[k - 1].f_hat, k).repeat(2, 1, 1)
        x = transformer.scale_tokens(inputs, k) if k else transformer.start_tokens(torch.zeros_like(rows), prefix)
        logits = transformer.logits(transformer.forward_level(x, k, blocks, cache), head)
        strength = model.guidance(3.0, k) if k >= first else 0
        expected = (1 + strength) * logits[:3] - strength * logits[3:]
        torch.testing.assert_close(step.logits, expected, atol=1e-3, rtol=1e-4)
    assert not torch.equal(logits[:3], logits[3:])


def test_refiner_steps_are_those_of_a_model_made_with_them(model: VARSR, pictures: torch.Tensor) -> None:
    refiner = dataclasses.replace(model.config.refiner, sampling_steps=3)
    other = VARSR(dataclasses.replace(model.config, refiner=refiner)).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    expected = other.generate(pictures)
    assert torch.equal(model.generate(pictures, options=GenerationConfig(cfg=1.0, refiner_steps=3)), expected)
    assert not torch.equal(model.generate(pictures), expected)


@pytest.mark.parametrize("options", [{"cfg_from_scale": 3}, {"refiner_steps": 1001}])
def test_settings_that_do_not_fit_the_model(model: VARSR, pictures: torch.Tensor, options: dict) -> None:
    with pytest.raises(ValueError, match="out of range"):
        model.generate(pictures, options=GenerationConfig(**options))


@pytest.mark.parametrize("options", [GenerationConfig(cfg=2.0, cfg_from_scale=1, refiner_steps=2), SAMPLED])
@pytest.mark.parametrize("fastvar", PRUNINGS)
def test_the_host_never_waits_for_the_device(pictures: torch.Tensor, options: GenerationConfig,
                                             fastvar: FastVARConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta tensor has no values: reading one back, as a synchronisation does, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # knows no meta device
    model = small_model().to("meta")
    restored = model.generate(pictures, options=options, fastvar=fastvar)
    assert restored.is_meta and restored.shape == pictures.shape


def test_a_mixture_of_one_code_is_that_code(model: VARSR, pictures: torch.Tensor) -> None:
    plain, mixed, free = [], [], []
    for steps, top_k, more_smooth in ((plain, 1, False), (mixed, 1, True), (free, 0, True)):
        model.generate_latent(pictures, options=GenerationConfig(cfg=1.0, top_k=top_k, more_smooth=more_smooth),
                              on_scale=steps.append)
    assert torch.equal(mixed[-1].codes, plain[-1].codes)
    torch.testing.assert_close(mixed[-1].f_hat, plain[-1].f_hat)
    assert not torch.allclose(free[-1].f_hat, plain[-1].f_hat, atol=0.1)


def test_every_scale_is_reported(model: VARSR, pictures: torch.Tensor) -> None:
    steps = []
    latent = model.generate_latent(pictures, on_scale=steps.append)
    assert [step.side for step in steps] == list(model.config.vqvae.scales)
    assert [tuple(step.codes.shape) for step in steps] == [(3, side * side) for side in model.config.vqvae.scales]
    assert not torch.equal(steps[-1].f_hat, latent)  # the refiner adds to it


def test_class_to_image_is_the_same_class_without_prefix() -> None:
    config = small_model().config
    config = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, prefix=None, class_rows=4))
    torch.manual_seed(0)
    model = VARSR(config).eval().requires_grad_(False)
    pictures = model.generate(labels=torch.tensor([0, 2]), options=SAMPLED)
    assert pictures.shape == (2, 3, config.image_size, config.image_size)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        model.generate(labels=torch.tensor([4]))
    with pytest.raises(ValueError, match="no LR picture"):
        model.generate(torch.rand(1, 3, config.image_size, config.image_size), torch.tensor([0]))


def test_seeds_may_be_numpys(model: VARSR, pictures: torch.Tensor) -> None:
    expected = model.generate(pictures, seed=3)
    for seed in (np.int64(3), np.arange(3, 6), torch.arange(3, 6)):
        assert torch.equal(model.generate(pictures, seed=seed), expected)


def test_wrong_inputs_are_explained(model: VARSR, pictures: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="resized to output size"):
        model.generate(pictures[:, :, :-1])
    with pytest.raises(ValueError, match="2 seeds for 3"):
        model.generate(pictures, seed=[1, 2])
    with pytest.raises(ValueError, match="1 labels for 3"):
        model.generate(pictures, torch.tensor([0]))
    with pytest.raises(ValueError, match="no pictures"):
        model.generate(pictures[:0])
    with pytest.raises(ValueError, match="lr: values of torch.uint8, must be floats"):
        model.generate((pictures * 255).byte())
    with pytest.raises(ValueError, match="32x32"):
        model.vqvae.encode(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(model: VARSR, pictures: torch.Tensor, dtype: torch.dtype) -> None:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    half = VARSR.from_tensors(model.config, tensors, dtype, "cpu")
    assert half.dtype == dtype
    restored = half.generate(pictures)
    assert restored.dtype == torch.float32 and restored.isfinite().all()


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(pictures: torch.Tensor, device: torch.device) -> None:
    model = small_model()
    expected = model.generate(pictures, options=SAMPLED, seed=1)
    found = model.to(device).generate(pictures, options=SAMPLED, seed=1).cpu()
    assert (found - expected).abs().mean() < 1e-2


@pytest.mark.parametrize("shared", [False, True])
def test_folded_modulations_are_the_computed_ones(pictures: torch.Tensor, shared: bool) -> None:
    config = small_model().config
    transformer = dataclasses.replace(config.transformer, shared_modulation=shared)
    torch.manual_seed(0)
    model = VARSR(dataclasses.replace(config, transformer=transformer))
    initialize(model)
    options = GenerationConfig(cfg=2.0)
    expected = model.generate(pictures, options=options)
    model.for_inference()
    assert model.transformer.is_folded and model.config.inference
    assert not any("modulation" in name for name, _ in model.transformer.named_parameters())
    assert torch.equal(model.generate(pictures, options=options), expected)


def test_a_model_for_inference_cannot_encode() -> None:
    model = small_model().for_inference()
    with pytest.raises(ValueError, match="full model"):
        model.vqvae.encode(torch.zeros(1, 3, model.config.image_size, model.config.image_size))


def test_results_are_ordinary_tensors(model: VARSR, pictures: torch.Tensor) -> None:
    latent = model.generate_latent(pictures)
    unfinished = model.decode_unfinished(latent, pictures)
    results = [latent, unfinished, model.generate(pictures), model.decode(latent, pictures),
               model.finish(unfinished, pictures, latent)]
    results += [picture for _, picture in draw(small_class_model(), [ClassPicture(0, 0)], SAMPLED, 0, 1)]
    for result in results:
        result.mul_(255)
        assert not result.is_inference()
    with torch.inference_mode():
        assert model.generate(pictures).is_inference()  # the caller's own choice: no copy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fingerprint_is_that_of_the_weights_whatever_is_done_to_them(dtype: torch.dtype) -> None:
    model, prints = small_model(), {small_model().fingerprint()}
    assert model.channels_last().fingerprint() in prints
    assert small_model().to(dtype).fingerprint() in prints
    assert model.for_inference().fingerprint() in prints and prepare(model).fingerprint() in prints
    other = small_model()
    with torch.no_grad():
        other.refiner.output.weight.neg_()
    assert other.fingerprint() not in prints


def test_many_classes_are_not_folded() -> None:
    config = small_class_model().config
    transformer = dataclasses.replace(config.transformer, class_rows=config.transformer.width)
    model = VARSR(dataclasses.replace(config, transformer=transformer, class_names=()))
    assert not model.for_inference().transformer.is_folded


@pytest.mark.parametrize("kind", ["super-resolution", "class-to-image"])
def test_what_the_refiner_learns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Super-resolution: what the likeliest codes leave over; class-to-image, whose codes are drawn: what the right ones
    do, and then it is the quantiser's error alone."""
    model = small_model() if kind == "super-resolution" else small_class_model()
    side = model.config.vqvae.side
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    targets = []
    monkeypatch.setattr(model.refiner, "loss", lambda residual, *_: targets.append(residual) or residual.mean())
    losses = model(image, image if kind == "super-resolution" else None, torch.tensor([0, 1]))
    quantized = model.vqvae.quantizer.encode(model.vqvae.encode(image))
    likeliest = losses.logits[:, -side * side:].argmax(-1)
    assert (likeliest != quantized.codes[-1]).any()
    codes = likeliest if kind == "super-resolution" else quantized.codes[-1]
    expected = quantized.residual_last.flatten(2).transpose(1, 2) - model.vqvae.quantizer.codebook(codes)
    torch.testing.assert_close(targets[0], expected.flatten(0, 1))
