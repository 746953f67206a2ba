"""What a script's flags ask for: the model, ready for generation, and how pictures are restored.

The preset `--fast` is the quickest of the settings of `benchmarks/bench_fast.py` with 32 dB or more to the plain run.
"""
from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.config import GenerationConfig, VARSRConfig
from models.fastvar import SHARED, FastVARConfig
from models.weights.load import CHECKPOINTS, require_kind
from utils.device import choose_device, choose_dtype, keep_freed_memory, warn_of_imitation
from utils.errors import UserError
from utils.flags import DTYPES, EIGHT_BIT

from .windows import MIN_OVERLAP

if TYPE_CHECKING:
    from models.error_model import Calibration
    from models.fastvar import PrunedScale
    from models.varsr import VARSR

log = logging.getLogger(__name__)

# What is used without --model, by super-resolution or not: the published file if it is there, else our own model.
PUBLISHED = {True: CHECKPOINTS / "VARSR.pth", False: CHECKPOINTS / "VARSR_C2I.pth"}
EMBEDDED = {True: CHECKPOINTS / "varsr-tiny", False: CHECKPOINTS / "varsr-tiny-c2i"}

GUIDED_SCALES = 1  # the last one alone
REFINER_STEPS = 4
DROP_RATIOS = (0.4, 0.6, 0.6)  # of the last scales
LAST_TWO = (0.4, 0.3)  # the same of --fastvar
UNPRUNED_SHARE = 8  # one block in so many, from the first on, computes every token
MAX_LEVELS = 255  # of --lr_consistency and --lr_noise
KEPT_CELLS = 16  # of the last scale's tokens, one in so many stays in any case


@dataclass(frozen=True)
class ModelDescription:
    """Which model it is, in words: `line` for the one who runs it, `identity` for files that others see."""

    line: str
    identity: str

    def __str__(self) -> str:
        return self.line


def load_model(args: argparse.Namespace, super_resolution: bool = True) -> tuple[VARSR, ModelDescription]:
    """The model of a kind that the flags ask for, and which it is.

    Raises ValueError or FileNotFoundError with the remedy.
    """
    from models.varsr import VARSR
    from models.weights.load import identity
    device = choose_device(args.device)
    eight_bit = args.dtype if args.dtype in EIGHT_BIT else None
    check_eight_bit(device, eight_bit)
    dtype = choose_dtype(args.dtype, device)
    if args.dtype == "auto" and device.type == "cpu" and not super_resolution:
        # codes are drawn: bf16 rounds otherwise in batches of other sizes, which would be other pictures
        dtype = torch.float32
    warn_of_imitation(device, dtype)
    if device.type == "cpu":
        keep_freed_memory()
    published, embedded = PUBLISHED[super_resolution], EMBEDDED[super_resolution]
    source = model_source(args, super_resolution)
    model = VARSR.from_pretrained(source, device=device, dtype=dtype)
    require_kind(model.config, super_resolution, source)
    prepare(model, eight_bit, getattr(args, "compile", False))
    precision = eight_bit or next(s for s, name in DTYPES.items() if f"torch.{name}" == str(dtype))
    note = "" if source != embedded else f" (embedded model; put the published {published.name} and VQVAE.pth into " \
        "checkpoints/ for the full one)"
    return model, ModelDescription(f"model {source}, {device}, {precision}{note}",
                                   f"model {identity(source)}, {device.type}, {precision}")


def model_source(args: argparse.Namespace, super_resolution: bool = True) -> str | Path:
    """Where the model comes from."""
    published = PUBLISHED[super_resolution]
    return args.model or (published if published.is_file() else EMBEDDED[super_resolution])


def check_eight_bit(device: torch.device, eight_bit: str | None) -> None:
    """Raise ValueError with the remedy where a device has no, or no fast, products in 8 bits."""
    from models.speed.packed import require_gpu
    if eight_bit == "fp8" and device.type == "cpu":
        raise UserError("--dtype fp8 is for GPUs: CPUs only imitate it, slowly (int8 is fast there)")
    if eight_bit and device.type == "cuda":
        require_gpu(device, eight_bit)


def prepare(model: VARSR, eight_bit: str | None = None, compiled: bool = False) -> VARSR:
    """Make a loaded model ready for generation alone, its linears packed where that helps.

    eight_bit: "int8", "fp8" or None, see `pack`; compiled: see `compile_model`. A second time changes nothing. Raises
    ValueError for other words, where the device cannot compute in it, and for a model that was prepared otherwise.
    """
    from models.speed.packed import pack, packing_works
    model.for_inference()
    packable = model.device.type == "cpu" and packing_works(model.dtype)
    if packable or eight_bit is not None or model.is_packed:
        pack(model, eight_bit)
    if compiled:
        from models.speed.graphs import compile_model
        compile_model(model)
    return model


@dataclass(frozen=True)
class UncertaintySettings:
    """How a result's errors are estimated. samples: further results whose spread is looked at, 0 for none."""

    samples: int = 0
    calibration: Calibration | None = None  # None: the map is a guess

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise UserError(f"{self.samples} further results: must be 0 or more")


