"""Windows of one or several pictures through the model, in batches: as many as pay and fit."""
from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from models.config import GenerationConfig
from models.generation import Branches, GivenTokens, RefinerNoise, ScaleStep
from models.varsr import VARSR

from .evidence import first_varied, sample_seed, token_evidence
from .rechoose import Rechooser
from .settings import RestoreSettings
from .windows import TiledPicture, Window, place_seed, refiner_noise

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.6  # of what is free; the rest is for pictures and other programs
TOKENS_THAT_FILL = {"cpu": 4096, "cuda": 16384}  # at the last scale: beyond this, larger batches are no faster
ACTIVATION_COPIES = 6  # tensors of a block's widest width that live at the same time
DECODER_COPIES = 5  # feature maps of the decoder's finest level that live at the same time

# In what is no `torch.OutOfMemoryError`. cuDNN finds no engine where there is no room for any one's work space.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
                 "CUDNN_STATUS_ALLOC_FAILED", "unable to find an engine to execute this computation")

T, R = TypeVar("T"), TypeVar("R")
Progress = Callable[[int], None]  # called with the number of windows just finished
Work = Sequence[tuple[TiledPicture, Window]]
OnScale = Callable[[Work, ScaleStep], None]  # called after each scale with the windows whose rows the step holds


class BatchSize:
    """A batch size that is halved each time the memory does not hold it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def halve(self) -> None:
        """After an out-of-memory error at the present size (which must be above one)."""
        self.size = max(self.size // 2, 1)
        log.warning("out of memory: going on with %d windows at a time", self.size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch ran out of memory, on a GPU, in its libraries there or in its CPU allocator."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def automatic_batch_size(model: VARSR, guided: bool, results: int = 1) -> BatchSize:
    """As many windows as keep the device busy, if that many, with so many results each, fit into its free memory."""
    kind = model.device.type if model.device.type in TOKENS_THAT_FILL else "cuda"
    paying = max(TOKENS_THAT_FILL[kind] // model.config.vqvae.side ** 2, 1)
    fitting = int(MEMORY_SHARE * free_memory(model.device) / (results * window_bytes(model, guided)))
    return BatchSize(max(min(paying, fitting), 1))


def window_bytes(model: VARSR, guided: bool) -> int:
    """Rough upper bound of the memory that one more window takes while it is generated or decoded."""
    config, size = model.config, torch.finfo(model.dtype).bits // 8
    rows = 2 if guided else 1
    transformer, last = config.transformer, config.vqvae.side ** 2
    cache = 2 * transformer.depth * config.num_tokens * transformer.width * size
    activations = ACTIVATION_COPIES * last * transformer.ffn_ratio * transformer.width * size
    logits = 2 * last * config.vqvae.vocab_size * torch.finfo(torch.float32).bits // 8
    pixels = (config.image_size // config.vqvae.stem) ** 2
    decoder = DECODER_COPIES * pixels * max(config.vqvae.widths[:2]) * size
    return max(rows * (cache + activations + logits), decoder)


def free_memory(device: torch.device, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can still be had on a device. Where the system does not tell for the CPU, a careful guess."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) \
            - torch.cuda.memory_allocated(device)
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 2 ** 30


def generate_windows(model: VARSR, work: Work, settings: RestoreSettings, batch: BatchSize,
                     progress: Progress | None = None, on_scale: OnScale | None = None) -> None:
    """Generate the latents of windows, whichever pictures they belong to, into the pictures' stores.

    A window's latent depends on its picture, its place and the settings, not on the others in the batch. Running out
    of memory halves the batch and goes on; only a single window that does not fit raises. What `on_scale` raises ends
    the run.
    """
    by_options: dict[GenerationConfig, list[tuple[TiledPicture, Window]]] = {}
    for picture, window in work:
        by_options.setdefault(settings.for_picture(len(picture.grid)), []).append((picture, window))
    for options, alike in by_options.items():
        coming = ahead(_inputs(model, alike, options, settings), model.device, batch.size)
        generate = partial(_generate, model, options=options, settings=settings, on_scale=on_scale)
        for part, _ in in_batches(coming, batch, generate):
            if progress is not None:
                progress(len(part))


def in_batches(items: Iterable[T], batch: BatchSize, call: Callable[[list[T]], R]) -> Iterator[tuple[list[T], R]]:
    """Items as many at a time as the batch size says, with what a call makes of them. Running out of memory halves the
    batch and goes on; only a single item that does not fit raises."""
    iterator, held = iter(items), []
    while held := [*held, *islice(iterator, max(batch.size - len(held), 0))]:
        part = held[:batch.size]
        try:
            result = call(part)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            batch.halve()
            continue
        held = held[len(part):]
        yield part, result


def ahead(items: Iterable[T], device: torch.device, depth: int) -> Iterator[T]:
    """The same items. While a GPU computes with some, a thread makes up to `depth` more; a CPU has nothing to do that
    with, so there each is made when it is asked for."""
    if device.type != "cuda":
        yield from items
        return
    iterator, end = iter(items), object()
    maker = ThreadPoolExecutor(1)
    try:
        made = deque(maker.submit(next, iterator, end) for _ in range(max(depth, 1)))
        while (item := made.popleft().result()) is not end:
            made.append(maker.submit(next, iterator, end))
            yield item
    finally:
        maker.shutdown(cancel_futures=True)


class WindowInput(NamedTuple):
    """What the generation of a window is given."""

    picture: TiledPicture
    window: Window
    guide: Tensor  # (3, S, S)
    noise: RefinerNoise  # of a batch of one
    seed: int


def _inputs(model: VARSR, work: Work, options: GenerationConfig, settings: RestoreSettings) -> Iterator[WindowInput]:
    steps = model.config.refiner_steps(options)
    for picture, window in work:
        yield WindowInput(picture, window, picture.window_guide(window),
                          refiner_noise(model.config, settings.seed, [window], steps),
                          place_seed(settings.seed, window.top, window.left))


def _generate(model: VARSR, part: Sequence[WindowInput], options: GenerationConfig, settings: RestoreSettings,
              on_scale: OnScale | None) -> None:
    work = [(each.picture, each.window) for each in part]
    keeps_codes, codes = any(picture.codes is not None for picture, _ in work), []
    keeps_evidence, evidence = any(picture.evidence is not None for picture, _ in work), []
    watched = on_scale is not None or keeps_codes or keeps_evidence \
        or any(set(picture.latents) - {picture.config.vqvae.side} for picture, _ in work)

    def keep(step: ScaleStep) -> None:
        if keeps_codes:
            codes.append(step.codes.cpu())
        for (picture, window), latent in zip(work, step.f_hat, strict=True):
            if step.side in picture.latents and step.side != picture.config.vqvae.side:
                picture.latents[step.side][window.index] = latent.cpu()
        if keeps_evidence:
            evidence.append(token_evidence(step, model.config.vqvae.side).cpu())
        if on_scale is not None:
            on_scale(work, step)
    noise = RefinerNoise(torch.cat([each.noise.initial for each in part]),
                         torch.cat([each.noise.fresh for each in part], dim=1))
    guides = torch.stack([each.guide for each in part])
    promise = settings.lr_consistency
    rechoose = Rechooser(model, work, guides, promise) if promise is not None and promise.rechoose else None
    latents = model.generate_latent(guides, options=options,
                                    seed=[each.seed for each in part], refiner_noise=noise,
                                    on_scale=keep if watched else None, fastvar=settings.fastvar,
                                    given=_given_tokens(work, model.config.vqvae.scales), rechoose=rechoose,
                                    branches=_branches(model, work, options, settings.seed)).float().cpu()
    for row, (picture, window) in enumerate(work):  # before the latent, with which a window counts as done
        if picture.codes is not None:
            picture.codes[window.index] = torch.cat([each[row] for each in codes])
        if picture.evidence is not None:
            picture.evidence[window.index] = torch.cat([each[row] for each in evidence])
    for (picture, window), latent in zip(work, latents, strict=True):
        picture.finished[window.index] = latent


def _branches(model: VARSR, work: Work, options: GenerationConfig, seed: int) -> Branches | None:
    """The further results of windows, kept in their pictures' stores; None where none are asked for."""
    count = len(work[0][0].samples)
    if not count:
        return None
    seeds = [sample_seed(seed, sample) for sample in range(count)]
    steps = model.config.refiner_steps(options)
    noise = [refiner_noise(model.config, each, [window], steps) for _, window in work for each in seeds]

    def keep(latents: Tensor) -> None:
        for (picture, window), copies in zip(work, latents.float().cpu(), strict=True):
            for store, latent in zip(picture.samples, copies, strict=True):
                store[window.index] = latent
    return Branches(first_varied(model.config), options.varied(),
                    [place_seed(each, window.top, window.left) for _, window in work for each in seeds],
                    RefinerNoise(torch.cat([each.initial for each in noise]),
                                 torch.cat([each.fresh for each in noise], dim=1)), keep)


def _given_tokens(work: Work, scales: Sequence[int]) -> GivenTokens | None:
    """The codes that a batch is given, if any of its pictures has such."""
    if all(picture.given is None for picture, _ in work):
        return None
    counts = [side * side for side in scales]
    nothing = torch.zeros(sum(counts), dtype=torch.long), torch.zeros(sum(counts), dtype=torch.bool)
    pairs = [nothing if picture.given is None else picture.given(window) for picture, window in work]
    return GivenTokens(*(torch.stack(each).split(counts, dim=1) for each in zip(*pairs, strict=True)))


def batch_size_for(model: VARSR, settings: RestoreSettings) -> BatchSize:
    """The batch size that the settings name, or the one that suits the model and the free memory."""
    if settings.batch_size is not None:
        return BatchSize(settings.batch_size)
    guided = max(settings.generation.cfg, settings.generation.tiled_cfg or 0) > 0
    return automatic_batch_size(model, guided, 1 + (settings.uncertainty.samples if settings.uncertainty else 0))
