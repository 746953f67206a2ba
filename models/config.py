"""Configuration of a VARSR model: plain frozen dataclasses that serialise to JSON, and the presets.

A `VARSRConfig` says everything that is needed to build a model and to use it well (its own sampling defaults
included); `config.json` beside a model's weights is exactly its `to_json()`.
"""
from __future__ import annotations

import dataclasses
import json
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError, first_line

FORMAT_VERSION = 1
HIGH_QUALITY, LOW_QUALITY = 0, 1  # the classes of super-resolution
FULL_PRECISION = "vqvae.quantizer."  # tensors that stay float32: sums over the scales must not be rounded
WIDTH_PER_BLOCK = 64  # of the published family
DETAIL_STRIDE = 4  # pixels per cell of the branches' blocks

# Bounds that no model of the next years meets: a configuration may come from anybody, and what it asks for is built,
# on the meta device, before its weights are looked at. Within them that takes a second and no memory to speak of.
MAX_FILE = 2 ** 22  # bytes of config.json: class names are most of it
MAX_DEPTH = 128  # blocks of the transformer; 24 in the published model
MAX_BLOCKS = 64  # of the refiner and of the detail branch
MAX_LEVEL_BLOCKS = 16  # at each resolution level
MAX_LEVELS = 9  # resolution levels
MAX_WIDTH = 2 ** 14  # channels of anything
MAX_HEAD = 512  # channels of an attention head
MAX_STEM, MAX_MULTIPLIER = 16, 64
MAX_VOCAB = 2 ** 18
MAX_CLASSES = 2 ** 17
MAX_NAME = 255  # characters of a name
MAX_SCALES, MAX_SIDE = 64, 256
MAX_TOKENS = 2 ** 14  # of all scales; 2,240 in the published model
MAX_IMAGE = 4096  # pixels along a side of the window, which no weight's shape tells
MAX_STEPS = 10_000  # of the diffusion
MAX_REPEATS = 64
MAX_GUIDANCE, MAX_UPSCALING = 1000.0, 64.0
TINY = 1e-6  # of what is divided by
VARIED_TOP_K = 500  # of the likeliest codes, which a model that takes the likeliest draws from where seeds shall differ


