"""From window latents to rows of pixels: tiled decoding, finishing, colour fix; no stage sees the whole picture."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from models.varsr import VARSR

from .batching import BatchSize, is_out_of_memory
from .color import WAVELET_REACH, adain_color_fix, wavelet_color_fix
from .finishing import PART, Finisher
from .latents import LatentStore
from .merging import merged_latent
from .tiles import TiledPicture
from .windows import Window

COLOR_FIXES = ("adain", "wavelet", "none")
Band = tuple[int, Tensor]  # first row, pixels (3, rows, W)
WindowDecoder = Callable[[Sequence[Window], Tensor], Sequence[Tensor]]  # windows, their cells -> their pixels


def render(model: VARSR, picture: TiledPicture, latents: LatentStore, color_fix: str, batch: BatchSize,
           top: int = 0, bottom: int | None = None, fidelity: float | None = None) -> Iterator[Band]:
    """Rows [top, bottom) of a picture from its windows' latents, in bands from the top, float32 in [0, 1].

    The rows are the same whichever are asked for. The wavelet fix works on them as on the whole picture; AdaIN on each
    decoded window, so that neighbouring windows agree in the colours of the LR picture. fidelity: see `VARSR.decode`.
    """
    bottom = picture.height if bottom is None else bottom
    fidelity = model.config.generation.fidelity if fidelity is None else fidelity
    finish = Finisher(model, picture, latents, fidelity)
    # AdaIN is the last thing that is done to a window, so its windows are finished before.
    whole = finish.reach > 0 and color_fix != "adain"
    decode_window = model.decode_unfinished if whole else partial(model.decode, fidelity=fidelity)
    decode = partial(_decode_windows, decode_window, picture, color_fix == "adain")

    def decoded(first: int, last: int) -> Iterator[Band]:
        return _decoded(picture, latents, decode, batch, first, last)

    def finished(first: int, last: int) -> Iterator[Band]:
        return _filtered(decoded, finish, finish.reach, first, last, picture.height, PART)

    def fix(rows: Tensor, start: int) -> Tensor:
        return wavelet_color_fix(rows, picture.guide(start, 0, rows.shape[1], picture.width))
    restored = finished if whole else decoded
    if color_fix == "wavelet":
        return _filtered(restored, fix, WAVELET_REACH, top, bottom, picture.height)
    return restored(top, bottom)


def _filtered(bands: Callable[[int, int], Iterator[Band]], apply: Callable[[Tensor, int], Tensor], reach: int,
              top: int, bottom: int, height: int, least: int = 1) -> Iterator[Band]:
    """Rows [top, bottom) of what a filter (see `with_context`) makes of a picture of `height` rows, whose rows `bands`
    gives."""
    for start, rows in with_context(bands(max(top - reach, 0), min(bottom + reach, height)), reach, apply, least):
        inside = rows[:, max(top - start, 0):max(bottom - start, 0)]
        if inside.shape[1]:
            yield max(start, top), inside


def _decoded(picture: TiledPicture, latents: LatentStore, decode: WindowDecoder, batch: BatchSize, first: int,
             last: int) -> Iterator[Band]:
    """Decoded and blended rows [first, last)."""
    grid, factor = picture.decoding, picture.factor
    rows, columns = grid.rows.scaled(factor), grid.columns.scaled(factor)
    size = rows.window
    needed = rows.reaching(first, last)
    total = torch.zeros(3, size, columns.length)  # rows from `top` on that later windows may still add to
    top = rows.starts[needed[0]]
    for row in needed:
        gone = rows.starts[row] - top
        if gone:
            yield from _cut(top, total[:, :gone], picture.width, first, last)
            total = torch.cat([total[:, gone:], torch.zeros(3, gone, columns.length)], dim=1)
            top = rows.starts[row]
        merged = merged_latent(picture, latents, grid.rows.starts[row])
        for window, pixels in _decode_row(picture, merged, row, decode, batch):
            left = window.left * factor
            total[:, :, left:left + size] += pixels * (rows.shares[row][:, None] * columns.shares[window.column])
    yield from _cut(top, total, picture.width, first, last)


def _cut(top: int, rows: Tensor, width: int, first: int, last: int) -> Iterator[Band]:
    """The part of some rows that lies in [first, last) and inside the picture, if any."""
    inside = rows[:, max(first - top, 0):max(last - top, 0), :width]
    if inside.shape[1]:
        yield max(top, first), inside.clone()


def _decode_row(picture: TiledPicture, merged: Tensor, row: int, decode: WindowDecoder,
                batch: BatchSize) -> Iterator[tuple[Window, Tensor]]:
    """Decoded pixels (3, S, S) of the windows of a row, whose merged cells are given."""
    windows, done, side = picture.decoding.row(row), 0, picture.decoding.window
    while done < len(windows):
        part = windows[done:done + batch.size]
        cells = torch.stack([merged[:, :, window.left:window.left + side] for window in part])
        try:
            decoded = decode(part, cells)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            batch.halve()
            continue
        yield from zip(part, decoded, strict=True)
        done += len(part)


def _decode_windows(decode: Callable[[Tensor, Tensor], Tensor], picture: TiledPicture, adain: bool,
                    windows: Sequence[Window], cells: Tensor) -> Sequence[Tensor]:
    """Windows' merged cells (B, c, N, N) to pixels (B, 3, S, S) beside what they see of the LR picture."""
    guides = torch.stack([picture.window_guide(window) for window in windows])
    decoded = decode(cells, guides).cpu()
    if not adain:
        return decoded
    return [_window_adain(picture, *each) for each in zip(windows, decoded, guides, strict=True)]


def _window_adain(picture: TiledPicture, window: Window, pixels: Tensor, guide: Tensor) -> Tensor:
    """AdaIN over the part of a window that is inside the picture."""
    height, width = picture.height - window.top * picture.factor, picture.width - window.left * picture.factor
    fixed = pixels.clone()
    fixed[:, :height, :width] = adain_color_fix(pixels[:, :height, :width], guide[:, :height, :width])
    return fixed


def with_context(bands: Iterator[Band], reach: int, apply: Callable[[Tensor, int], Tensor],
                 least: int = 1) -> Iterator[Band]:
    """Apply a filter to consecutive bands as if they were one picture: each row sees `reach` rows on both sides.

    apply: given rows (3, n, W) and the number of the first of them, returns them filtered. least: rows that are waited
    for before the filter is applied, since what it does to the rows on both sides is thrown away.
    """
    held, start, ready = None, 0, 0  # rows [start, ...) are held, those below `ready` have been given out
    for top, rows in bands:
        if held is None:
            held, start, ready = rows, top, top
        else:
            held = torch.cat([held, rows], dim=1)
        until = start + held.shape[1] - reach
        if until - ready >= least:
            yield ready, apply(held, start)[:, ready - start:until - start]
            ready = until
            drop = max(ready - reach - start, 0)
            held, start = held[:, drop:], start + drop
    if held is not None:
        yield ready, apply(held, start)[:, ready - start:]
