"""What the web page does with the engine: one job at a time, told step by step, stopped when asked. No web in it."""
from __future__ import annotations

import argparse
import asyncio
import dataclasses
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from inference.classes import ClassPicture, class_title, draw
from inference.consistency import broken_promise, note_residual
from inference.generate import Work, batch_size_for, generate_windows
from inference.jobs import AUTO, SAME_KIND, OutputNames, SizeRequest
from inference.products import keep_evidence, rendered, rows_with_errors
from inference.render import COLOR_FIXES
from inference.script import making_of
from inference.settings import (
    EMBEDDED,
    MAX_LEVELS,
    PUBLISHED,
    LRConsistency,
    ModelDescription,
    RestoreSettings,
    UncertaintySettings,
    fast_generation,
    fast_pruning,
    load_model,
)
from inference.tokens import Making, TokenState, digest, flat
from inference.uncertainty import ErrorMap
from inference.windows import TiledPicture
from models.error_model import Calibration
from models.fastvar import FastVARConfig
from models.varsr import VARSR, ScaleStep
from pictures.picture import Picture, read_picture
from pictures.result_file import ResultFile, ResultOptions
from pictures.rgb import MAX_SCALE, enlarged, laid_over_white, read_image, save_picture
from pictures.sheets import ContactSheet
from utils.errors import UserError

from .error_view import ErrorView
from .fields import number, one_of, whole
from .kept import Result, Variant, can_redo
from .preview import Preview
from .sessions import Cancelled

MAX_OVERLAP, MAX_SEED, MAX_GUIDANCE, MAX_DROP = 0.9, 2 ** 31 - 1, 100.0, 0.9
KINDS = (AUTO, "png", "jpg", "webp", "tif")
MAX_CLASS_PICTURES, CLASS_BATCH = 16, 4
NEWS_SECONDS = 0.2  # between two news that are handed out: to show them takes gradio a good part of it


@dataclass(frozen=True)
class RestoreRequest:
    """One picture to restore. cfg, fidelity: None for the model's own. kind: a file ending, or "auto" for the source's.

    fastvar: drop ratios of the last scales, empty for none. fast: the settings of `--fast`; what is said here wins.
    errors: with the map of expected errors. lr_consistency: levels, None for off. Raises ValueError for values out of
    range.
    """

    source: Path
    scale: float = 4.0
    cfg: float | None = None
    seed: int = 0
    color_fix: str = "wavelet"
    overlap: float = 0.25
    fastvar: tuple[float, ...] = ()
    fast: bool = False
    kind: str = AUTO
    fidelity: float | None = None
    errors: bool = False
    lr_consistency: float | None = None

    def __post_init__(self) -> None:
        number("scale", self.scale, 1, MAX_SCALE)
        whole("seed", self.seed, 0, MAX_SEED)
        number("overlap", self.overlap, 0, MAX_OVERLAP)
        one_of("colour fix", self.color_fix, COLOR_FIXES)
        one_of("result file", self.kind, KINDS)
        if self.cfg is not None:
            number("guidance", self.cfg, 0, MAX_GUIDANCE)
        if self.fidelity is not None:
            number("fidelity", self.fidelity, 0, 1)
        if self.lr_consistency is not None:
            number("LR consistency", self.lr_consistency, 0, MAX_LEVELS)
        for ratio in self.fastvar:
            number("dropped", ratio, 0, MAX_DROP)


@dataclass(frozen=True)
class ClassRequest:
    """`count` pictures of each class. Raises ValueError for too many or none."""

    labels: tuple[int, ...]
    count: int = 1
    cfg: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.labels:
            raise UserError("choose at least one class")
        whole("seed", self.seed, 0, MAX_SEED)
        if self.cfg is not None:
            number("guidance", self.cfg, 0, MAX_GUIDANCE)
        requested = len(self.labels) * whole("pictures of each", self.count, 0, MAX_CLASS_PICTURES)
        if not 1 <= requested <= MAX_CLASS_PICTURES:
            raise UserError(f"{requested} pictures at once: must be from 1 to {MAX_CLASS_PICTURES}")


@dataclass(frozen=True)
class Update:
    """News of a running job: a line, the share that is done, pictures to show and files to give out.

    pictures: (3, h, w) in [0, 1]: a preview; at the end of a restoration the enlarged LR picture and the result; of
    classes all so far. error: the map of the result's expected errors; result: what parts can be redone of.
    """

    message: str
    share: float = 0.0
    pictures: tuple[Tensor, ...] = ()
    titles: tuple[str, ...] = ()
    file: Path | None = None
    error: ErrorView | None = None
    result: Result | None = None


Tell = Callable[[Update], None]
Keep = Callable[[Picture, RestoreSettings, str, Variant], Result]  # the LR picture, settings, the file's name, the rest


