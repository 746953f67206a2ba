"""FastVAR token pruning (Guo et al., 2025, "FastVAR: Linear Visual Autoregressive Modeling via Cached Token Pruning").

At the large scales most tokens hardly change from block to block. A pruned block computes the tokens that stand out
from the mean alone; the others take what the same block gave for the previous scale, resized. Off unless a
`FastVARConfig` is given to `VARSR.generate`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from utils.errors import UserError

from .attention import Context
from .transformer import Block, Modulation

# Tokens (B, K, C) and their places (B, K), or None for all of them, to what is added to them (B, K, C).
Update = Callable[[Tensor, Tensor | None], Tensor]

ATTENTION, FEED_FORWARD, WHOLE = "attention", "feed_forward", "block"  # what a choice of tokens is for
SEPARATE, SHARED = "separate", "shared"
MODES = (SEPARATE, SHARED)


@dataclass(frozen=True)
class FastVARConfig:
    """Which tokens are dropped where.

    mode "separate": attention and feed-forward choose tokens for themselves (the fork's way). "shared": one choice a
    block for both, and the maps of the previous scale are resized all together.
    """

    drop_ratios: Mapping[int, float] = field(default_factory=dict)  # by side of the scale; others are not pruned
    later_layer_start: int = 3  # blocks before this one are not pruned
    min_keep: int = 64  # tokens
    mode: str = SEPARATE

    def __post_init__(self) -> None:
        for side, ratio in self.drop_ratios.items():
            if not 0 <= ratio < 1:
                raise UserError(f"drop ratio of side {side} must be at least 0 and less than 1, got {ratio}")
        if self.later_layer_start < 0 or self.min_keep < 1:
            raise UserError(f"later_layer_start must be at least 0 and min_keep at least 1, "
                             f"got {self.later_layer_start} and {self.min_keep}")
        if self.mode not in MODES:
            raise UserError(f"unknown FastVAR mode {self.mode!r}: choose one of {', '.join(MODES)}")

    @property
    def key(self) -> tuple:
        """What tells it from others, for dictionaries."""
        return tuple(sorted(self.drop_ratios.items())), self.later_layer_start, self.min_keep, self.mode

    @classmethod
    def for_last(cls, scales: Sequence[int], ratios: Sequence[float], **options: object) -> FastVARConfig:
        """Ratios of the last len(ratios) scales, the last scale's last. Raises ValueError for more than there are."""
        if len(ratios) >= len(scales):
            raise UserError(f"{len(ratios)} drop ratios for a model of {len(scales)} scales: give at most "
                             f"{len(scales) - 1}, the first scale cannot be pruned")
        return cls(dict(zip(scales[len(scales) - len(ratios):], ratios)), **options)

    def pruner(self, scales: Sequence[int]) -> TokenPruner:
        """What prunes one generation of a model of these scales."""
        return TokenPruner(self, scales)

    def kept(self, side: int, layer: int) -> int:
        """Tokens that a block computes of the side² of a scale."""
        total = side * side
        if layer < self.later_layer_start:
            return total
        return min(max(total - int(total * self.drop_ratios.get(side, 0.0)), self.min_keep), total)

    def plan(self, scales: Sequence[int], depth: int) -> list[PrunedScale]:
        """What is pruned of a model's scales (the first never is)."""
        found = []
        for side in scales[1:]:
            layers = sum(self.kept(side, layer) < side * side for layer in range(depth))
            if layers:
                found.append(PrunedScale(side, layers, self.kept(side, depth - 1), side * side))
        return found


@dataclass(frozen=True)
class PrunedScale:
    """One row of a pruning plan: `layers` blocks compute `kept` of `total` tokens."""

    side: int
    layers: int
    kept: int
    total: int


def select(tokens: Tensor, keep: int) -> Tensor:
    """Places (B, keep), ascending, of the tokens (B, L, C) that are farthest from their mean."""
    tokens = tokens.float()
    distance = (tokens - tokens.mean(1, keepdim=True)).square().sum(-1)
    return distance.topk(keep, dim=1, sorted=False).indices.sort(dim=1).values


def resize_map(tokens: Tensor, side: int) -> Tensor:
    """A token map (B, n², C), area-resized to (B, side², C)."""
    grid = rearrange(tokens, "b (h w) c -> b c h w", h=round(tokens.shape[1] ** 0.5))
    return rearrange(F.adaptive_avg_pool2d(grid, side), "b c h w -> b (h w) c")


class TokenPruner:
    """The pruning of one generation: what every block gave at the previous scale lives here and ends with it."""

    def __init__(self, config: FastVARConfig, scales: Sequence[int]) -> None:
        self.config, self.scales = config, tuple(scales)
        self.level = 0
        self.previous: dict[tuple[int, str], Tensor] = {}

    def start_level(self, level: int) -> None:
        """Called before the blocks of a level."""
        self.level = level
        if self.config.mode == SHARED and self.previous:
            keys, maps = zip(*self.previous.items())
            resized = resize_map(torch.cat(maps), self.scales[level])
            self.previous = dict(zip(keys, resized.chunk(len(keys))))

    def branch(self) -> None:
        """From now on there are twice the rows: the second half goes on from what the first remembers."""
        self.previous = {key: tokens.repeat(2, 1, 1) for key, tokens in self.previous.items()}

    def concerns(self, layer: int) -> bool:
        """Whether a block must be run by `run` on the current level, to be pruned or to be remembered."""
        return self.level > 0 or self._prunes(1, layer)

    def run(self, block: Block, layer: int, x: Tensor, modulation: Tensor, rope: Tensor, context: Context) -> Tensor:
        """One block over the tokens x (B, L, C) of the current level."""
        run = self._run_shared if self.config.mode == SHARED else self._run_separately
        return run(block, layer, x, modulation, rope, context)

    def _run_separately(self, block: Block, layer: int, x: Tensor, modulation: Tensor, rope: Tensor,
                        context: Context) -> Tensor:
        """Attention and feed-forward each on a choice of tokens; the others get what they got at the previous scale."""
        parts = Modulation(*modulation.unbind(1))

        def attend(tokens: Tensor, places: Tensor | None) -> Tensor:
            return block.attend(tokens, parts, rope if places is None else rope[places], context)

        def feed(tokens: Tensor, places: Tensor | None) -> Tensor:
            return block.feed(tokens, parts)
        # The fork's cache holds attention outputs gated in place, and gates them again when it restores them.
        x = x + self._update(layer, ATTENTION, block.before_attention(x, parts), attend, parts.attention_gate)
        return x + self._update(layer, FEED_FORWARD, block.before_feed(x, parts), feed, None)

    def _update(self, layer: int, part: str, tokens: Tensor, update: Update, restored_gate: Tensor | None) -> Tensor:
        """`update` of the tokens (B, L, C) that stand out, resized old values times `restored_gate` for the others."""
        old = self.previous.pop((layer, part), None)
        if old is None or not self._prunes(self.level, layer):
            result = update(tokens, None)
        else:
            chosen, places = self._choose(tokens, layer)
            old = resize_map(old, self.scales[self.level])
            if restored_gate is not None:
                old = old * restored_gate
            result = old.scatter(1, places, update(tokens.gather(1, places), chosen))
        self._remember(layer, part, result)
        return result

    def _run_shared(self, block: Block, layer: int, x: Tensor, modulation: Tensor, rope: Tensor,
                    context: Context) -> Tensor:
        """The whole block on one choice of tokens; the others change as their place did at the previous scale."""
        old = self.previous.pop((layer, WHOLE), None)
        if old is None or not self._prunes(self.level, layer):
            result = block(x, modulation, rope, context)
        else:
            chosen, places = self._choose(F.layer_norm(x, x.shape[-1:]), layer)
            result = (x + old).scatter(1, places, block(x.gather(1, places), modulation, rope[chosen], context))
        if self._prunes(self.level + 1, layer):
            self._remember(layer, WHOLE, result - x)
        return result

    def _choose(self, scored: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Places (B, K) of the kept tokens, and the same spread over the channels."""
        chosen = select(scored, self.config.kept(self.scales[self.level], layer))
        return chosen, chosen[..., None].expand(-1, -1, scored.shape[-1])

    def _prunes(self, level: int, layer: int) -> bool:
        if not 0 < level < len(self.scales):
            return False
        side = self.scales[level]
        return self.config.kept(side, layer) < side * side

    def _remember(self, layer: int, part: str, result: Tensor) -> None:
        """Keep a block's result (B, L, C), without the prefix, if the next scale will want it."""
        if self._prunes(self.level + 1, layer):
            self.previous[layer, part] = result[:, -self.scales[self.level] ** 2:]
