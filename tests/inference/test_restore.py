"""The restoration engine: exact sizes, no dependence on the batch, windows that agree where they should."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from inference.restore import restore
from inference.settings import RestoreSettings, UncertaintySettings
from inference.windows import Window, place_seed, refiner_noise
from models.config import GenerationConfig
from models.varsr import VARSR
from pictures.rgb import upsample

PLAIN = RestoreSettings(GenerationConfig(cfg=0.0, top_k=1), color_fix="none")


@pytest.mark.parametrize("size, scale", [((8, 8), 4.0), ((1, 1), 4.0), ((3, 20), 4.0), ((17, 11), 2.5), ((1, 40), 2.0)])
def test_any_size_and_aspect(model: VARSR, size: tuple[int, int], scale: float) -> None:
    lr = torch.rand(3, *size)
    generation = dataclasses.replace(PLAIN.generation, scale=scale)
    restored = restore(model, lr, dataclasses.replace(PLAIN, generation=generation))
    assert restored.shape == (3, round(size[0] * scale), round(size[1] * scale))
    assert restored.isfinite().all() and restored.min() >= 0 and restored.max() <= 1


def test_the_result_does_not_depend_on_the_batch_size(model: VARSR) -> None:
    lr = torch.rand(3, 14, 19)
    sampled = dataclasses.replace(PLAIN, generation=GenerationConfig(cfg=1.0, top_k=8))
    one, many = (restore(model, lr, dataclasses.replace(sampled, batch_size=n)) for n in (1, 5))
    torch.testing.assert_close(one, many, atol=1e-4, rtol=0)


def test_progress_counts_every_window(model: VARSR) -> None:
    counted = []
    restore(model, torch.rand(3, 16, 16), dataclasses.replace(PLAIN, batch_size=4), counted.append)
    assert sum(counted) == 9 and max(counted) <= 4


def test_one_window_is_the_model_itself(model: VARSR) -> None:
    lr = torch.rand(3, 8, 8)
    noise = refiner_noise(model.config, 0, [Window(0, 0, 0, 0, 0)], model.config.refiner.sampling_steps)
    expected = model.generate(upsample(lr, 4.0)[None], options=PLAIN.generation, seed=[place_seed(0, 0, 0)],
                              refiner_noise=noise)[0]
    torch.testing.assert_close(restore(model, lr, PLAIN), expected, atol=1e-5, rtol=0)


def test_unknown_colour_fix_is_refused(model: VARSR) -> None:
    with pytest.raises(ValueError, match="adain, wavelet, none"):
        restore(model, torch.rand(3, 8, 8), dataclasses.replace(PLAIN, color_fix="magic"))


def test_settings_and_sizes_out_of_range_are_refused(model: VARSR) -> None:
    with pytest.raises(ValueError, match="batch_size of 0: must be 1 or more"):
        dataclasses.replace(PLAIN, batch_size=0)
    with pytest.raises(ValueError, match="-1 further results"):
        UncertaintySettings(-1)
    for size in ((0, 5), (5, -1)):
        with pytest.raises(ValueError, match="must be .height, width., 1 or more each"):
            restore(model, torch.rand(3, 8, 8), PLAIN, size=size)


def test_a_picture_that_gradients_go_through_is_restored(model: VARSR) -> None:
    lr = torch.rand(3, 8, 8)
    assert torch.equal(restore(model, lr.clone().requires_grad_(), PLAIN), restore(model, lr, PLAIN))
