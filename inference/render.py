"""From window latents to rows of pixels: merging, decoding, finishing, colour fix; no stage sees the whole picture.

Decoded windows depend on all that they hold (norms, attention), so they overlap and are blended. The decoder's last
steps, correction and detail (`models/branches.py`), are convolutions alone: made after blending, every pixel is
finished once instead of in every window that holds it, and has no seams. A model with a faithful branch decodes no
window at all. Colours are transferred from the LR picture by AdaIN or wavelets (StableSR, section 3.4).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.branches import Part
from models.varsr import VARSR

from .consistency import Projection
from .generate import BatchSize, ahead, in_batches
from .settings import LRConsistency
from .windows import LatentStore, TiledPicture, Window

VARIANCE_FLOOR = 1e-5
WAVELET_LEVELS = 5
WAVELET_REACH = 2 ** WAVELET_LEVELS - 1  # pixels that the blurs of all levels reach together
OUTER_TAP = 0.25  # of the three; the middle one has the rest
PART = 512  # rows and columns finished at a time, so that memory does not grow with the picture
COLOR_FIXES = ("adain", "wavelet", "none")
Band = tuple[int, Tensor]  # first row, pixels (3, rows, W)
Bands = Callable[[int, int], Iterator[Band]]  # of rows [first, last)
# Windows, their cells, what they see of the LR picture -> their pixels
WindowDecoder = Callable[[Sequence[Window], Tensor, Tensor], Sequence[Tensor]]


def adain_color_fix(target: Tensor, source: Tensor) -> Tensor:
    """`target` with the mean and deviation of each channel of `source`; (3, H, W) or (B, 3, H, W) in [0, 1]."""
    def moments(image: Tensor) -> tuple[Tensor, Tensor]:
        several = int(image.shape[-2:].numel() > 1)  # of a single pixel there is no unbiased variance
        deviation = (image.float().var(dim=(-2, -1), keepdim=True, correction=several) + VARIANCE_FLOOR).sqrt()
        return image.float().mean(dim=(-2, -1), keepdim=True), deviation
    target_mean, target_deviation = moments(target)
    source_mean, source_deviation = moments(source)
    return ((target - target_mean) / target_deviation * source_deviation + source_mean).clamp(0, 1)


def low_frequencies(image: Tensor) -> Tensor:
    """What five à-trous levels of the 3-tap binomial blur leave of an image, its borders replicated."""
    blurred = image if image.ndim == 4 else image[None]
    for level in range(WAVELET_LEVELS):
        for axis in (-1, -2):
            blurred = _blur(blurred, axis, 2 ** level)
    return blurred if image.ndim == 4 else blurred[0]


def _blur(image: Tensor, axis: int, step: int) -> Tensor:
    """(1, 2, 1) / 4 with taps `step` pixels apart. Sums of slices: far faster than a grouped convolution."""
    length = image.shape[axis]
    padded = F.pad(image, (step, step, 0, 0) if axis == -1 else (0, 0, step, step), mode="replicate")
    before, middle, after = (padded.narrow(axis, start, length) for start in (0, step, 2 * step))
    return torch.add(before, after).mul_(OUTER_TAP).add_(middle, alpha=1 - 2 * OUTER_TAP)


def wavelet_color_fix(target: Tensor, source: Tensor) -> Tensor:
    """The high frequencies of `target` on the low frequencies of `source`."""
    target = target.float()
    return low_frequencies(source.float() - target).add_(target).clamp_(0, 1)  # the blur is linear: one is enough


def merged_latent(picture: TiledPicture, latents: LatentStore, top: int, height: int | None = None) -> Tensor:
    """`height` cells of the latent from row `top` on, by default a window's (`merged_cells`)."""
    channels = picture.config.vqvae.latent_channels
    return merged_cells(picture, latents, channels, top, picture.grid.window if height is None else height)


