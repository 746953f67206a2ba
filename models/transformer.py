"""The next-scale transformer of VAR with VARSR's LR prefix; without a prefix it is the class-to-image model.

One level of tokens per scale. Level 0 is the LR prefix (if any) followed by the class token, whose output predicts
the first scale; the tokens of scale k see everything up to and including their own scale.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention, BlockCausal, Context, KVCache, Replace, rope_table
from .config import PrefixConfig, TransformerConfig, VQVAEConfig

if TYPE_CHECKING:
    from .fastvar import TokenPruner

NORM_EPS = 1e-6


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Affine-free LayerNorm of x, then the class's scale and shift (DiT, section 3.2)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.activation = nn.GELU(approximate="tanh")
        self.project = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.activation(self.expand(x)))

    def replace_linears(self, replace: Replace) -> None:
        """For inference: put other layers in place of the linear ones, the first with the activation in it."""
        self.expand, self.activation = replace(self.expand, gelu=True), nn.Identity()
        self.project = replace(self.project)


class Modulation(NamedTuple):
    """What the class does to a block's two parts: gates, scales and shifts (B, 1, C)."""

    attention_gate: Tensor
    feed_gate: Tensor
    attention_scale: Tensor
    feed_scale: Tensor
    attention_shift: Tensor
    feed_shift: Tensor


class Block(nn.Module):
    """Attention and feed-forward, both gated and modulated by the class (adaptive layer norm)."""

    def __init__(self, config: TransformerConfig, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.num_heads)
        self.modulate = modulate
        self.feed_forward = FeedForward(config.width, config.ffn_ratio * config.width)
        self.drop_path = drop_path
        if config.shared_modulation:
            self.modulation_offset = nn.Parameter(torch.zeros(len(Modulation._fields), config.width))
        else:
            self.modulation = nn.Linear(config.width, len(Modulation._fields) * config.width)

    def modulations(self, condition: Tensor) -> Tensor:
        """What the class does to this block, (B, 6, 1, C), in the order of `Modulation`: from its activated embedding
        (B, C), or from the projection (B, 6, 1, C) that all blocks share."""
        if hasattr(self, "modulation_offset"):
            return condition + self.modulation_offset[:, None]
        return rearrange(self.modulation(condition), "b (parts c) -> b parts 1 c", parts=len(Modulation._fields))

    def compile_elementwise(self) -> None:
        """Have the arithmetic between the matrix products compiled into one kernel where it was many.

        The products gain nothing from the compiler, and the cache would have it start anew at every scale.
        """
        self.modulate = torch.compile(modulate, dynamic=True)
        self.attention.positioned = torch.compile(self.attention.positioned, dynamic=True)

    def forward(self, x: Tensor, modulation: Tensor, rope: Tensor, context: Context,
                queries: slice = slice(None)) -> Tensor:
        """x: (B, L, C); modulation: (B, 6, 1, C). queries: compute these tokens alone, the others being looked at."""
        parts = Modulation(*modulation.unbind(1))
        x = x[:, queries] + self._drop_path(self.attend(self.before_attention(x, parts), parts, rope, context, queries))
        return x + self._drop_path(self.feed(self.before_feed(x, parts), parts))

    def before_attention(self, x: Tensor, parts: Modulation) -> Tensor:
        """Tokens as attention takes them."""
        return self.modulate(x, parts.attention_scale, parts.attention_shift)

    def attend(self, tokens: Tensor, parts: Modulation, rope: Tensor, context: Context,
               queries: slice = slice(None)) -> Tensor:
        """What attention adds to (some of) the tokens."""
        return self.attention(tokens, rope, context, queries) * parts.attention_gate

    def before_feed(self, x: Tensor, parts: Modulation) -> Tensor:
        """Tokens as the feed-forward part takes them."""
        return self.modulate(x, parts.feed_scale, parts.feed_shift)

    def feed(self, tokens: Tensor, parts: Modulation) -> Tensor:
        """What the feed-forward part adds to tokens."""
        return self.feed_forward(tokens) * parts.feed_gate

    def _drop_path(self, x: Tensor) -> Tensor:
        """In training, rows left out at random (stochastic depth)."""
        if not self.training or not self.drop_path:
            return x
        from torchvision.ops import stochastic_depth  # a second and 130 MB that generation can do without
        return stochastic_depth(x, self.drop_path, "row")


