"""Drawing a part of a restored picture anew: tokens inside a mask are sampled again, all others are kept.

A window's codes are drawn scale by scale, each from those before it, so codes outside the mask are given and those
inside see them. Coarse codes reach beyond the mask, and so does the refiner: in the end the cells of the last scale
that do not touch the mask get their latents back, and all pixels outside the mask those of the earlier result.
"""
from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import GenerationConfig
from models.varsr import VARSR
from models.weights.weight_file import weights_of
from pictures.formats import ImageError
from pictures.picture import MAX_PIXELS, Picture, read_header, read_making, read_picture
from pictures.result_file import ResultFile, StoredRows
from pictures.rgb import BT601, MAX_SCALE, PictureSource, TensorSource
from utils.device import require_floats
from utils.errors import UserError, first_line

from .generate import BatchSize, Progress, batch_size_for, generate_windows
from .jobs import Job, SizeRequest, is_there
from .products import rendered
from .render import COLOR_FIXES
from .settings import RestoreSettings, generation_options
from .tokens import (
    REMEDY,
    Making,
    TokenState,
    checked_codes,
    checked_latent,
    digest,
    flat,
    read_tokens,
    require_codes,
    require_fit,
)
from .windows import LatentStore, TiledPicture, Window

log = logging.getLogger(__name__)

FEATHER = 8  # pixels from the mask's border inwards, on which the new picture comes in
COVERED = 0.5  # share of a coarse cell that the mask covers, from which on its code is drawn anew
WHITE = 0.5  # of a mask's gray values: from here on
RECOMPUTED_WINDOWS = 256  # of a picture whose tokens nobody kept: its windows are held in memory
CELL_ROWS = 64  # of a mask, averaged at a time
PROMISED = re.compile(r" lr_\w+=\S+")  # and what was measured of it
SAID = re.compile(r"; seed=(\d+) (.+) color_fix=(\w+) overlap=([\d.e-]+)(?: lr_\w+=\S+)*$")


def redone_words(settings: RestoreSettings, share: float) -> str:
    """What a file says of a part that was redone, behind what the earlier one says. share: of the result's pixels."""
    generation = settings.generation
    return (f"; redone seed={settings.seed} top_k={generation.top_k} top_p={generation.top_p:g} "
            f"cfg={generation.cfg:g} share={share:.4g}")


class Mask:
    """Where a result is drawn anew: `pixels` (H, W) bool. `first` and `last`: the rows that have such pixels are in
    [first, last). Raises ValueError where there are none."""

    def __init__(self, pixels: Tensor, name: str = "mask") -> None:
        self.pixels = pixels.bool()
        rows = self.pixels.any(dim=1).nonzero()
        if not len(rows):
            raise UserError(f"{name}: nothing in it is white, so nothing would be redone: paint the region white")
        self.first, self.last = int(rows[0]), int(rows[-1]) + 1

    @classmethod
    def read(cls, path: Path, size: tuple[int, int]) -> Mask:
        """From a picture of a result's size (height, width); half transparent is half black. Raises ImageError."""
        most = MAX_PIXELS * int(MAX_SCALE) ** 2
        header = read_header(path, max_pixels=most)
        require_size(path, (header.height, header.width), "the result", size)
        picture = read_picture(path, most)
        pixels = torch.empty(size, dtype=torch.bool)
        for top in range(0, size[0], CELL_ROWS):  # not all of it as floats
            rows = slice(top, min(top + CELL_ROWS, size[0]))
            light = picture.region(top, 0, rows.stop - top, size[1])
            gray = light[0] if picture.is_gray else (light * torch.tensor(BT601).view(3, 1, 1)).sum(0)
            if picture.alpha is not None:
                alpha = picture.alpha[rows].astype(np.float32) / np.iinfo(picture.alpha.dtype).max
                gray = gray * torch.from_numpy(alpha)
            pixels[rows] = gray >= WHITE
        return cls(pixels, str(path))

    @property
    def share(self) -> float:
        """Of all pixels."""
        return int(self.pixels.count_nonzero()) / self.pixels.numel()

    def coverage(self, picture: TiledPicture) -> Tensor:
        """Share (h, w) of each latent cell of a picture that the mask covers; past the picture's edges it goes on."""
        factor, grid = picture.factor, picture.grid
        height, width = self.pixels.shape
        columns = torch.arange(grid.columns.length * factor).clamp(max=width - 1)
        parts = []
        for top in range(0, grid.rows.length, CELL_ROWS):
            count = min(CELL_ROWS, grid.rows.length - top)
            rows = torch.arange(top * factor, (top + count) * factor).clamp(max=height - 1)
            cells = self.pixels[rows][:, columns].float().unflatten(0, (count, factor)).unflatten(2, (-1, factor))
            parts.append(cells.mean(dim=(1, 3)))
        return torch.cat(parts)

    def weights(self, top: int, rows: int) -> np.ndarray:
        """Shares (rows, W) of the new picture in rows from `top` on: 0 outside, up to 1 inside, rising as a raised
        cosine of the distance from the border."""
        first, last = max(top - FEATHER, 0), min(top + rows + FEATHER, len(self.pixels))
        distance = _inner_distance(self.pixels[first:last], FEATHER + 1)[top - first:top - first + rows]
        return torch.sin(distance / (FEATHER + 1) * (math.pi / 2)).square().numpy()


