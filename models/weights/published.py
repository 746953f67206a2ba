"""The published checkpoints' tensor names and ours: one table, both ways; and the configuration read off the tensors.

Nothing here touches a file, and everything but reading scales off `lvl_1L` works on the meta device.
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import (
    MAX_TOKENS,
    PRESETS,
    ConfigError,
    PrefixConfig,
    RefinerConfig,
    TransformerConfig,
    VARSRConfig,
    VQVAEConfig,
)
from .unpickle import CheckpointError

LEVELS = "lvl_1L"  # (1, L): the level of each token
ATTENTION_BIAS = "attn_bias_for_masking"  # (1, 1, L, L): 0 where a token may look, -inf elsewhere
KEY_BIAS = "attn.zero_k_bias"  # a buffer of zeros in every block
CODE_USAGE = "quantize.ema_vocab_hit_SV"  # statistics only; its rows may be those of another scale list
REBUILT = re.compile(rf"{LEVELS}|{ATTENTION_BIAS}|.*{re.escape(KEY_BIAS)}")  # no tensors of ours

# Settings that published files never carry and need not: names, how pictures are sampled, what training alone asks for,
# and those of branches, whose tensors have no place there.
NEVER_PUBLISHED = re.compile(r"name|class_names|inference|generation|transformer\.drop_path|refiner\.repeats"
                             r"|refiner\.sampling_steps|vqvae\.(fidelity|faithful|detail)_\w+")

LISTED_NAMES = 3  # in an error message
MAX_TENSORS = 2 ** 14  # of a file; 703 in the published model
MAX_NAME = 256  # characters of a tensor's name
MAX_DIMENSIONS = 16
DROP_PATH_PER_BLOCK = 0.1 / 24
VAR_256_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
KNOWN_SCALES = (*dict.fromkeys(preset.vqvae.scales for preset in PRESETS.values()), VAR_256_SCALES)

# (published, ours): '#' stands for an index, '*' for the rest of the name. The first row that fits decides.
_RESIDUAL_BLOCK_ROWS = [
    ("{coder}.{down}.#.block.#.nin_shortcut.*", "vqvae.{coder}.levels.#.blocks.#.shortcut.*"),
    ("{coder}.{down}.#.block.#.*", "vqvae.{coder}.levels.#.blocks.#.*"),
    ("{coder}.{down}.#.attn.#.proj_out.*", "vqvae.{coder}.levels.#.attentions.#.out.*"),
    ("{coder}.{down}.#.attn.#.*", "vqvae.{coder}.levels.#.attentions.#.*"),
    ("{coder}.{down}.#.{down}sample.conv.*", "vqvae.{coder}.levels.#.resize.conv.*"),
    ("{coder}.mid.block_1.*", "vqvae.{coder}.middle.0.*"),
    ("{coder}.mid.attn_1.proj_out.*", "vqvae.{coder}.middle.1.out.*"),
    ("{coder}.mid.attn_1.*", "vqvae.{coder}.middle.1.*"),
    ("{coder}.mid.block_2.*", "vqvae.{coder}.middle.2.*"),
    ("{coder}.conv_in.*", "vqvae.{coder}.conv_in.*"),
    ("{coder}.norm_out.*", "vqvae.{coder}.norm_out.*"),
    ("{coder}.conv_out.*", "vqvae.{coder}.conv_out.*"),
]
VQVAE_NAMES = [
    *[tuple(name.format(coder=coder, down=down) for name in row)
      for coder, down in (("encoder", "down"), ("decoder", "up")) for row in _RESIDUAL_BLOCK_ROWS],
    ("quantize.embedding.*", "vqvae.quantizer.codebook.*"),
    ("quantize.quant_resi.qresi_ls.#.*", "vqvae.quantizer.phi.#.*"),
    (CODE_USAGE, "vqvae.quantizer.code_usage"),
    ("quant_conv.*", "vqvae.pre_quant.*"),
    ("post_quant_conv.*", "vqvae.post_quant.*"),
]
TRANSFORMER_NAMES = [
    ("con_embedding.*", "transformer.prefix_encoder.*"),
    ("pos_start", "transformer.start_position"),
    ("word_embed.*", "transformer.token_embedding.*"),
    ("class_emb.*", "transformer.class_embedding.*"),
    ("lvl_embed.*", "transformer.level_embedding.*"),
    ("blocks.#.attn.mat_qkv.*", "transformer.blocks.#.attention.qkv.*"),
    ("blocks.#.attn.proj.*", "transformer.blocks.#.attention.out.*"),
    ("blocks.#.attn.scale_mul_1H11", "transformer.blocks.#.attention.log_scale"),
    ("blocks.#.attn.q_bias", "transformer.blocks.#.attention.q_bias"),
    ("blocks.#.attn.v_bias", "transformer.blocks.#.attention.v_bias"),
    ("blocks.#.ffn.fc1.*", "transformer.blocks.#.feed_forward.expand.*"),
    ("blocks.#.ffn.fc2.*", "transformer.blocks.#.feed_forward.project.*"),
    ("blocks.#.ada_lin.1.*", "transformer.blocks.#.modulation.*"),
    ("head_nm.ada_lin.1.*", "transformer.head_modulation.*"),
    ("head.*", "transformer.head.*"),
    ("decoder_norm.*", "refiner.condition_norm.*"),
    ("diffloss.net.time_embed.mlp.#.*", "refiner.time_embedding.#.*"),
    ("diffloss.net.cond_embed.*", "refiner.condition_embedding.*"),
    ("diffloss.net.input_proj.*", "refiner.input.*"),
    ("diffloss.net.res_blocks.#.in_ln.*", "refiner.blocks.#.norm.*"),
    ("diffloss.net.res_blocks.#.mlp.#.*", "refiner.blocks.#.mlp.#.*"),
    ("diffloss.net.res_blocks.#.adaLN_modulation.1.*", "refiner.blocks.#.modulation.*"),
    ("diffloss.net.final_layer.adaLN_modulation.1.*", "refiner.output_modulation.*"),
    ("diffloss.net.final_layer.linear.*", "refiner.output.*"),
]


def _rules(rows: list[tuple[str, str]]) -> list[tuple[re.Pattern, str]]:
    """Compile (pattern, replacement) rows; both sides hold the same placeholders in the same order."""
    compiled = []
    for pattern, replacement in rows:
        expression = re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
        compiled.append((re.compile(expression), re.sub(r"[#*]", "{}", replacement)))
    return compiled


_ALL_NAMES = VQVAE_NAMES + TRANSFORMER_NAMES
_IMPORT = _rules(_ALL_NAMES)
_EXPORT = _rules([(ours, published) for published, ours in _ALL_NAMES])


def _rename(name: str, rules: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, replacement in rules:
        match = pattern.fullmatch(name)
        if match:
            return replacement.format(*match.groups())
    return None


def our_name(published: str) -> str | None:
    """Our name of a published tensor; None for one that we have no place for."""
    return _rename(published, _IMPORT)


def published_name(ours: str) -> str | None:
    """Published name of one of our tensors; None for one that the published format has no place for."""
    return _rename(ours, _EXPORT)


@dataclass
class Published:
    """Tensors of published files in published names. Either part may be absent."""

    transformer: dict[str, Tensor] | None = None
    vqvae: dict[str, Tensor] | None = None


def split_published(content: object, source: str) -> Published:
    """Find the state dicts in an unpickled file: a training checkpoint (`trainer`) or one bare state dict.

    Raises CheckpointError, naming `source`, for anything else.
    """
    if isinstance(content, Mapping) and isinstance(content.get("trainer"), Mapping):
        content = content["trainer"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds no published VARSR, VAR or VQVAE weights, but a "
                              f"{type(content).__name__}")
    if "var_wo_ddp" in content or "vae_local" in content:
        parts = Published(content.get("var_wo_ddp"), content.get("vae_local"))
        for part in (parts.transformer, parts.vqvae):
            if part is not None:
                require_tensors(part, source)
        return parts
    if content and all(isinstance(value, Tensor) for value in content.values()):
        require_tensors(content, source)
        if any(name.startswith(("encoder.", "decoder.", "quantize.")) for name in content):
            return Published(vqvae=dict(content))
        if any(name.startswith(("blocks.", "word_embed.")) for name in content):
            return Published(transformer=dict(content))
    found = ", ".join(ascii(name) for name in list(content)[:LISTED_NAMES]) or "nothing"
    raise CheckpointError(f"{source} holds no published VARSR, VAR or VQVAE weights (found: {found[:MAX_NAME]})")


def require_tensors(part: object, source: str) -> None:
    """Raise CheckpointError for what is no mapping of tensors, of a number, names and shapes that a model can have and
    an error message can show."""
    if not isinstance(part, Mapping):
        raise CheckpointError(f"{source}: its state dict is a {type(part).__name__}, not a mapping of tensors")
    if len(part) > MAX_TENSORS:
        raise CheckpointError(f"{source}: {len(part)} tensors are more than any model has")
    for name, value in part.items():
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise CheckpointError(f"{source}: {ascii(name)[:MAX_NAME]} is no name of a tensor")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{source}: '{name}' is a {type(value).__name__}, not a tensor")
        if value.ndim > MAX_DIMENSIONS:
            raise CheckpointError(f"{source}: '{name}' has {value.ndim} dimensions, more than {MAX_DIMENSIONS}")


class _Facts:
    """Shapes of a state dict, with errors that name the tensor and the file."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self.tensors, self.source = tensors, source

    def size(self, name: str, dim: int) -> int:
        """Size of a tensor along a dimension."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.source}: tensor '{name}' is missing, so this is no complete file of its kind "
                                  "(truncated, edited, or another model)")
        shape = tuple(self.tensors[name].shape)
        if dim >= len(shape):
            raise CheckpointError(f"{self.source}: tensor '{name}' has shape {shape}, too few dimensions")
        return shape[dim]

    def count(self, pattern: str) -> int:
        """1 + the highest index at '#' in names that start with `pattern`; 0 where there is none."""
        expression = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)"))
        count = max((int(match.group(1)) + 1 for match in map(expression.match, self.tensors) if match), default=0)
        if count > len(self.tensors):
            raise CheckpointError(f"{self.source}: {count} x '{pattern}' in {len(self.tensors)} tensors cannot be")
        return count

    def has(self, prefix: str) -> bool:
        """Whether any name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.tensors)

    def stem(self, convolution: str) -> int:
        """Pixel-unshuffle factor in front of a convolution that reads pictures."""
        return max(1, math.isqrt(self.size(convolution, 1) // 3))


def infer_config(transformer: Mapping[str, Tensor], vqvae: Mapping[str, Tensor], source: str = "the checkpoint",
                 ) -> VARSRConfig:
    """Configuration of a published transformer and its tokenizer, from shapes and `lvl_1L`.

    Where `lvl_1L` is absent or on the meta device, the scales are the known list of that length and number of
    tokens. What tensors cannot tell (guidance, refiner steps) is as published. Raises CheckpointError.
    """
    facts = _Facts(transformer, source)
    super_resolution = facts.has("con_embedding.") or facts.size("pos_start", 1) > 1
    try:
        refiner = _infer_refiner(facts)
        vqvae_config = infer_vqvae_config(vqvae, infer_scales(transformer, source), source)
        depth, width = facts.count("blocks.#."), facts.size("word_embed.weight", 0)
        config = VARSRConfig(
            name=f"varsr-d{depth}" + ("" if super_resolution else "-c2i"),
            vqvae=vqvae_config,
            transformer=TransformerConfig(
                depth=depth, width=width,
                num_heads=facts.size("blocks.0.attn.scale_mul_1H11", 1),
                class_rows=facts.size("class_emb.weight", 0),
                ffn_ratio=max(1, facts.size("blocks.0.ffn.fc1.weight", 0) // max(width, 1)),
                drop_path=DROP_PATH_PER_BLOCK * depth,
                prefix=_infer_prefix(facts) if super_resolution else None),
            refiner=refiner,
            generation=PRESETS["varsr-d24" if super_resolution else "varsr-d24-c2i"].generation)
    except ConfigError as error:
        raise CheckpointError(f"{source}: its tensors make no model: {error}") from error
    return config


def _infer_prefix(facts: _Facts) -> PrefixConfig:
    convolutions = facts.count("con_embedding.blocks.#.")
    widths = [facts.size("con_embedding.conv_in.weight", 0)]
    widths += [facts.size(f"con_embedding.blocks.{i}.weight", 0) for i in range(1, convolutions, 2)]
    return PrefixConfig(widths=tuple(widths), stem=facts.stem("con_embedding.conv_in.weight"))


def require_refiner(transformer: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError for a transformer of the original VAR, from which no picture can be generated here."""
    if not any(name.startswith("diffloss.") for name in transformer):
        raise CheckpointError(f"{source} has no diffusion refiner (diffloss.*): it is a bare VAR file, which can start "
                              "a training but not restore pictures; give a VARSR file such as VARSR.pth")


def _infer_refiner(facts: _Facts) -> RefinerConfig:
    require_refiner(facts.tensors, facts.source)
    return RefinerConfig(width=facts.size("diffloss.net.input_proj.weight", 0),
                         depth=facts.count("diffloss.net.res_blocks.#."))


def infer_vqvae_config(tensors: Mapping[str, Tensor], scales: tuple[int, ...] | None = None,
                       source: str = "the checkpoint") -> VQVAEConfig:
    """Configuration of a published tokenizer. Its file does not know the scales, only how many it was trained with:
    without `scales` the published list of that length is taken. Raises CheckpointError."""
    facts = _Facts(tensors, source)
    if scales is None:
        rows = facts.size(CODE_USAGE, 0)
        scales = next((known for known in KNOWN_SCALES if len(known) == rows), None)
        if scales is None:
            raise CheckpointError(f"{source} was trained with {rows} scales, which are not recorded: give the scales")
    base = facts.size("encoder.conv_in.weight", 0)
    widths = [facts.size(f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(facts.count("encoder.down.#."))]
    if not widths or not base or any(width % base for width in widths):
        raise CheckpointError(f"{source}: encoder widths {widths} are no multiples of the first convolution's {base}")
    try:
        return VQVAEConfig(
            scales=scales, vocab_size=facts.size("quantize.embedding.weight", 0),
            latent_channels=facts.size("quantize.embedding.weight", 1), base_width=base,
            multipliers=tuple(width // base for width in widths), res_blocks=facts.count("encoder.down.0.block.#."),
            stem=facts.stem("encoder.conv_in.weight"), phi_count=facts.count("quantize.quant_resi.qresi_ls.#."))
    except ConfigError as error:
        raise CheckpointError(f"{source}: its tensors make no tokenizer: {error}") from error


def infer_scales(transformer: Mapping[str, Tensor], source: str = "the checkpoint") -> tuple[int, ...]:
    """Sides of the token maps of a published transformer. Raises CheckpointError where they cannot be told."""
    facts = _Facts(transformer, source)
    start, count = facts.size("pos_start", 1), facts.size("lvl_embed.weight", 0)
    levels = transformer.get(LEVELS)
    if levels is not None and levels.device.type != "meta":
        flat = levels.flatten().long()
        if len(flat) > 2 * MAX_TOKENS or count > MAX_TOKENS:  # those of the prefix too
            raise CheckpointError(f"{source}: {LEVELS} has {len(flat)} tokens, more than any model")
        if not len(flat) or flat.min() < 0 or flat.max() >= count:
            raise CheckpointError(f"{source}: {LEVELS} names levels beyond the {count} of lvl_embed.weight")
        lengths = torch.bincount(flat, minlength=count).tolist()
        sides = (1, *(math.isqrt(length) for length in lengths[1:]))
        if lengths[0] != start or any(side * side != length for side, length in zip(sides[1:], lengths[1:])):
            raise CheckpointError(f"{source}: {LEVELS} counts {lengths} tokens per level, which are not {start} to "
                                  "start with and squares after them")
        return sides
    total = levels.shape[-1] if levels is not None else None
    for known in KNOWN_SCALES:
        tokens = start + sum(side * side for side in known[1:])
        prefix = known[-1] ** 2 if start > 1 else 0
        if len(known) == count and start == prefix + 1 and total in (None, tokens):
            return known
    raise CheckpointError(f"{source}: {LEVELS} is missing and {count} scales with {start} start tokens are no "
                          "published model, so the sides of the scales are unknown")


def from_published(config: VARSRConfig, transformer: Mapping[str, Tensor], vqvae: Mapping[str, Tensor],
                   source: str = "the checkpoint") -> dict[str, Tensor]:
    """State dict in our names, sharing memory with the published tensors; rebuilt buffers are left out.

    Raises CheckpointError for a name without a place or a key bias that is not zero.
    """
    return {**_import(transformer, source), **vqvae_from_published(config.vqvae, vqvae, source)}


def vqvae_from_published(config: VQVAEConfig, tensors: Mapping[str, Tensor],
                         source: str = "the checkpoint") -> dict[str, Tensor]:
    """The tokenizer's part of `from_published`. Code usage of another number of scales becomes zeros."""
    imported = _import(tensors, source)
    name, shape = our_name(CODE_USAGE), (len(config.scales), config.vocab_size)
    if name not in imported or tuple(imported[name].shape) != shape:
        imported[name] = torch.zeros(shape, device=next(iter(imported.values())).device)
    return imported


def _import(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    imported = {}
    for name, tensor in tensors.items():
        if REBUILT.fullmatch(name):
            if name.endswith(KEY_BIAS) and tensor.device.type != "meta" and tensor.any():
                raise CheckpointError(f"{source}: tensor '{name}' is not zero: this model was trained with a key bias, "
                                      "which VARSR does not have")
            continue
        ours = our_name(name)
        if ours is None:
            raise CheckpointError(f"{source}: tensor '{name}' has no place in a VARSR model")
        imported[ours] = tensor
    return imported


def to_published(config: VARSRConfig, tensors: Mapping[str, Tensor]) -> Published:
    """The inverse of `from_published`: both parts in published names, with the buffers that published files carry.

    Raises CheckpointError for a model with parts that the published format does not know (shared modulation,
    fidelity features, a detail branch), or settings that its files would be read with another value of.
    """
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("vqvae.")}
    transformer = _export(own)
    start = transformer["pos_start"]
    for block in range(config.transformer.depth):
        transformer[f"blocks.{block}.{KEY_BIAS}"] = torch.zeros_like(transformer[f"blocks.{block}.attn.q_bias"])
    vqvae = vqvae_to_published({name: tensor for name, tensor in tensors.items() if name not in own})
    lengths = [config.prefix_tokens + 1] + [side * side for side in config.vqvae.scales[1:]]
    counts = torch.tensor(lengths, device="cpu")  # on the meta device too, where the scales are read off nothing else
    levels = torch.repeat_interleave(torch.arange(len(lengths), device="cpu"), counts)[None]
    _require_told(config, infer_config({**transformer, LEVELS: levels}, vqvae, config.name))
    transformer[LEVELS] = levels = levels.to(start.device)
    shape = (sum(lengths), sum(lengths))
    bias = torch.zeros(shape, device=start.device)  # no memory on the meta device, where shapes alone are asked for
    transformer[ATTENTION_BIAS] = bias.masked_fill_(levels > levels.T, -math.inf)[None, None]
    return Published(transformer, vqvae)


def _require_told(config: VARSRConfig, read: VARSRConfig) -> None:
    """Raise CheckpointError where a configuration is not what its published tensors are read as: whatever reads them
    would compute something else with the same weights."""
    found = _settings(asdict(read))
    others = [f"{name} {value} (would be read as {found.get(name)})"
              for name, value in _settings(asdict(config)).items() if found.get(name) != value]
    if others:
        raise CheckpointError(f"the published format has no place for {', '.join(others)}: keep {config.name} as a "
                              "folder of ours")


def _settings(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Fields of a configuration as a dictionary, by dotted name, without those that are never published."""
    flat: dict[str, Any] = {}
    for field, value in values.items():
        name = f"{within}{field}"
        if NEVER_PUBLISHED.fullmatch(name):
            continue
        flat |= _settings(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def vqvae_to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tokenizer's part of `to_published`, from names that begin with `vqvae.`."""
    return _export(tensors)


def _export(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {ours: published_name(ours) for ours in tensors}
    homeless = [ours for ours, name in names.items() if name is None]
    if homeless:
        rest = f" and {len(homeless) - LISTED_NAMES} more" if len(homeless) > LISTED_NAMES else ""
        raise CheckpointError(f"the published format has no place for {', '.join(homeless[:LISTED_NAMES])}{rest}")
    return {names[ours]: tensor for ours, tensor in tensors.items()}