class ConfigError(UserError):
    """A configuration that no model can be built from; the message names the field and the remedy."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check(config: Any, **ranges: tuple[float, float]) -> None:
    """Raise ConfigError for a field that is not what its annotation says. ranges: the smallest and largest number of
    each field of numbers, also where it is a tuple of them."""
    for entry in dataclasses.fields(config):
        value, kind = getattr(config, entry.name), entry.type
        optional, several = kind.endswith(" | None"), kind.startswith("tuple[")
        if optional and value is None:
            continue
        kind = kind.removesuffix(" | None").removeprefix("tuple[").removesuffix(", ...]")
        if several and not isinstance(value, tuple):
            raise ConfigError(f"{entry.name} must be a list, got {reprlib.repr(value)}")
        for each in value if several else (value,):
            _check_value(entry.name, each, kind, *ranges.get(entry.name, ()))


def _check_value(name: str, value: Any, kind: str, low: float = 0, high: float = 0) -> None:
    if kind == "int":
        fits, wanted = type(value) is int and low <= value <= high, f"a whole number from {low} to {high}"
    elif kind == "float":
        fits, wanted = type(value) in (int, float) and low <= value <= high, f"in [{low}, {high}]"
    elif kind == "str":
        fits, wanted = isinstance(value, str) and len(value) <= MAX_NAME, f"text of at most {MAX_NAME} characters"
    else:
        fits, wanted = type(value).__name__ == kind, f"a {kind}"
    if not fits:
        raise ConfigError(f"{name} must be {wanted}, got {reprlib.repr(value)}")


@dataclass(frozen=True)
class VQVAEConfig:
    """Multi-scale tokenizer (VAR, section 3.2): convolutional autoencoder with a residual quantiser over scales."""

    scales: tuple[int, ...] = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)  # sides n_1 .. n_K of the token maps
    vocab_size: int = 4096
    latent_channels: int = 32
    base_width: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each resolution level, finest first
    res_blocks: int = 2  # per encoder level; the decoder has one more
    norm_groups: int = 32
    stem: int = 1  # pixel-unshuffle factor before the first convolution
    phi_count: int = 4  # shared refinement convolutions of the quantiser
    linear_path: bool = False  # blocks of pixels also take a linear way to the latent and back (vqvae.py)
    fidelity_width: int = 0  # width of the decoder's LR features (branches.py); 0: the decoder sees the latent alone
    fidelity_blocks: int = 3  # residual blocks of these features per resolution level
    fidelity_pixels: int = 0  # width of the correction of the decoded pixels beside the LR ones; 0: none
    faithful_width: int = 0  # width of the branch that restores LR pictures (branches.py); 0: the decoder does
    faithful_blocks: int = 14  # its residual blocks
    detail_width: int = 0  # width of the detail branch on top of either (branches.py); 0: none
    detail_blocks: int = 10  # its residual blocks
    detail_lr: bool = True  # whether it sees the LR picture; without, of class-to-image, the decoded one alone

    def __post_init__(self) -> None:
        width = (0, MAX_WIDTH)
        _check(self, scales=(1, MAX_SIDE), vocab_size=(1, MAX_VOCAB), latent_channels=(1, MAX_WIDTH),
               base_width=(1, MAX_WIDTH), multipliers=(1, MAX_MULTIPLIER), res_blocks=(1, MAX_LEVEL_BLOCKS),
               norm_groups=(1, MAX_WIDTH), stem=(1, MAX_STEM), phi_count=(1, MAX_SCALES), fidelity_width=width,
               fidelity_blocks=(0, MAX_LEVEL_BLOCKS), fidelity_pixels=width, faithful_width=width,
               faithful_blocks=(0, MAX_BLOCKS), detail_width=width, detail_blocks=(0, MAX_BLOCKS))
        _require(1 < len(self.scales) <= MAX_SCALES,
                 f"scales needs at least two sides and at most {MAX_SCALES}, got {len(self.scales)}")
        _require(all(a < b for a, b in zip(self.scales, self.scales[1:])),
                 f"scales must be increasing, got {self.scales}")
        tokens = sum(side * side for side in self.scales)
        _require(tokens <= MAX_TOKENS, f"scales of {tokens} tokens are more than {MAX_TOKENS}")
        _require(0 < len(self.multipliers) <= MAX_LEVELS,
                 f"multipliers needs a number for each of 1 to {MAX_LEVELS} levels, got {len(self.multipliers)}")
        _require(max(self.widths) <= MAX_WIDTH,
                 f"base_width and multipliers give {max(self.widths)} channels, more than {MAX_WIDTH}")
        _require(self.image_size <= MAX_IMAGE,
                 f"scales, multipliers and stem give a window of {self.image_size} pixels, more than {MAX_IMAGE}")
        _require(self.fidelity_width > 0 or not self.fidelity_pixels, "fidelity_pixels needs fidelity_width above 0")
        for branch, branch_width in (("detail", self.detail_width), ("faithful", self.faithful_width)):
            _require(not branch_width or self.downsampling % DETAIL_STRIDE == 0,
                     f"the {branch} branch needs a down-sampling that is a multiple of {DETAIL_STRIDE}, got "
                     f"{self.downsampling}")
            _require(branch_width % DETAIL_STRIDE == 0,
                     f"{branch}_width must be a multiple of {DETAIL_STRIDE}, got {branch_width}")
        _require(not self.faithful_width or not self.fidelity_width,
                 "a faithful branch stands in place of the decoder's LR features: set fidelity_width to 0")
        _require(not self.linear_path or self.latent_channels <= 3 * self.downsampling ** 2,
                 f"linear_path: {self.latent_channels} latent_channels are more than a block of "
                 f"{self.downsampling}x{self.downsampling} pixels has components")
        for width in self.widths:
            _require(width % self.norm_groups == 0,
                     f"VQVAE width {width} is not a multiple of norm_groups {self.norm_groups}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution level, finest first."""
        return tuple(self.base_width * m for m in self.multipliers)

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell along a side (f)."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    @property
    def side(self) -> int:
        """N, the side of the last token map and of the latent."""
        return self.scales[-1]

    @property
    def image_size(self) -> int:
        """Side in pixels of the square picture that one window covers."""
        return self.side * self.downsampling