def _inner_distance(mask: Tensor, most: int) -> Tensor:
    """Distance of every pixel of a mask (h, w) from the nearest one outside, at most `most`; 0 outside. The picture's
    edges are no border: beyond them there is nothing to agree with."""
    squared = torch.where(mask, float(most * most), 0.0)
    for axis in (0, 1):  # the nearest in the column, then the nearest of those in the row
        padding = (0, 0, most, most) if axis == 0 else (most, most, 0, 0)
        padded = F.pad(squared, padding, value=float(most * most))
        for step in range(-most, most + 1):
            squared = torch.minimum(squared, padded.narrow(axis, most + step, mask.shape[axis]) + step * step)
    return squared.sqrt()


def kept_codes(coverage: Tensor, scales: Sequence[int]) -> Tensor:
    """Which codes (tokens,) of a window are kept, by the coverage (N, N) of its cells: at the last scale those of
    cells that the mask does not touch, at coarser ones those of cells that it covers less than half of."""
    shares = [F.interpolate(coverage[None, None], (side, side), mode="area").flatten() for side in scales[:-1]]
    return torch.cat([*(share < COVERED for share in shares), coverage.flatten() == 0])


class RedoneWindows:
    """Windows of a store of which some are redone, into another store."""

    def __init__(self, state: TokenState, redone: dict[int, Tensor], new: LatentStore) -> None:
        """redone: the numbers of the redone windows, and which cells (N, N) of each are."""
        self.state, self.redone, self.new = state, redone, new

    def __contains__(self, index: int) -> bool:
        return index not in self.redone or index in self.new

    def __getitem__(self, index: int) -> Tensor:
        return self.new[index] if index in self.redone else self._old(index)

    def __setitem__(self, index: int, value: Tensor) -> None:
        self.new[index] = value

    def _old(self, index: int) -> Tensor:
        return self.state.codes[index]


class RedoneLatents(RedoneWindows):
    """The same for latents: cells that are not redone are put back."""

    def __setitem__(self, index: int, value: Tensor) -> None:
        self.new[index] = torch.where(self.redone[index], value, self._old(index))

    def _old(self, index: int) -> Tensor:
        return checked_latent(self.state, index)


def lay_over(picture: TiledPicture, state: TokenState, mask: Mask) -> None:
    """Make a picture that is still to be generated one of which only what the mask touches is drawn anew."""
    coverage, side = mask.coverage(picture), picture.grid.window

    def cells(window: Window) -> Tensor:
        return coverage[window.top:window.top + side, window.left:window.left + side]

    def given(window: Window) -> tuple[Tensor, Tensor]:
        scales = picture.config.vqvae.scales
        return checked_codes(state, window.index, picture.config), kept_codes(cells(window), scales)
    redone = {window.index: cells(window) > 0 for window in picture.grid if cells(window).any()}
    picture.given = given
    picture.latents[side] = RedoneLatents(state, redone, picture.finished)
    if picture.codes is not None:
        picture.codes = RedoneWindows(state, redone, picture.codes)


def redo(model: VARSR, lr: Tensor, state: TokenState, mask: Tensor, settings: RestoreSettings, original: Tensor,
         progress: Progress | None = None) -> Tensor:
    """A restored picture, drawn anew where a mask says so: (3, H, W) float32 on the CPU.

    lr: the LR picture (3, h, w) in [0, 1]; state: what `restore_with_tokens` gave for it; original: its picture
    (3, H, W) in [0, 1], whose pixels outside the mask stay exactly as they are; mask: (H, W) bool. settings: as for
    `restore`, with another seed; the overlap is that of the state. A model that takes the likeliest code needs
    `GenerationConfig.varied` to draw another picture. Raises ValueError for what does not fit together, a
    model of other weights too.
    """
    return redo_with_tokens(model, lr, state, mask, settings, original, progress)[0]