def merged_cells(picture: TiledPicture, maps: LatentStore, channels: int, top: int, height: int) -> Tensor:
    """`height` cells from row `top` on, (channels, height, w): every window's map by its share, summed. Rows past the
    grid are zero."""
    grid = picture.grid
    merged = torch.zeros(channels, height, grid.columns.length)
    for row in grid.rows.reaching(top, top + height):
        start = grid.rows.starts[row]
        first, last = max(start, top), min(start + grid.window, top + height)
        own, cells = slice(first - start, last - start), slice(first - top, last - top)
        down = grid.rows.shares[row][own, None]
        for window in grid.row(row):
            share = down * grid.columns.shares[window.column]
            merged[:, cells, window.left:window.left + grid.window] += maps[window.index][:, own] * share
    return merged


class Finisher:
    """Finishes decoded rows of one picture; `reach` is how many rows on both sides a row depends on."""

    def __init__(self, model: VARSR, picture: TiledPicture, latents: LatentStore, fidelity: float) -> None:
        self.model, self.picture, self.latents, self.fidelity = model, picture, latents, fidelity
        self.reach = _whole_cells(model.finishing_reach(fidelity), picture.factor)

    def __call__(self, rows: Tensor, top: int) -> Tensor:
        """Decoded rows (3, h, W) from `top` on, finished, in [0, 1]. The first and last `reach` of them are only right
        at the picture's edges."""
        factor, (height, width) = self.picture.factor, rows.shape[1:]
        above = top % factor  # rows that the first cell has above the first row: context that nobody sees
        cells = merged_latent(self.picture, self.latents, top // factor, -(-(above + height) // factor))
        parts = []
        for left in range(0, width, PART):
            first, last = max(left - self.reach, 0), min(left + PART + self.reach, width)
            inside = cells[:, :, first // factor:-(-last // factor)]
            guide = self.picture.guide(top, first, height, last - first)
            part = self._finish(rows[:, :, first:last], guide, inside, above)
            parts.append(part[:, :, left - first:left - first + PART])
        return torch.cat(parts, dim=2)

    def _finish(self, decoded: Tensor, guide: Tensor, cells: Tensor, above: int) -> Tensor:
        """One part, continued to whole cells by its edge pixels."""
        height, width = decoded.shape[1:]
        factor = self.picture.factor
        below, right = cells.shape[1] * factor - above - height, cells.shape[2] * factor - width
        padded = [F.pad(each[None], (0, right, above, below), mode="replicate") for each in (decoded, guide)]
        finished = self.model.finish(*padded, cells[None], self.fidelity)[0].cpu()
        return finished[:, above:above + height, :width]


def _whole_cells(pixels: int, factor: int) -> int:
    return -(-pixels // factor) * factor


def render(model: VARSR, picture: TiledPicture, latents: LatentStore, color_fix: str, batch: BatchSize,
           top: int = 0, bottom: int | None = None, fidelity: float | None = None,
           consistency: LRConsistency | None = None) -> Iterator[Band]:
    """Rows [top, bottom) of a picture from its windows' latents, in bands from the top, float32 in [0, 1].

    The rows are the same whichever are asked for. The wavelet fix works on them as on the whole picture; AdaIN on each
    decoded window, so that neighbouring windows agree in the colours of the LR picture. fidelity: see `VARSR.decode`.
    consistency: how near to the LR picture the result is brought at last, by `Projection`; None: as it is.
    """
    bottom = picture.height if bottom is None else bottom
    fidelity = model.config.generation.fidelity if fidelity is None else fidelity
    restored = _unfixed(model, picture, latents, color_fix == "adain", batch, fidelity)

    def fix(rows: Tensor, start: int) -> Tensor:
        return wavelet_color_fix(rows, picture.guide(start, 0, rows.shape[1], picture.width))

    def coming(first: int, last: int) -> Iterator[Band]:
        return ahead(restored(first, last), model.device, 1)

    def fixed(first: int, last: int) -> Iterator[Band]:
        if color_fix == "wavelet":
            return filtered(coming, fix, WAVELET_REACH, first, last, picture.height)
        return restored(first, last)
    if consistency is None:
        return fixed(top, bottom)
    project = Projection(picture, consistency, model.device)
    return filtered(fixed, project, project.reach, top, bottom, picture.height, PART)


def _unfixed(model: VARSR, picture: TiledPicture, latents: LatentStore, adain: bool, batch: BatchSize,
             fidelity: float) -> Bands:
    """The picture before the colour fix; by AdaIN, the last thing that is done to a window, after it."""
    reach = model.finishing_reach(fidelity)
    if model.vqvae.restores and not adain:
        return partial(_restored, model, picture, latents, fidelity, reach)
    finishes = reach > 0 and not adain
    decode = model.decode_unfinished if finishes else partial(model.decode, fidelity=fidelity)
    decoded = partial(_decoded, picture, latents, partial(_decode_windows, decode, picture, adain), batch, model.device)
    if not finishes:
        return decoded
    finish = Finisher(model, picture, latents, fidelity)
    return partial(filtered, decoded, finish, finish.reach, height=picture.height, least=PART)


def filtered(bands: Bands, apply: Callable[[Tensor, int], Tensor], reach: int, top: int, bottom: int, height: int,
             least: int = 1) -> Iterator[Band]:
    """Rows [top, bottom) of what a filter (see `with_context`) makes of a picture of `height` rows, whose rows `bands`
    gives."""
    for start, rows in with_context(bands(max(top - reach, 0), min(bottom + reach, height)), reach, apply, least):
        inside = rows[:, max(top - start, 0):max(bottom - start, 0)]
        if inside.shape[1]:
            yield max(start, top), inside


def _restored(model: VARSR, picture: TiledPicture, latents: LatentStore, fidelity: float, reach: int,
              first: int, last: int) -> Iterator[Band]:
    """Rows [first, last) that branches make of the LR picture: no window is decoded, any part can be had alone.
    reach: of these branches, in pixels."""
    factor = picture.factor
    height, width = (-(-side // factor) for side in (picture.height, picture.width))
    for top in range(first, last, PART):
        rows = Part(top, 0, min(PART, last - top), picture.width)
        seen = rows.covered(factor, -(-reach // factor), height, width)
        cells = merged_latent(picture, latents, seen.top, seen.height)
        parts = []
        for left in range(0, picture.width, PART):
            part = rows._replace(left=left, width=min(PART, picture.width - left))
            inside = part.covered(factor, -(-reach // factor), height, width)
            pixels = inside.scaled(factor)
            made = model.restore(picture.guide(*pixels)[None], inside.seen_from(seen).of(cells)[None],
                                 part.seen_from(pixels), fidelity)
            parts.append(made[0].cpu())
        yield top, torch.cat(parts, dim=2)


def _decoded(picture: TiledPicture, latents: LatentStore, decode: WindowDecoder, batch: BatchSize,
             device: torch.device, first: int, last: int) -> Iterator[Band]:
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
        for window, pixels in _decode_row(picture, merged, row, decode, batch, device):
            left = window.left * factor
            total[:, :, left:left + size] += pixels * (rows.shares[row][:, None] * columns.shares[window.column])
    yield from _cut(top, total, picture.width, first, last)


def _cut(top: int, rows: Tensor, width: int, first: int, last: int) -> Iterator[Band]:
    """The part of some rows that lies in [first, last) and inside the picture, if any."""
    inside = rows[:, max(first - top, 0):max(last - top, 0), :width]
    if inside.shape[1]:
        yield max(top, first), inside.clone()


def _decode_row(picture: TiledPicture, merged: Tensor, row: int, decode: WindowDecoder, batch: BatchSize,
                device: torch.device) -> Iterator[tuple[Window, Tensor]]:
    """Decoded pixels (3, S, S) of the windows of a row, whose merged cells are given."""
    side = picture.decoding.window
    coming = ahead(((window, merged[:, :, window.left:window.left + side], picture.window_guide(window))
                    for window in picture.decoding.row(row)), device, batch.size)

    def decoded(part: Sequence[tuple[Window, Tensor, Tensor]]) -> Sequence[Tensor]:
        windows, cells, guides = zip(*part, strict=True)
        return decode(windows, torch.stack(cells), torch.stack(guides))
    for part, pixels in in_batches(coming, batch, decoded):
        yield from zip((window for window, *_ in part), pixels, strict=True)


def _decode_windows(decode: Callable[[Tensor, Tensor], Tensor], picture: TiledPicture, adain: bool,
                    windows: Sequence[Window], cells: Tensor, guides: Tensor) -> Sequence[Tensor]:
    """Windows' merged cells (B, c, N, N) to pixels beside what they see of the LR picture, (B, 3, S, S) each."""
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