@dataclass(frozen=True)
class PrefixConfig:
    """LR prefix encoder (VARSR, section 3.2): strided convolutions from the LR picture to N x N tokens."""

    widths: tuple[int, ...] = (32, 128, 256, 512, 1536)  # one stride-2 step between neighbours
    stem: int = 1

    def __post_init__(self) -> None:
        _check(self, widths=(1, MAX_WIDTH), stem=(1, MAX_STEM))
        _require(0 < len(self.widths) <= MAX_LEVELS,
                 f"widths of the prefix encoder must be 1 to {MAX_LEVELS}, got {len(self.widths)}")

    @property
    def downsampling(self) -> int:
        """Pixels per prefix token along a side."""
        return self.stem * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class TransformerConfig:
    """Next-scale transformer. `prefix=None` is class-to-image: its last class row is the unconditional one."""

    depth: int = 24
    width: int = 1536
    num_heads: int = 24
    class_rows: int = 2  # rows of the class embedding (SR: 0 high quality, 1 low quality)
    ffn_ratio: int = 4
    drop_path: float = 0.1  # stochastic depth of the last block, linear from 0 in the first
    shared_modulation: bool = False  # one AdaLN projection for all blocks, each adding a learned offset
    rope_base: float = 10000.0
    rope_extent: float = 32.0  # every scale's grid spans [0, rope_extent) (VARSR, scale-aligned RoPE)
    prefix: PrefixConfig | None = field(default_factory=PrefixConfig)
    prefix_injection: bool = False  # also add the prefix, area-resized to each scale, to that scale's tokens

    def __post_init__(self) -> None:
        _check(self, depth=(1, MAX_DEPTH), width=(1, MAX_WIDTH), num_heads=(1, MAX_WIDTH), class_rows=(1, MAX_CLASSES),
               ffn_ratio=(1, 16), drop_path=(0, 1), rope_base=(1, 1e9), rope_extent=(TINY, 1e6))
        _require(self.width % self.num_heads == 0,
                 f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        _require(self.head_dim % 4 == 0 and self.head_dim <= MAX_HEAD,
                 f"head dimension {self.head_dim} (width / num_heads) must be a multiple of 4 for 2-D RoPE, and at "
                 f"most {MAX_HEAD}")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True)
class RefinerConfig:
    """Diffusion refiner of the quantisation residual (VARSR, section 3.4)."""

    width: int = 1024
    depth: int = 6
    train_steps: int = 1000
    sampling_steps: int = 10
    residual_scale: float = 0.6  # the network's data are residual / residual_scale
    repeats: int = 4  # how often each token is used per training step

    def __post_init__(self) -> None:
        _check(self, width=(1, MAX_WIDTH), depth=(0, MAX_BLOCKS), train_steps=(2, MAX_STEPS),
               sampling_steps=(2, MAX_STEPS), residual_scale=(TINY, 1 / TINY), repeats=(1, MAX_REPEATS))
        _require(self.sampling_steps <= self.train_steps,
                 f"sampling_steps must be in 2..{self.train_steps}, got {self.sampling_steps}")


@dataclass(frozen=True)
class LossConfig:
    """How the transformer's training losses are taken.

    error_rate: see `MultiScaleQuantizer.encode`. scale_balance: share of the cross-entropy that weighs every scale
    alike, whatever its number of tokens (0 in the paper: all tokens alike). label_smoothing: of the cross-entropy.
    """

    error_rate: float = 0.0
    scale_balance: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check(self, error_rate=(0, 1), scale_balance=(0, 1), label_smoothing=(0, 1))


@dataclass(frozen=True)
class GenerationConfig:
    """How a model samples; each model carries its own defaults."""

    cfg: float = 6.0  # guidance strength t grows linearly over the scales up to this
    cfg_from_scale: int = 0  # scales (0-based) before this one are generated without guidance
    top_k: int = 1  # 0: all codes
    top_p: float = 0.75  # 1: no nucleus
    tiled_cfg: float | None = None  # cfg of pictures made of several windows; None: the same
    scale: float = 4.0  # up-scaling factor that the model was trained for
    fidelity: float = 0.0  # of models with a detail branch: 0 adds all of the detail, 1 none
    more_smooth: bool = False  # Gumbel-softmax mixture of codes instead of one code per token
    refiner_steps: int | None = None  # sampling steps of the refiner; None: `RefinerConfig.sampling_steps`

    def __post_init__(self) -> None:
        _check(self, cfg=(0, MAX_GUIDANCE), cfg_from_scale=(0, MAX_SCALES), top_k=(0, MAX_VOCAB), top_p=(TINY, 1),
               tiled_cfg=(0, MAX_GUIDANCE), scale=(1, MAX_UPSCALING), fidelity=(0, 1), refiner_steps=(2, MAX_STEPS))

    def with_cfg(self, cfg: float | None) -> GenerationConfig:
        """The same with one guidance strength for all pictures; None leaves it as it is."""
        return self if cfg is None else dataclasses.replace(self, cfg=cfg, tiled_cfg=None)

    def varied(self) -> GenerationConfig:
        """The same where seeds differ; a model that takes the likeliest code always draws from many of them instead
        (docs/redo.md has the numbers that were tried)."""
        return self if self.top_k != 1 else dataclasses.replace(self, top_k=VARIED_TOP_K, top_p=1.0)