def redo_with_tokens(model: VARSR, lr: Tensor, state: TokenState, mask: Tensor, settings: RestoreSettings,
                     original: Tensor, progress: Progress | None = None) -> tuple[Tensor, TokenState]:
    """As `redo`, and the new state, to go on from; it does not need the earlier one."""
    if settings.color_fix not in COLOR_FIXES:
        raise UserError(f"unknown colour fix {settings.color_fix!r}: choose one of {', '.join(COLOR_FIXES)}")
    size, source = state.making.size, TensorSource(lr)
    require_size("mask", tuple(mask.shape), "the tokens", size)
    require_size("original", tuple(original.shape[1:]), "the tokens", size)
    require_floats("original", original)
    _require_source(state.making, source, "lr", "the state")
    region, picture = Mask(mask.cpu()), TiledPicture(source, size, model.config, state.making.overlap)
    require_fit(state, model, len(picture.grid), "the state")
    picture.codes = {}
    lay_over(picture, state, region)
    batch = batch_size_for(model, settings)
    generate_windows(model, missing_windows(picture), settings, batch, progress)
    result = original.detach().float().cpu().clone()
    for top, rows in rendered(model, picture, settings, batch, picture.finished, region.first, region.last):
        old, weight = result[:, top:top + rows.shape[1]], torch.from_numpy(region.weights(top, rows.shape[1]))
        old.copy_(torch.lerp(old, rows, weight))
    return result, flat(TokenState(state.making, picture.codes, picture.finished, len(picture.grid)))


def missing_windows(picture: TiledPicture) -> list[tuple[TiledPicture, Window]]:
    """What is still to be generated of a picture."""
    return [(picture, window) for window in picture.grid if window.index not in picture.finished]


def require_size(what: Path | str, size: tuple[int, ...], other: str, expected: tuple[int, int]) -> None:
    """Raise UserError where two sizes (height, width) differ."""
    if tuple(size) != tuple(expected):
        raise UserError(f"{what}: {size[1]}x{size[0]} pixels, {other} has {expected[1]}x{expected[0]}: they must be "
                        "the same")


def _require_source(making: Making, source: PictureSource, what: Path | str, tokens: Path | str) -> None:
    if digest(source) != making.source:
        raise UserError(f"{tokens}: is of another picture than {what}: give the one that was restored")