@dataclass(frozen=True)
class LRConsistency:
    """The promise that a result, reduced to its LR picture's size, is within `epsilon` 8-bit levels of it; `noise`: the
    deviation of the LR picture's noise in levels, which is taken off it first (`consistency.target_region`).

    Pixels are projected for it. rechoose: codes are chosen for it too (`rechoose.py`), in twice the time; what that
    brings, and why no flag asks for it, is in docs/consistency.md.
    """

    epsilon: float
    noise: float = 0.0
    rechoose: bool = False

    def __post_init__(self) -> None:
        for flag, value in (("--lr_consistency", self.epsilon), ("--lr_noise", self.noise)):
            if not 0 <= value <= MAX_LEVELS:
                raise UserError(f"{flag} {value:g} is out of range: must be 0 to {MAX_LEVELS} levels")

    @classmethod
    def of_flags(cls, args: argparse.Namespace) -> LRConsistency | None:
        """None without --lr_consistency."""
        return None if args.lr_consistency is None else cls(args.lr_consistency, args.lr_noise or 0.0)


@dataclass(frozen=True)
class RestoreSettings:
    """How pictures are restored, beyond the model's own sampling settings."""

    generation: GenerationConfig
    seed: int = 0
    batch_size: int | None = None  # windows at a time; None: found from the free memory
    color_fix: str = "wavelet"
    overlap: float = MIN_OVERLAP  # of neighbouring windows
    fastvar: FastVARConfig | None = None  # token pruning
    uncertainty: UncertaintySettings | None = None  # estimate errors too
    lr_consistency: LRConsistency | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"a batch_size of {self.batch_size}: must be 1 or more, or None")

    def for_picture(self, windows: int) -> GenerationConfig:
        """The sampling settings for a picture of so many windows: one of several has a guidance of its own where the
        model says so (`tiled_cfg`)."""
        tiled = self.generation.tiled_cfg
        return self.generation if windows == 1 or tiled is None else dataclasses.replace(self.generation, cfg=tiled)


def fast_generation(config: VARSRConfig, options: GenerationConfig | None = None) -> GenerationConfig:
    """The model's own sampling, or another, with late guidance and fewer refiner steps."""
    return dataclasses.replace(options or config.generation, cfg_from_scale=len(config.vqvae.scales) - GUIDED_SCALES,
                               refiner_steps=min(REFINER_STEPS, config.refiner.sampling_steps))


def fast_pruning(config: VARSRConfig, ratios: Sequence[float] = DROP_RATIOS) -> FastVARConfig:
    """Token pruning in proportion to the model's depth and number of tokens."""
    ratios = ratios[-(len(config.vqvae.scales) - 1):]
    return FastVARConfig.for_last(
        config.vqvae.scales, ratios, mode=SHARED, later_layer_start=max(config.transformer.depth // UNPRUNED_SHARE, 1),
        min_keep=max(config.vqvae.side ** 2 // KEPT_CELLS, 1))


def generation_options(args: argparse.Namespace, model: VARSR, own: GenerationConfig | None = None) -> GenerationConfig:
    """The model's own sampling settings, or those in their place, or the fast ones, overridden by the flags that were
    given."""
    own = own or model.config.generation
    options = fast_generation(model.config, own) if getattr(args, "fast", False) else own
    names = [field.name for field in dataclasses.fields(options)]
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    options = dataclasses.replace(options, **given).with_cfg(args.cfg)
    model.config.check_options(options)
    return options


def restore_settings(args: argparse.Namespace, model: VARSR) -> RestoreSettings:
    """Restoration settings from the flags."""
    generation = generation_options(args, model)
    return RestoreSettings(generation, seed=args.seed, color_fix=args.color_fix,
                           batch_size=None if args.batch_size == "auto" else args.batch_size,
                           overlap=args.tile_overlap, fastvar=fast_pruning(model.config) if args.fast else None,
                           lr_consistency=LRConsistency.of_flags(args), uncertainty=_uncertainty(args, model))


def _uncertainty(args: argparse.Namespace, model: VARSR) -> UncertaintySettings | None:
    """How errors are estimated, if that is asked for."""
    if not args.uncertainty:
        return None
    return UncertaintySettings(args.uncertainty_samples or 0, calibration_of(model_source(args), model.config))


def calibration_of(source: str | Path, config: VARSRConfig) -> Calibration | None:
    """The calibration beside a model's weights; without one a line in the log says how to get it. Raises UserError for
    one that does not belong to it."""
    from models.error_model import calibration_file, load_calibration
    from models.weights.load import identity, located

    from .evidence import input_names
    path = calibration_file(located(source))
    if not path.is_file():
        log.warning("%s is not there: maps of expected errors are uncalibrated guesses (python -m calibration makes "
                    "it)", path)
        return None
    return load_calibration(path, identity(source), input_names(config))


def fastvar_config(args: argparse.Namespace, model: VARSR) -> FastVARConfig | None:
    """What the flags prune, None without --fastvar. Raises ValueError for ratios that do not fit the model."""
    if not args.fastvar:
        return None
    two = args.fastvar_second_last_ratio, args.fastvar_last_ratio
    ratios = args.fastvar_ratios or [own if given is None else given for given, own in zip(two, LAST_TWO, strict=True)]
    given = {name: getattr(args, f"fastvar_{name}") for name in ("later_layer_start", "min_keep", "mode")}
    return FastVARConfig.for_last(model.config.vqvae.scales, ratios,
                                  **{name: value for name, value in given.items() if value is not None})


def plan_lines(model: VARSR, config: FastVARConfig | None) -> list[str]:
    """What is pruned, a line a scale."""
    if config is None:
        return ["FastVAR off (--fastvar turns it on)"]
    depth = model.config.transformer.depth
    lines = [_plan_line(row, depth) for row in config.plan(model.config.vqvae.scales, depth)]
    return lines or ["FastVAR drops nothing with these settings"]


def _plan_line(row: PrunedScale, depth: int) -> str:
    return (f"FastVAR side {row.side}: {row.layers} of {depth} layers pruned, "
            f"{row.kept} of {row.total} tokens kept in each")