@dataclass(frozen=True)
class VARSRConfig:
    """A whole model."""

    name: str = "varsr"
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    class_names: tuple[str, ...] = ()  # of a class-to-image model, where they are known
    inference: bool = False  # without what only training needs (`VARSR.for_inference`)

    def __post_init__(self) -> None:
        _check(self)
        prefix = self.transformer.prefix
        _require(prefix is None or prefix.downsampling == self.vqvae.downsampling,
                 f"the prefix encoder down-samples by {prefix and prefix.downsampling}, "
                 f"the VQVAE by {self.vqvae.downsampling}: they must agree")
        _require(self.is_super_resolution or not self.vqvae.detail_width or not self.vqvae.detail_lr,
                 "class-to-image has no LR picture that its detail branch could see: set detail_lr to false")
        _require(self.is_super_resolution or not self.vqvae.faithful_width,
                 "class-to-image has no LR picture that a faithful branch could restore: set faithful_width to 0")
        _require(self.vqvae.detail_lr or not self.vqvae.faithful_width,
                 "the detail branch sees the LR picture's features where a faithful branch makes some: set detail_lr "
                 "to true")
        _require(not self.class_names or len(self.class_names) == self.num_classes,
                 f"{len(self.class_names)} class names for {self.num_classes} classes")

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for: all rows but the unconditional one."""
        return self.transformer.class_rows - 1

    @property
    def image_size(self) -> int:
        """Side in pixels of the model's square window."""
        return self.vqvae.image_size

    @property
    def is_super_resolution(self) -> bool:
        """True with an LR prefix, False for class-to-image."""
        return self.transformer.prefix is not None

    @property
    def prefix_tokens(self) -> int:
        """Prefix tokens of level 0, without the class token."""
        return self.vqvae.side ** 2 if self.is_super_resolution else 0

    @property
    def num_tokens(self) -> int:
        """Length of the whole sequence: prefix, then every scale (the class token stands for the first)."""
        return self.prefix_tokens + sum(side * side for side in self.vqvae.scales)

    def refiner_steps(self, options: GenerationConfig) -> int:
        """Refiner steps of a generation."""
        return options.refiner_steps or self.refiner.sampling_steps

    def check_options(self, options: GenerationConfig) -> None:
        """Raise ConfigError for sampling settings that this model cannot follow."""
        scales, steps = self.vqvae.scales, self.refiner_steps(options)
        _require(options.cfg_from_scale < len(scales),
                 f"cfg_from_scale {options.cfg_from_scale} is out of range: this model has the scales "
                 f"0..{len(scales) - 1}")
        _require(steps <= self.refiner.train_steps,
                 f"refiner_steps {steps} is out of range: at most {self.refiner.train_steps}")

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps({"format": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> VARSRConfig:
        """Build from JSON text. Raises ConfigError for anything but a configuration of this format version: what is no
        JSON object, unknown fields, values of another type or out of range."""
        values = parsed(text)
        version = values.pop("format", None)
        _require(version == FORMAT_VERSION, f"config format {reprlib.repr(version)} is not {FORMAT_VERSION}: the model "
                                            "was written by another version")
        return build(cls, values)

    @classmethod
    def load(cls, path: str | Path) -> VARSRConfig:
        """Read `config.json`. Raises OSError, and ConfigError as `from_json`."""
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
        _require(len(content) <= MAX_FILE, f"a configuration has at most {MAX_FILE} bytes")
        try:
            return cls.from_json(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"no UTF-8 text ({error})") from error


_NESTED: dict[str, type] = {
    "vqvae": VQVAEConfig, "transformer": TransformerConfig, "refiner": RefinerConfig,
    "generation": GenerationConfig, "prefix": PrefixConfig,
}


def parsed(text: str) -> dict[str, Any]:
    """A JSON object. Raises ConfigError for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"no JSON ({first_line(error)})") from error
    _require(isinstance(values, dict), f"no JSON object, but {reprlib.repr(values)}")
    return values


def build(cls: type, values: dict[str, Any]) -> Any:
    """A config dataclass from plain JSON values; lists become tuples, nested objects their dataclasses. Raises
    ConfigError."""
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    _require(not unknown, f"unknown field(s) {reprlib.repr(unknown)[1:-1]} in {cls.__name__}")
    built = {}
    for name, value in values.items():
        if name in _NESTED and isinstance(value, dict):
            try:
                value = build(_NESTED[name], value)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return cls(**built)


_C2I_SCALES = (1, 2, 3, 4, 6, 9, 12, 16, 20, 24, 28, 32)
_TINY_VQVAE = VQVAEConfig(scales=(1, 2, 3, 5, 8, 12, 16), latent_channels=16, base_width=64, multipliers=(1, 2),
                          res_blocks=1, stem=4, linear_path=True)

PRESETS: dict[str, VARSRConfig] = {
    # The published super-resolution model: 1,101.9 M parameters and a tokenizer of 108.9 M.
    "varsr-d24": VARSRConfig(name="varsr-d24", generation=GenerationConfig(tiled_cfg=7.0)),
    # The published class-to-image model: 3830 classes and the unconditional row.
    "varsr-d24-c2i": VARSRConfig(
        name="varsr-d24-c2i",
        vqvae=VQVAEConfig(scales=_C2I_SCALES),
        transformer=TransformerConfig(class_rows=3831, prefix=None),
        generation=GenerationConfig(cfg=4.0, top_k=20, top_p=0.75, scale=1.0)),
    # The embedded model: a 128-pixel window, small enough for two CPU cores (docs/embedded_model.md).
    "varsr-tiny": VARSRConfig(
        name="varsr-tiny",
        vqvae=_TINY_VQVAE,
        transformer=TransformerConfig(depth=4, width=256, num_heads=4, drop_path=0.0, shared_modulation=True,
                                      prefix=PrefixConfig(widths=(96, 256), stem=4), prefix_injection=True),
        refiner=RefinerConfig(width=256, depth=2),
        generation=GenerationConfig(cfg=0.0, top_k=1, top_p=1.0)),
    # The embedded class-to-image model (docs/embedded_model.md); class_rows follows the training data.
    "varsr-tiny-c2i": VARSRConfig(
        name="varsr-tiny-c2i",
        vqvae=_TINY_VQVAE,
        transformer=TransformerConfig(depth=4, width=192, num_heads=3, ffn_ratio=3, drop_path=0.0,
                                      shared_modulation=True, prefix=None),
        refiner=RefinerConfig(width=128, depth=2),
        generation=GenerationConfig(cfg=2.0, top_k=4096, top_p=0.92, scale=1.0)),
    # For tests and dry runs: seconds on one core.
    "varsr-debug": VARSRConfig(
        name="varsr-debug",
        vqvae=VQVAEConfig(scales=(1, 2, 4), vocab_size=32, latent_channels=8, base_width=16, multipliers=(1, 2),
                          res_blocks=1, norm_groups=8, stem=4),
        transformer=TransformerConfig(depth=2, width=32, num_heads=2, drop_path=0.0,
                                      prefix=PrefixConfig(widths=(16, 32), stem=4)),
        refiner=RefinerConfig(width=32, depth=1),
        generation=GenerationConfig(cfg=1.0)),
}


def published_size(depth: int, super_resolution: bool = True) -> VARSRConfig:
    """A model of the published family (VAR, section 3.3): width 64 · depth, a head a block, drop path 0.1 · depth / 24.

    Depth 24 is `varsr-d24`. Raises ConfigError for a depth below 1 or above 128.
    """
    _check_value("depth", depth, "int", 1, MAX_DEPTH)
    base = PRESETS["varsr-d24" if super_resolution else "varsr-d24-c2i"]
    width = WIDTH_PER_BLOCK * depth
    prefix = base.transformer.prefix
    if prefix is not None:
        prefix = dataclasses.replace(prefix, widths=(*prefix.widths[:-1], width))
    transformer = dataclasses.replace(
        base.transformer, depth=depth, width=width, num_heads=depth, prefix=prefix,
        drop_path=base.transformer.drop_path * (depth / base.transformer.depth))
    return dataclasses.replace(base, name=base.name.replace("d24", f"d{depth}"), transformer=transformer)
