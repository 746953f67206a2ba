"""Configuration of a VARSR model: plain frozen dataclasses that serialise to JSON, and the presets.

A `VARSRConfig` says everything that is needed to build a model and to use it well (its own sampling defaults
included); `config.json` beside a model's weights is exactly its `to_json()`.
"""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError

FORMAT_VERSION = 1
HIGH_QUALITY, LOW_QUALITY = 0, 1  # the classes of super-resolution
FULL_PRECISION = "vqvae.quantizer."  # tensors that stay float32: sums over the scales must not be rounded
WIDTH_PER_BLOCK = 64  # of the published family
DETAIL_STRIDE = 4  # pixels per cell of the detail branch's blocks


class ConfigError(UserError):
    """A configuration that no model can be built from; the message names the field and the remedy."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


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
    fidelity_width: int = 0  # width of the decoder's LR features (lr_features.py); 0: the decoder sees the latent alone
    fidelity_blocks: int = 3  # residual blocks of these features per resolution level
    fidelity_pixels: int = 0  # width of the correction of the decoded pixels beside the LR ones; 0: none
    detail_width: int = 0  # width of the detail branch on top of the decoder (lr_features.py); 0: none
    detail_blocks: int = 10  # its residual blocks

    def __post_init__(self) -> None:
        _require(len(self.scales) > 1, f"scales needs at least two sides, got {self.scales}")
        _require(all(a < b for a, b in zip(self.scales, self.scales[1:])) and self.scales[0] > 0,
                 f"scales must be positive and increasing, got {self.scales}")
        _require(self.fidelity_width > 0 or not self.fidelity_pixels, "fidelity_pixels needs fidelity_width above 0")
        _require(not self.detail_width or self.downsampling % DETAIL_STRIDE == 0,
                 f"the detail branch needs a down-sampling that is a multiple of {DETAIL_STRIDE}, got "
                 f"{self.downsampling}")
        _require(self.detail_width % DETAIL_STRIDE == 0,
                 f"detail_width must be a multiple of {DETAIL_STRIDE}, got {self.detail_width}")
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
        _require(self.width % self.num_heads == 0,
                 f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        _require(self.head_dim % 4 == 0,
                 f"head dimension {self.head_dim} (width / num_heads) must be a multiple of 4 for 2-D RoPE")

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
        _require(1 < self.sampling_steps <= self.train_steps,
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
        _require(self.cfg >= 0, f"cfg must be at least 0, got {self.cfg}")
        _require(self.cfg_from_scale >= 0, f"cfg_from_scale must be at least 0, got {self.cfg_from_scale}")
        _require(self.refiner_steps is None or self.refiner_steps > 1,
                 f"refiner_steps must be at least 2, got {self.refiner_steps}")
        _require(self.top_k >= 0, f"top_k must be 0 (all codes) or more, got {self.top_k}")
        _require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        _require(0 <= self.fidelity <= 1, f"fidelity must be in [0, 1], got {self.fidelity}")
        _require(self.scale >= 1, f"scale must be at least 1, got {self.scale}")

    def with_cfg(self, cfg: float | None) -> GenerationConfig:
        """The same with one guidance strength for all pictures; None leaves it as it is."""
        return self if cfg is None else dataclasses.replace(self, cfg=cfg, tiled_cfg=None)


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
        prefix = self.transformer.prefix
        _require(prefix is None or prefix.downsampling == self.vqvae.downsampling,
                 f"the prefix encoder down-samples by {prefix and prefix.downsampling}, "
                 f"the VQVAE by {self.vqvae.downsampling}: they must agree")
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
        """Build from JSON text. Raises ConfigError for unknown fields or another format version."""
        values = json.loads(text)
        version = values.pop("format", None)
        _require(version == FORMAT_VERSION,
                 f"config format {version} is not {FORMAT_VERSION}: the model was written by another version")
        return _build(cls, values)

    @classmethod
    def load(cls, path: str | Path) -> VARSRConfig:
        """Read `config.json`."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


_NESTED: dict[str, type] = {
    "vqvae": VQVAEConfig, "transformer": TransformerConfig, "refiner": RefinerConfig,
    "generation": GenerationConfig, "prefix": PrefixConfig,
}


def _build(cls: type, values: dict[str, Any]) -> Any:
    """A config dataclass from plain JSON values; lists become tuples, nested dicts their dataclasses."""
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    _require(not unknown, f"unknown field(s) {', '.join(unknown)} in {cls.__name__}")
    built = {}
    for name, value in values.items():
        if name in _NESTED and isinstance(value, dict):
            value = _build(_NESTED[name], value)
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
        vqvae=dataclasses.replace(_TINY_VQVAE, fidelity_width=96, fidelity_pixels=24),
        transformer=TransformerConfig(depth=4, width=256, num_heads=4, drop_path=0.0, shared_modulation=True,
                                      prefix=PrefixConfig(widths=(96, 256), stem=4), prefix_injection=True),
        refiner=RefinerConfig(width=256, depth=2),
        generation=GenerationConfig(cfg=0.0, top_k=1, top_p=1.0)),
    # The embedded class-to-image model (docs/embedded_model.md); class_rows follows the training data.
    "varsr-tiny-c2i": VARSRConfig(
        name="varsr-tiny-c2i",
        vqvae=_TINY_VQVAE,
        transformer=TransformerConfig(depth=4, width=192, num_heads=3, drop_path=0.0, shared_modulation=True,
                                      prefix=None),
        refiner=RefinerConfig(width=192, depth=2),
        generation=GenerationConfig(cfg=1.5, top_k=100, top_p=0.95, scale=1.0)),
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

    Depth 24 is `varsr-d24`. Raises ConfigError for a depth below 1.
    """
    _require(depth > 0, f"depth must be positive, got {depth}")
    base = PRESETS["varsr-d24" if super_resolution else "varsr-d24-c2i"]
    width = WIDTH_PER_BLOCK * depth
    prefix = base.transformer.prefix
    if prefix is not None:
        prefix = dataclasses.replace(prefix, widths=(*prefix.widths[:-1], width))
    transformer = dataclasses.replace(
        base.transformer, depth=depth, width=width, num_heads=depth, prefix=prefix,
        drop_path=base.transformer.drop_path * (depth / base.transformer.depth))
    return dataclasses.replace(base, name=base.name.replace("d24", f"d{depth}"), transformer=transformer)