class PrefixEncoder(nn.Module):
    """LR picture at output size (B, 3, S, S) in [-1, 1] to N x N prefix tokens (B, N^2, C), row-major."""

    def __init__(self, config: PrefixConfig, width: int) -> None:
        super().__init__()
        self.stem = nn.PixelUnshuffle(config.stem)
        self.conv_in = nn.Conv2d(3 * config.stem ** 2, config.widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in zip(config.widths, config.widths[1:]):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(config.widths[-1], width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.silu(self.conv_in(self.stem(image.to(self.conv_in.weight.dtype))))
        for block in self.blocks:
            x = F.silu(block(x))
        return rearrange(self.conv_out(x), "b c h w -> b (h w) c")


class VARTransformer(nn.Module):
    """Predicts the codes of every scale from the LR prefix (if any), the class and the scales before it."""

    def __init__(self, config: TransformerConfig, tokenizer: VQVAEConfig) -> None:
        super().__init__()
        self.config, self.scales = config, tokenizer.scales
        width = config.width
        self.prefix_length = tokenizer.side ** 2 if config.prefix else 0
        self.prefix_encoder = PrefixEncoder(config.prefix, width) if config.prefix else None
        self.start_position = nn.Parameter(torch.zeros(1, self.prefix_length + 1, width))
        self.token_embedding = nn.Linear(tokenizer.latent_channels, width)
        self.class_embedding = nn.Embedding(config.class_rows, width)
        self.level_embedding = nn.Embedding(len(self.scales), width)
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        self.shared_modulation = nn.Linear(width, len(Modulation._fields) * width) if config.shared_modulation else None
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, tokenizer.vocab_size)
        self.register_buffer("block_table", None)  # see fold_modulations
        self.register_buffer("head_table", None)
        self.checkpointing = False  # recompute block activations in the backward pass
        self.register_buffer("rotations", torch.empty(0), persistent=False)
        self.reset_rope()

    def hidden_weights(self) -> list[nn.Parameter]:
        """Matrices between features, which are no input, output or modulation: those that Muon may train."""
        return [layer.weight for block in self.blocks for layer in (
            block.attention.qkv, block.attention.out, block.feed_forward.expand, block.feed_forward.project)]

    def reset_rope(self, device: torch.device | None = None) -> None:
        """Compute the rotary table, which is no part of a checkpoint."""
        config = self.config
        with torch.device(device if device is not None else self.start_position.device):
            self.rotations = rope_table(self.scales, self.scales[-1] if config.prefix else 0, config.head_dim,
                                        config.rope_base, config.rope_extent)

    @property
    def level_lengths(self) -> list[int]:
        """Tokens of each level: prefix and class token first, then n_k^2."""
        return [self.prefix_length + 1] + [side * side for side in self.scales[1:]]

    def level_slice(self, level: int) -> slice:
        """Where a level's tokens stand in the sequence."""
        lengths = self.level_lengths
        start = sum(lengths[:level])
        return slice(start, start + lengths[level])

    def rope(self, tokens: slice = slice(None)) -> Tensor:
        """Rotations (cosine, sine) of a stretch of the sequence: (L, head_dim/2, 2) float32."""
        return self.rotations[tokens]

    def new_cache(self, batch: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """An empty cache for one generation of `batch` rows."""
        config = self.config
        return KVCache(config.depth, batch, config.num_heads, sum(self.level_lengths[:-1]), config.head_dim, dtype,
                       device)

    def modulations(self, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """All that the classes (B,) decide: per block (B, 6, 1, C), and (B, 2, 1, C) of the head (scale, shift)."""
        if self.is_folded:
            return list(self.block_table[:, labels]), self.head_table[labels]
        condition = F.silu(self.class_embedding(labels))
        head = rearrange(self.head_modulation(condition), "b (parts c) -> b parts 1 c", parts=2)
        if self.shared_modulation is not None:
            condition = rearrange(self.shared_modulation(condition), "b (parts c) -> b parts 1 c", c=self.config.width)
        return [block.modulations(condition) for block in self.blocks], head

    @property
    def is_folded(self) -> bool:
        """Whether `fold_modulations` has been here."""
        return self.block_table is not None

    @torch.no_grad()
    def fold_modulations(self) -> None:
        """For inference: keep what every class gives instead of the layers that compute it.

        The published super-resolution model has two classes and 340 M weights that know no more than that. Nothing
        is done where the table would be larger than the layers.
        """
        rows, depth = self.config.class_rows, self.config.depth
        layers = 1 if self.config.shared_modulation else depth
        if self.is_folded or rows * depth >= layers * self.config.width:
            return
        blocks, self.head_table = self.modulations(torch.arange(rows, device=self.start_position.device))
        self.block_table = torch.stack(blocks)
        self.head_modulation = self.shared_modulation = None
        for block in self.blocks:
            name = "modulation_offset" if self.config.shared_modulation else "modulation"
            setattr(block, name, None)

    def start_tokens(self, labels: Tensor, prefix: Tensor | None) -> Tensor:
        """Level 0: prefix (B, N^2, C) if any, then the class token, with positions: (B, N^2 + 1, C)."""
        tokens = self.class_embedding(labels)[:, None]
        if self.prefix_length:
            if prefix is None:
                raise ValueError("this model restores pictures: it needs an LR picture (for class-to-image, "
                                 "load a class-to-image model)")
            if self.config.prefix_injection:
                tokens = tokens + self.injected(prefix, 0)
            tokens = torch.cat([prefix, tokens.to(prefix.dtype)], dim=1)
        elif prefix is not None:
            raise ValueError("this is a class-to-image model: it takes no LR picture")
        return tokens + self.start_position + self.level_embedding.weight[0]

    def scale_tokens(self, inputs: Tensor, scale: int, prefix: Tensor | None = None) -> Tensor:
        """Tokens of a scale >= 1 (0-based) from its inputs (B, n_k^2, c): (B, n_k^2, C)."""
        inputs = inputs.to(self.token_embedding.weight.dtype)
        tokens = self.token_embedding(inputs) + self.level_embedding.weight[scale]
        return tokens + self.injected(prefix, scale) if self.config.prefix_injection else tokens

    def injected(self, prefix: Tensor, scale: int) -> Tensor:
        """The prefix (B, N^2, C) area-resized to a scale: (B, n_k^2, C). With it, a token need not first learn to
        find its own place in the prefix, which is most of what a small model can learn in a short training."""
        grid = rearrange(prefix, "b (h w) c -> b c h w", h=self.scales[-1])
        return rearrange(F.adaptive_avg_pool2d(grid, self.scales[scale]), "b c h w -> b (h w) c")

    def forward_level(self, x: Tensor, level: int, modulations: Sequence[Tensor], cache: KVCache,
                      pruner: TokenPruner | None = None) -> Tensor:
        """Run the blocks over one level's tokens (B, L, C) with everything before it in the cache.

        Returns the hidden states of the scale's own tokens (B, n_k², C): the prefix predicts nothing, so the last
        block leaves it out.
        """
        rope = self.rope(self.level_slice(level))
        own = slice(-self.scales[level] ** 2, None)
        cache.start_level(level, last=level == len(self.scales) - 1)
        if pruner is not None:
            pruner.start_level(level)
        for i, (block, modulation, layer) in enumerate(zip(self.blocks, modulations, cache.layers, strict=True)):
            queries = own if i == len(self.blocks) - 1 else slice(None)
            if pruner is None or not pruner.concerns(i):
                x = block(x, modulation, rope, layer, queries)
            else:
                x = pruner.run(block, i, x, modulation, rope, layer)
        return x[:, own]

    def forward(self, labels: Tensor, inputs: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor]:
        """Teacher-forced pass. labels: (B,); inputs: (B, n_2^2 + ... + n_K^2, c); prefix: (B, N^2, C) or None.

        Returns hidden states (B, n_1^2 + ... + n_K^2, C) and logits (B, same, V) in float32.
        """
        start = self.start_tokens(labels, prefix)
        later = [self.scale_tokens(part, scale, prefix).to(start.dtype)
                 for scale, part in enumerate(inputs.split(self.level_lengths[1:], dim=1), start=1)]
        x = torch.cat([start, *later], dim=1)
        recomputed = self.checkpointing and self.training
        context, rope = BlockCausal(self.level_lengths, recomputed), self.rope()
        modulations, head_modulation = self.modulations(labels)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            if recomputed:
                x = checkpoint(block, x, modulation, rope, context, use_reentrant=False)
            else:
                x = block(x, modulation, rope, context)
        hidden = x[:, self.prefix_length:]  # the prefix predicts nothing
        return hidden, self.logits(hidden, head_modulation)

    def logits(self, hidden: Tensor, head_modulation: Tensor) -> Tensor:
        """Code logits (B, L, V) of hidden states (B, L, C), computed in float32."""
        scale, shift = head_modulation.unbind(1)
        with torch.autocast(hidden.device.type, enabled=False):
            normed = modulate(hidden.float(), scale.float(), shift.float())
            return F.linear(normed, self.head.weight.float(), self.head.bias.float())