async def stream(work: Callable[[Tell], None], check: Callable[[], None]) -> AsyncIterator[Update]:
    """Run `work` in a thread and hand out the newest of what it tells, now and then and when it ends; what it raises is
    raised here.

    `check` is called whenever it tells something, and what that raises ends the work. So does closing the iterator,
    which waits until the work has ended.
    """
    loop, news = asyncio.get_running_loop(), deque(maxlen=1)
    arrived, ended, closed = asyncio.Event(), asyncio.Event(), threading.Event()
    failure: list[BaseException] = []

    def tell(update: Update) -> None:
        if closed.is_set():
            raise Cancelled
        check()
        news.append(update)
        loop.call_soon_threadsafe(arrived.set)

    def run() -> None:
        try:
            work(tell)
        except BaseException as error:  # raised again where the news is read
            failure.append(error)
        finally:
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(ended.set)
                loop.call_soon_threadsafe(arrived.set)
    threading.Thread(target=run, daemon=True).start()
    complete = False
    try:
        while not ended.is_set() or news:
            await arrived.wait()
            arrived.clear()
            if news:
                yield news.pop()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(ended.wait(), NEWS_SECONDS)
        complete = True
    finally:
        closed.set()
        await ended.wait()
        if not complete:
            failure.clear()
    if failure:
        raise failure.pop()  # left in the list it would hold, and be held by, all that the work had in memory


def model_sources(args: argparse.Namespace, super_resolution: bool) -> dict[str, str]:
    """Models that can be chosen, the default one first: name to what `--model` would be."""
    if args.model and super_resolution:
        return {Path(args.model).name: args.model}
    published, embedded = PUBLISHED[super_resolution], EMBEDDED[super_resolution]
    found = {f"published ({published.name})": str(published)} if published.is_file() else {}
    return {**found, f"embedded ({embedded.name})": str(embedded)}


class Models:
    """The model that is in memory: one at a time, exchanged when another is asked for."""

    def __init__(self, device: str, dtype: str) -> None:
        self.device, self.dtype = device, dtype
        self.lock, self.key, self.loaded = threading.Lock(), None, None

    def get(self, source: str, super_resolution: bool = True) -> tuple[VARSR, ModelDescription]:
        """A model and which it is. Raises ValueError or FileNotFoundError."""
        with self.lock:
            if self.key != (source, super_resolution):
                self.key = self.loaded = None  # its memory must be free before the next one comes
                args = argparse.Namespace(model=source, device=self.device, dtype=self.dtype)
                self.loaded = load_model(args, super_resolution)
                self.key = (source, super_resolution)
            return self.loaded


def result_size(picture: Picture, request: RestoreRequest, max_pixels: int) -> tuple[int, int]:
    """(height, width) of a picture's result. Raises UserError where that is too large."""
    height, width = SizeRequest(request.scale).size(picture)
    if height * width > max_pixels:
        raise UserError(f"{request.source.name}: a result of {width}x{height} is over the limit of "
                         f"{max_pixels / 1e6:.1f} million pixels: choose a smaller picture or scale")
    return height, width