@dataclass(frozen=True, eq=False)
class Redo:
    """A redo of a result's file. state: its tokens; None: nobody kept them, and they are made again by `making`."""

    result: Path
    mask_file: Path
    mask: Mask
    making: Making
    state: TokenState | None
    tokens_file: Path

    @classmethod
    def of_flags(cls, args: argparse.Namespace, jobs: Sequence[Job], model: str) -> Redo:
        """What --resume_from and --mask ask for of the one picture, whose model's identity is given. Raises UserError
        for what does not fit together; nothing is loaded or written yet."""
        result, mask_file = args.resume_from, args.mask
        if len(jobs) != 1:
            raise UserError(f"--mask is for one picture, but there are {len(jobs)}: name one with --input")
        job, most = jobs[0], (args.max_pixels or MAX_PIXELS) * int(MAX_SCALE) ** 2
        header = read_header(result, max_pixels=most)
        size = header.height, header.width
        tokens_file, source = Job(job.source, result).tokens, read_picture(job.source, args.max_pixels or MAX_PIXELS,
                                                                           job.frame or 0)
        _require_own_names(job, result, mask_file, tokens_file, args.save_tokens)
        _require_requested_size(args, result, size, source)
        mask = Mask.read(mask_file, size)
        line = read_making(result)
        state = read_tokens(tokens_file) if is_there(tokens_file) else None
        making = state.making if state is not None else making_by_line(line, size, digest(source), result)
        _require_source(making, source, job.source, tokens_file)
        require_codes(making.generation)
        if making.color_fix not in COLOR_FIXES:
            raise UserError(f"{tokens_file}: is damaged (colour fix {making.color_fix!r}): {REMEDY}")
        require_size(result, size, str(tokens_file), making.size)
        if line is not None and making.line != line:
            raise UserError(f"{tokens_file}: is of another result than {result}, which was made later or before: "
                            f"{REMEDY}")
        if making.model and making.model != weights_of(model):
            raise UserError(f"{result}: was made by another model, {making.line.partition(';')[0]}, than {model}: "
                            "name that one with --model")
        return cls(result, mask_file, mask, making, state, tokens_file)

    def settings(self, args: argparse.Namespace, model: VARSR, settings: RestoreSettings) -> RestoreSettings:
        """Settings of the run: what no flag says is as in the result, but for a sampling that gives no other one."""
        generation = generation_options(args, model, self.making.generation.varied())
        return dataclasses.replace(settings, generation=generation, overlap=self.making.overlap,
                                   color_fix=self.making.color_fix)

    def size(self) -> SizeRequest:
        """That of the result."""
        height, width = self.making.size
        return SizeRequest(self.making.generation.scale, width, height)

    def line(self, settings: RestoreSettings) -> str:
        """What the new file says of its making: what the earlier one says, and what was redone. A promise of the
        earlier one (`--lr_consistency`) does not hold for the new part."""
        return PROMISED.sub("", self.making.line) + redone_words(settings, self.mask.share)

    def plan(self) -> list[object]:
        """What a half-done redo must have in common with this one to be continued."""
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
                 for path in (self.result, self.tokens_file) if is_there(path)]
        return [files, hashlib.sha256(self.mask.pixels.numpy()).hexdigest()]

    def apply(self, model: VARSR, tiled: TiledPicture, result: ResultFile, settings: RestoreSettings,
              batch: BatchSize) -> None:
        """Let a picture and the file of its result be those of the earlier result but for what the mask touches."""
        state = self.state or self._recomputed(model, tiled, settings, batch)
        require_fit(state, model, len(tiled.grid), self.tokens_file)
        lay_over(tiled, state, self.mask)
        most = MAX_PIXELS * int(MAX_SCALE) ** 2
        result.lay_over(StoredRows(self.result, most), self.mask.first, self.mask.last, self.mask.weights)

    def _recomputed(self, model: VARSR, tiled: TiledPicture, settings: RestoreSettings, batch: BatchSize
                    ) -> TokenState:
        if len(tiled.grid) > RECOMPUTED_WINDOWS:
            raise UserError(f"{self.result}: too large to compute its tokens again ({len(tiled.grid)} windows, the "
                            f"limit is {RECOMPUTED_WINDOWS}): {REMEDY}")
        log.info("%s: no %s, its tokens are computed again from the settings that it names (--save_tokens keeps them)",
                 self.result, self.tokens_file.name)
        making = self.making
        picture = TiledPicture(tiled.source, making.size, model.config, making.overlap)
        picture.codes = {}
        before = dataclasses.replace(settings, generation=making.generation, seed=making.seed, fastvar=None)
        generate_windows(model, missing_windows(picture), before, batch)
        return TokenState(making, picture.codes, picture.finished, len(picture.grid))


def _require_own_names(job: Job, result: Path, mask: Path, tokens: Path, saves: bool) -> None:
    """Raise UserError where something that is read would be overwritten."""
    for path in (result, mask):
        if is_there(job.output) and is_there(path) and job.output.samefile(path):
            raise UserError(f"--output: {path} would be overwritten: choose another --output, or a --suffix")
    if saves and job.tokens.absolute() == tokens.absolute():
        raise UserError(f"--save_tokens: {tokens} would be overwritten: choose another --output, or a --suffix")


def _require_requested_size(args: argparse.Namespace, result: Path, size: tuple[int, int], source: Picture) -> None:
    """Raise UserError where flags ask for another size than the result has."""
    if args.scale or args.width or args.height or args.longest:
        request = SizeRequest(args.scale or 1, args.width, args.height, args.longest)
        require_size(result, size, "what the flags ask for", request.size(source))


def making_by_line(line: str | None, size: tuple[int, int], source: str, result: Path) -> Making:
    """How a result was made, by what its file says (`script.making_of`). Raises UserError where that is not enough."""
    found = SAID.search(line or "")
    if found is None:
        why = "says nothing of its making" if line is None else \
            "does not say all of its making (parts were redone, or tokens pruned)"
        raise ImageError(f"{result}: has no {Job(result, result).tokens.name} beside it and {why}: {REMEDY}")
    try:
        values = {name: ast.literal_eval(value) for name, value in (each.split("=") for each in found[2].split())}
        return Making(size, source, float(found[4]), int(found[1]), GenerationConfig(**values), found[3], line)
    except (ValueError, TypeError, SyntaxError) as error:
        raise ImageError(f"{result}: its settings cannot be read ({first_line(error)}): {REMEDY}") from error
