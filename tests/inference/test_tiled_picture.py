"""What windows see: guides that go on past the edges, and one field of noise under all of them."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from inference.windows import TiledPicture, Window, refiner_noise
from models.varsr import VARSR
from pictures.rgb import TensorSource, upsample


def test_guides_repeat_the_edges(model: VARSR) -> None:
    lr, size = torch.rand(3, 9, 3), model.config.image_size
    picture = TiledPicture(TensorSource(lr), (36, 12), model.config)
    whole = F.pad(upsample(lr, 4.0)[None], (0, size - 12, 0, 4), mode="replicate")[0]
    assert picture.grid.columns.starts == [0] and len(picture.grid) == 2
    for window in picture.grid:
        top = window.top * picture.factor
        torch.testing.assert_close(picture.window_guide(window), whole[:, top:top + size, :size], atol=1e-6, rtol=0)


def test_overlapping_windows_share_their_noise(model: VARSR) -> None:
    side, channels = model.config.vqvae.side, model.config.vqvae.latent_channels
    places = [(0, 0), (1, 2), (7, 3), (7, 9)]
    windows = [Window(i, 0, 0, *place) for i, place in enumerate(places)]
    noise = refiner_noise(model.config, 5, windows, steps=3)
    assert noise.initial.shape == (4, side * side, channels) and noise.fresh.shape == (3, 4, side * side, channels)
    layers = torch.cat([noise.initial[None], noise.fresh]).unflatten(2, (side, side))
    field = {}
    for i, (top, left) in enumerate(places):
        for row in range(side):
            for column in range(side):
                value = layers[:, i, row, column]
                assert torch.equal(field.setdefault((top + row, left + column), value), value)
    values = torch.stack(list(field.values()))
    assert len(field) < 4 * side * side  # some cells were shared
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    assert values.flatten().unique().numel() == values.numel()  # and no two cells have the same noise
    assert not torch.equal(refiner_noise(model.config, 6, windows, 3).initial, noise.initial)