def restore_file(model: VARSR, description: ModelDescription, request: RestoreRequest, folder: Path, max_pixels: int,
                 tell: Tell, read: Callable[[Path, int], Picture] = read_picture, keep: Keep | None = None,
                 calibration: Calibration | None = None) -> None:
    """Restore a picture into a file in `folder`, telling every scale, batch of windows and band of rows.

    read: how to read the source, the only thing that is done with it. keep: called with a result whose parts can be
    redone. calibration: of the map of errors, None for a guess. Raises ImageError or ValueError in one line, Cancelled
    if `tell` does; nothing half-written is left.
    """
    picture = read(request.source, max_pixels)
    size = result_size(picture, request, max_pixels)
    tiled = TiledPicture(picture, size, model.config, request.overlap)
    settings = _settings(model, request, calibration)
    keeps = keep is not None and can_redo(size, settings)
    tiled.codes = {} if keeps else None
    keep_evidence(tiled, settings, lambda name, channels: {})
    batch, windows = batch_size_for(model, settings), list(tiled.grid)
    options = ResultOptions(text=making_of(settings, description))
    kind = SAME_KIND.get(picture.format, ".png")[1:] if request.kind == AUTO else request.kind
    name = OutputNames(f"_x{request.scale:g}", kind).name(request.source)
    result = ResultFile(folder / name, picture, *size, options)
    preview, done, sides = Preview(model, tiled), 0, model.config.vqvae.scales
    bands: list[Tensor] = []

    def advance(count: int) -> None:
        nonlocal done
        done += count
        part = windows[done - count:done]
        shown = preview.show(part, [tiled.finished[window.index] for window in part])
        tell(Update(f"window {done} of {len(windows)}", done / len(windows), (shown,)))

    def scale_done(part: Work, step: ScaleStep) -> None:
        places = [window for _, window in part]
        share = (done + len(places) * (step.scale + 1) / (len(sides) + 1)) / len(windows)
        shown = (preview.show(places, step.f_hat),) if preview.affords_scales else ()
        tell(Update(f"window {done + 1} to {done + len(places)} of {len(windows)}, scale {step.scale + 1} of "
                    f"{len(sides)} ({step.side}x{step.side})", share, shown))

    def write(top: int, rows: Tensor) -> None:
        result.write_rows(top, rows)
        if keeps:
            bands.append(rows)
        tell(Update(f"writing row {top + rows.shape[1]} of {size[0]}", 1.0))
    error = kept = None
    try:
        cfg = settings.for_picture(len(windows)).cfg
        tell(Update(f"{len(windows)} windows, cfg {cfg:g}", 0.0, (preview.picture.clone(),)))
        generate_windows(model, [(tiled, window) for window in windows], settings, batch, advance, scale_done)
        if settings.uncertainty is None:
            for top, rows in rendered(model, tiled, settings, batch, tiled.finished):
                write(top, rows)
        else:
            expected = ErrorMap(tiled, settings.uncertainty)
            levels = [rows for _, rows in rows_with_errors(model, tiled, settings, batch, expected, write)]
            error = ErrorView.of(torch.cat(levels, dim=1)[0], expected)
        broken = broken_promise(note_residual(result, picture, settings.lr_consistency), settings.lr_consistency)
        result.finish()
    finally:
        result.discard()
    if keeps:
        making = Making(size, digest(picture), request.overlap, request.seed, settings.generation, request.color_fix)
        state = flat(TokenState(making, tiled.codes, tiled.finished, len(windows)))
        plain = dataclasses.replace(settings, uncertainty=None)
        kept = keep(picture, plain, name, Variant(torch.cat(bands, dim=1), state, options.text))
    note = "" if picture.alpha is None else ", transparency kept" if result.has_alpha else ", laid over white"
    note += "" if broken is None else f"; {broken}"
    tell(Update(f"{name}: {picture.width}x{picture.height} to {size[1]}x{size[0]}, {len(windows)} windows{note}", 1.0,
                (laid_over_white(enlarged(picture, size), picture), read_image(result.path)), file=result.path,
                error=error, result=kept))


def _settings(model: VARSR, request: RestoreRequest, calibration: Calibration | None) -> RestoreSettings:
    """The model's own settings, or the fast ones, with what the request asks for."""
    own = fast_generation(model.config) if request.fast else model.config.generation
    fidelity = own.fidelity if request.fidelity is None else request.fidelity
    generation = dataclasses.replace(own, scale=request.scale, fidelity=fidelity).with_cfg(request.cfg)
    model.config.check_options(generation)
    pruning = fast_pruning(model.config) if request.fast else None
    if request.fastvar:
        pruning = FastVARConfig.for_last(model.config.vqvae.scales, request.fastvar)
    promise = None if request.lr_consistency is None else LRConsistency(request.lr_consistency)
    return RestoreSettings(generation, request.seed, color_fix=request.color_fix, overlap=request.overlap,
                           fastvar=pruning, lr_consistency=promise,
                           uncertainty=UncertaintySettings(calibration=calibration) if request.errors else None)


def draw_classes(model: VARSR, request: ClassRequest, folder: Path, tell: Tell) -> None:
    """Draw pictures of classes, telling every scale and picture; the contact sheet goes into `folder`.

    Raises ValueError in one line, Cancelled if `tell` does.
    """
    config = model.config
    if not all(0 <= label < config.num_classes for label in request.labels):
        raise UserError(f"a class is out of range: this model knows 0 to {config.num_classes - 1}")
    options = config.generation.with_cfg(request.cfg)
    requested = [ClassPicture(label, index) for label in request.labels for index in range(request.count)]
    sheet, sides = ContactSheet(), config.vqvae.scales
    shown: dict[ClassPicture, Tensor] = {}

    def news(message: str, share: float, file: Path | None = None) -> Update:
        titles = tuple(class_title(config, item.label) for item in shown)
        return Update(message, share, tuple(shown.values()), titles, file)

    def scale_done(items: Sequence[ClassPicture], step: ScaleStep) -> None:
        shown.update(zip(items, model.decode(step.f_hat, None).float().cpu(), strict=True))
        share = (len(shown) - len(items) * (1 - (step.scale + 1) / (len(sides) + 1))) / len(requested)
        tell(news(f"scale {step.scale + 1} of {len(sides)} ({step.side}x{step.side})", share))
    for item, picture in draw(model, requested, options, request.seed, CLASS_BATCH, scale_done):
        shown[item] = picture
        sheet.add(class_title(config, item.label), picture)
    path = folder / "contact_sheet.png"
    save_picture(sheet.render(), path)
    tell(news(f"{len(requested)} pictures, seed {request.seed}, cfg {options.cfg:g}", 1.0, path))
