"""The generation path: determinism, independence of the batch, guidance, errors that say what to do."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import small_class_model, small_model

from models.config import GenerationConfig
from models.initialization import initialize
from models.varsr import VARSR

SAMPLED = GenerationConfig(cfg=1.5, top_k=10, top_p=0.9)


def test_same_seed_same_pictures(model: VARSR, pictures: torch.Tensor) -> None:
    first, second = (model.generate(pictures, options=SAMPLED, seed=5) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.generate(pictures, options=SAMPLED, seed=6))
    assert first.shape == pictures.shape and first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("options", [SAMPLED, GenerationConfig(cfg=0.0), GenerationConfig(cfg=1.0, more_smooth=True)])
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


def test_wrong_inputs_are_explained(model: VARSR, pictures: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="resized to output size"):
        model.generate(pictures[:, :, :-1])
    with pytest.raises(ValueError, match="2 seeds for 3"):
        model.generate(pictures, seed=[1, 2])
    with pytest.raises(ValueError, match="1 labels for 3"):
        model.generate(pictures, torch.tensor([0]))
    with pytest.raises(ValueError, match="32x32"):
        model.vqvae.encode(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(model: VARSR, pictures: torch.Tensor, dtype: torch.dtype) -> None:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    half = VARSR.from_tensors(model.config, tensors, dtype, "cpu")
    assert half.dtype == dtype
    restored = half.generate(pictures)
    assert restored.dtype == torch.float32 and restored.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu(pictures: torch.Tensor) -> None:
    model = small_model()
    expected = model.generate(pictures, options=SAMPLED, seed=1)
    found = model.to("cuda").generate(pictures, options=SAMPLED, seed=1).cpu()
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


def test_many_classes_are_not_folded() -> None:
    config = small_class_model().config
    transformer = dataclasses.replace(config.transformer, class_rows=config.transformer.width)
    model = VARSR(dataclasses.replace(config, transformer=transformer, class_names=()))
    assert not model.for_inference().transformer.is_folded
